"""Writes files so that a crash leaves whole ones or none, and never through a symbolic link."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def open_below(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """A descriptor of the directory `parts` below `root`, made where it is missing.

    Raises `OSError`, also where a part is a symbolic link: it could lead anywhere.
    """
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=descriptor)
            below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def create_file(
    directory: int, name: str, blocks: Iterable[bytes], mode: int, mtime: datetime | None
) -> None:
    """Write `blocks` under another name, sync them, then put the file in the place of `name`.

    Where `blocks` raises, nothing is left behind. Raises `OSError`.
    """
    partial = f".cellarer-{secrets.token_hex(6)}.partial"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if mtime is not None:
                nanoseconds = round(mtime.timestamp() * 1e6) * 1000
                os.utime(file.fileno(), ns=(nanoseconds, nanoseconds))
            os.fsync(file.fileno())
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(partial, dir_fd=directory)
        raise
    os.fsync(directory)
