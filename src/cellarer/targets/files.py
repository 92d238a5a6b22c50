"""Writes files so that a crash leaves whole ones or none, and never through a symbolic link."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

_PARTIAL = re.compile(r"\.cellarer-[0-9a-f]{12}\.partial")
_HOLE_BYTES = 1 << 16
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
    directory: int,
    name: str,
    blocks: Iterable[bytes],
    mode: int,
    mtime: datetime | None,
    *,
    sparse: bool = False,
) -> None:
    """Write `blocks` under another name, sync them, then put the file in the place of `name`.

    Where it is `sparse`, long runs of zeros become holes. Where `blocks` raises, nothing is left
    behind. Raises `OSError`.
    """
    partial, descriptor = _claim(directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for block in _in_parts(blocks) if sparse else blocks:
                if sparse and not block.strip(b"\0"):
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate()
            file.flush()
            os.fchmod(file.fileno(), mode)
            if mtime is not None:
                nanoseconds = round(mtime.timestamp() * 1e6) * 1000
                os.utime(file.fileno(), ns=(nanoseconds, nanoseconds))
            os.fsync(file.fileno())
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        # Told to end in the very moment of the renaming: that is what has to be heard of.
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=directory)
        raise
    os.fsync(directory)


def sweep_partials(directory: int) -> None:
    """Remove the unfinished files there whose writers were killed, and none of a living one."""
    for name in os.listdir(directory):
        if not _PARTIAL.fullmatch(name):
            continue
        # Finished or removed this instant, another user's, or on a file system without locks.
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=directory)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # What has its name by now is a whole file, and nobody's to remove.
                if _is_called(descriptor, name, directory):
                    os.unlink(name, dir_fd=directory)
            finally:
                os.close(descriptor)


def _claim(directory: int) -> tuple[str, int]:
    """A new file to write, with a lock on it that says that its writer lives."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        partial = f".cellarer-{secrets.token_hex(6)}.partial"
        descriptor = os.open(partial, flags, 0o600, dir_fd=directory)
        # Where there are no locks, nobody can sweep either.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A sweeper may have taken it for a dead writer's in the moment before the lock.
        if _is_called(descriptor, partial, directory):
            return partial, descriptor
        os.close(descriptor)


def _is_called(descriptor: int, name: str, directory: int) -> bool:
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _in_parts(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks cut into pieces of which each may be a hole."""
    for block in blocks:
        for start in range(0, len(block), _HOLE_BYTES):
            yield block[start : start + _HOLE_BYTES]
