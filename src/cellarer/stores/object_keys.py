"""Which names an object may have, so that every store, file system and URL takes it; its size."""

from __future__ import annotations

import re

from cellarer.errors import DamagedData, StoreError

LONGEST_KEY = 512
"""Characters. S3, Google Cloud Storage and Azure take 1024 bytes, of which a prefix has its share;
a path on Linux is at most 4096 bytes long."""

LARGEST_BYTES = (1 << 30) + (1 << 20)
"""A segment of log is 1 GiB at most, and is an object; nothing else comes near. More is never read
into memory, whatever a store says that it has."""

# A segment begins with a letter or digit, so that `.`, `..` and hidden names are none, and does not
# end in a dot, which Azure drops.
_SEGMENT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9_-])?"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def is_key(text: str) -> bool:
    """Whether an object may have this name."""
    return len(text) <= LONGEST_KEY and _KEY.fullmatch(text) is not None


def check_key(key: str) -> None:
    """Raise `StoreError` for what cannot be an object's name, such as one that holds `..`."""
    if not is_key(key):
        raise StoreError(
            "this cannot be the name of an object",
            detail=repr(key[: LONGEST_KEY + 1]),
            hint="names are segments of letters, digits, `.`, `_` and `-`, parted by `/`",
        )


def check_size(key: str, size_bytes: int) -> None:
    """Raise `DamagedData` for more than an object can hold."""
    if size_bytes > LARGEST_BYTES:
        raise DamagedData(
            f"{key} is larger than any object of a vault",
            detail=f"{size_bytes} bytes, and {LARGEST_BYTES} at most",
        )


def check_prefix(prefix: str) -> None:
    """Raise `StoreError` for what cannot begin a listing: it is empty, or ends in one `/`."""
    if prefix and not (prefix.endswith("/") and is_key(prefix[:-1])):
        raise StoreError(
            "this cannot be the prefix of a listing",
            detail=repr(prefix[: LONGEST_KEY + 1]),
            hint="it is empty, or a name followed by `/`",
        )


def check_range(offset: int, length: int) -> None:
    """Raise `ValueError` for a range that no object can have."""
    if offset < 0 or length < 0:
        raise ValueError(f"offset {offset} and length {length} must not be negative")
