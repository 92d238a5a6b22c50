"""Directories for a moment, which the next one who makes one removes where their owner was killed.

What lies in them is not encrypted. A lock on the directory says that its owner lives; it goes with
the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "cellarer-scratch-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory in $TMPDIR that only its owner enters, removed at the end."""
    parent = Path(tempfile.gettempdir())
    sweep_scratch(parent)
    directory, descriptor = _claim(parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def sweep_scratch(parent: Path) -> None:
    """Remove what killed processes of this user have left there, and nothing of a living one."""
    for directory in parent.glob(f"{_PREFIX}*"):
        # Removed this instant, another user's, or no directory.
        with suppress(OSError):
            descriptor = os.open(directory, _DIRECTORY)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)


def _claim(parent: Path) -> tuple[Path, int]:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        # A sweeper may take it for a dead owner's in the moment before the lock.
        with suppress(FileNotFoundError):
            descriptor = os.open(directory, _DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(directory.stat(), os.fstat(descriptor)):
                    return directory, descriptor
            os.close(descriptor)
