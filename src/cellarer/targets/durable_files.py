"""Writes large files so that the disk works while more is read, and knows when all of it is there.

A file that is there already may be brought up to date instead: what is equal is not read from the
point at all, and of what differs only the pages that do are written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from cellarer.domain.snapshot import Entry
from cellarer.ports import PointReader

PAGE_BYTES = 8192

_SYNC_EVERY_BYTES = 32 * 2**20
_SYNCERS = 4
_OPEN_FILES = 128
_READ_BYTES = 2**20
_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Syncer:
    """Syncs files in the background. Leaving the context means that every one is on the disk."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_SYNCERS, "sync")
        self._room = threading.Semaphore(_OPEN_FILES)
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True)
        if error is None:
            self.check()

    def begin(self, descriptor: int) -> Future[None]:
        """Bring what was written so far to the disk while more is written."""
        return self._submit(os.fdatasync, os.dup(descriptor))

    def finish(self, descriptor: int) -> None:
        """Bring the file to the disk and close it."""
        self._submit(os.fsync, descriptor)

    def check(self) -> None:
        """Raise what a sync raised."""
        if self._error is not None:
            raise self._error

    def _submit(self, sync: Callable[[int], None], descriptor: int) -> Future[None]:
        def run() -> None:
            try:
                sync(descriptor)
            except OSError as error:
                self._error = self._error or error
            finally:
                os.close(descriptor)
                self._room.release()

        self._room.acquire()
        return self._threads.submit(run)


def open_file(directory: int, name: str) -> int:
    """A descriptor of a regular file there, empty if it is new; what else has the name goes."""
    with suppress(FileNotFoundError):
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        # A hard link's other name may be anybody's file.
        if not _is_plain(there):
            os.unlink(name, dir_fd=directory)
    return os.open(name, _CREATE, 0o600, dir_fd=directory)


def bring_up_to_date(
    descriptor: int,
    entry: Entry,
    reader: PointReader,
    syncer: Syncer,
    advance: Callable[[int], None],
) -> int:
    """Make the file what the stream is; how many bytes were written. Not yet on the disk.

    `advance` is told of the bytes that are settled, written or not.
    """
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes == entry.size_bytes and size_bytes and _is_equal(descriptor, entry, reader):
        advance(entry.size_bytes)
        return 0
    written, offset, unsynced = 0, 0, 0
    syncing: Future[None] | None = None
    for block in reader.read(entry.path):
        for start, piece in _differing(descriptor, offset, block, size_bytes):
            _write_all(descriptor, piece, start)
            written += len(piece)
            unsynced += len(piece)
        offset += len(block)
        advance(len(block))
        if unsynced >= _SYNC_EVERY_BYTES:
            if syncing is not None:
                syncing.result()  # the disk is slower: no more than this is kept in memory
            syncing, unsynced = syncer.begin(descriptor), 0
            syncer.check()
    if size_bytes > offset:
        os.ftruncate(descriptor, offset)
    return written


def _is_equal(descriptor: int, entry: Entry, reader: PointReader) -> bool:
    kind, _, expected = entry.sum.partition(":")
    digest = reader.hasher(kind)
    offset = 0
    while block := os.pread(descriptor, _READ_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest() == expected


def _differing(
    descriptor: int, offset: int, block: bytes, size_bytes: int
) -> Iterator[tuple[int, memoryview]]:
    """The runs of pages in which the file is not the block that belongs at this offset."""
    view = memoryview(block)
    if offset >= size_bytes:
        yield offset, view
        return
    there = _read_all(descriptor, len(block), offset)
    if there == block:
        return
    begin: int | None = None
    for start in range(0, len(block), PAGE_BYTES):
        equal = there[start : start + PAGE_BYTES] == view[start : start + PAGE_BYTES]
        if equal and begin is not None:
            yield offset + begin, view[begin:start]
            begin = None
        elif not equal and begin is None:
            begin = start
    if begin is not None:
        yield offset + begin, view[begin:]


def _read_all(descriptor: int, length: int, offset: int) -> bytes:
    parts = []
    while length and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _is_plain(status: os.stat_result) -> bool:
    return (status.st_mode & 0o170000) == 0o100000 and status.st_nlink == 1
