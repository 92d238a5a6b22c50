"""Segments that were fetched ahead of the recovery that will want them, each whole under its name.

`restore_command` moves them away by itself, so a file is here under its name only once all of it
is, checked and synced. What a killed process left unfinished has another name, and is swept.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellarer.domain.wal import Kind, kind_of
from cellarer.errors import UsageError
from cellarer.targets.files import create_file, sweep_partials

_MODE = 0o600


class Spool:
    """The directory for one cluster's segments; made when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> None:
        """Make the directory, and remove what was left unfinished. Raises `OSError`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(self.directory) as descriptor:
            sweep_partials(descriptor)

    def names(self) -> set[str]:
        """The segments that wait here."""
        try:
            return {
                each.name for each in self.directory.iterdir() if kind_of(each.name) is Kind.SEGMENT
            }
        except FileNotFoundError:
            return set()

    def add(self, name: str, data: bytes) -> None:
        """Put a segment here. Raises `OSError`."""
        write_whole(self.directory / name, data)

    def take(self, name: str, destination: Path) -> bool:
        """Move a segment to where PostgreSQL wants it; False where it is not here."""
        path = self.directory / name
        try:
            path.replace(destination)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            write_whole(destination, path.read_bytes())
            path.unlink(missing_ok=True)
        return True

    def discard(self, name: str) -> None:
        """Remove a segment that nobody will want."""
        (self.directory / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.directory, ignore_errors=True)


def write_whole(path: Path, data: bytes) -> None:
    """A file that is there under its name with all its bytes, or not at all. Raises `OSError`."""
    with _opened(path.parent) as descriptor:
        create_file(descriptor, path.name, [data], _MODE, None)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """A directory, made where it is missing, in which no other process works meanwhile.

    Raises `UsageError` where one does.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{directory} is in use by another `cellarer wal stream`",
                hint="one stream of a source is enough; stop the other one first",
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
