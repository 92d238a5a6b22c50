"""Finds the name of a cluster's first superuser in its files, before any server runs on them.

Whoever connects to a restored cluster needs the name of a role, and the one that may do everything
was named when the cluster was made: mostly, but not always, `postgres`. Its oid is always 10.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BOOTSTRAP_ROLE, _AUTHID = 10, 1260
_MAP_MAGIC = 0x592717
_PAGE_BYTES = 8192
_PAGE_HEADER_BYTES = 24
_LOWER_AT = 12
_HEADER_SIZE_AT = 22
_NAME = struct.Struct("=I64s")
_USED = 1


def first_superusers(data_directory: Path) -> list[str]:
    """The names that the first superuser has or had, and `postgres`; the likeliest first."""
    found = []
    try:
        for page in _pages(data_directory):
            found += [name for oid, name in _roles(page) if oid == _BOOTSTRAP_ROLE]
    except (OSError, struct.error, UnicodeDecodeError):
        found = []  # then the usual name has to do
    return list(dict.fromkeys([*reversed(found), "postgres"]))


def _pages(data_directory: Path) -> Iterator[bytes]:
    """The pages of pg_authid, whose file the map of shared relations names."""
    mapping = (data_directory / "global" / "pg_filenode.map").read_bytes()
    magic, count = struct.unpack_from("=II", mapping)
    entries = struct.iter_unpack("=II", mapping[8 : 8 + 8 * count])
    filenode = dict(entries).get(_AUTHID) if magic == _MAP_MAGIC else None
    if filenode is None:
        return
    with (data_directory / "global" / str(filenode)).open("rb") as file:
        while len(page := file.read(_PAGE_BYTES)) == _PAGE_BYTES:
            yield page


def _roles(page: bytes) -> Iterator[tuple[int, str]]:
    """The roles on a page, versions that are gone included."""
    (lower,) = struct.unpack_from("=H", page, _LOWER_AT)
    for (pointer,) in struct.iter_unpack("=I", page[_PAGE_HEADER_BYTES:lower]):
        offset, state = pointer & 0x7FFF, pointer >> 15 & 3
        if state == _USED:
            start = offset + page[offset + _HEADER_SIZE_AT]
            oid, name = _NAME.unpack_from(page, start)
            yield oid, name.rstrip(b"\0").decode()
