"""Files read ahead of whoever takes them, and again where they were written to meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from blake3 import blake3

from cellarer.errors import SourceFailed

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 22
"""Files up to this size are read into memory first, and again where they changed meanwhile."""

_TRIES = 3
_AHEAD, _READERS = 16, 2

UNREADABLE = "read it as a user who may, such as root, or leave it out with exclude"


class Reading:
    """The content of a file that is read once. `size_bytes` and `changed` are known after that."""

    def __init__(self, place: bytes, found: os.stat_result) -> None:
        self._place, self._found = place, found
        self._descriptor = -1
        self._content: bytes | None = None
        self.size_bytes, self.changed = found.st_size, False

    @property
    def found(self) -> os.stat_result:
        """The file as it was when it was opened."""
        return self._found

    def begin(self) -> bool:
        """Open it, and read it now where it is small; whether it is there. Raises `OSError`."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._descriptor = os.open(self._place, flags)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return False  # gone, or another thing by now
        try:
            self._found = os.fstat(self._descriptor)
            plain = stat.S_ISREG(self._found.st_mode)
            if plain and self._found.st_size <= _SMALL_BYTES:
                self._content = self._steady()
        except BaseException:
            self.close()
            raise
        if not plain or self._content is not None:
            self.close()
        return plain

    def blocks(self) -> Iterator[bytes]:
        """The content. Raises `SourceFailed`."""
        try:
            if self._descriptor < 0 and self._content is None and not self.begin():
                raise SourceFailed(
                    f"{os.fsdecode(self._place)} is gone since it was listed",
                    hint="run the backup again",
                    retryable=True,
                )
            if self._content is not None:
                self.size_bytes = len(self._content)
                yield self._content
                return
            offset, digest = 0, blake3()
            while offset < self._found.st_size and (block := self._next(offset)):
                offset += len(block)
                digest.update(block)
                yield block
            self.size_bytes = offset
            self.changed = self._moved(offset, digest.digest())
        except OSError as error:
            raise unreadable(self._place, error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Whether it was read or not."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _steady(self) -> bytes:
        """All of it, as it stood while it was read if it does so in one of three times."""
        for _ in range(_TRIES):
            self._found = os.fstat(self._descriptor)
            parts, offset = [], 0
            while offset < self._found.st_size and (block := self._next(offset)):
                parts.append(block)
                offset += len(block)
            self.changed = self._moved(offset, blake3(b"".join(parts)).digest())
            if not self.changed:
                break
        return b"".join(parts)

    def _moved(self, read_bytes: int, digest: bytes) -> bool:
        """Whether what was read may be of no moment. What only grew is as it was up to there."""
        now, then = os.fstat(self._descriptor), self._found
        if read_bytes != then.st_size:
            return True
        if (now.st_mtime_ns, now.st_ctime_ns) == (then.st_mtime_ns, then.st_ctime_ns):
            return False
        return now.st_size <= then.st_size or self._digest(read_bytes) != digest

    def _digest(self, length: int) -> bytes:
        """Of what is there now, up to a length: a file that grew may have been changed before."""
        digest, offset = blake3(), 0
        while offset < length and (block := os.pread(self._descriptor, _BLOCK_BYTES, offset)):
            digest.update(block[: length - offset])
            offset += len(block)
        return digest.digest()

    def _next(self, offset: int) -> bytes:
        """The next bytes; of a hole zeros, without reading it."""
        wanted = min(_BLOCK_BYTES, self._found.st_size - offset)
        if self._found.st_blocks * 512 < self._found.st_size:
            try:
                data = os.lseek(self._descriptor, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = self._found.st_size  # nothing but a hole is left
            if data > offset:
                return bytes(min(wanted, data - offset))
        return os.pread(self._descriptor, wanted, offset)


_Coming = tuple[bytes, os.stat_result, Future[Reading | None] | None]


class Ahead:
    """Nodes with the small files among them read by threads, ahead of whoever takes them.

    Not those that are `unchanged`: they are opened only where they have to be read after all.
    """

    def __init__(
        self,
        walk: Iterator[tuple[bytes, os.stat_result]],
        unchanged: Callable[[bytes, os.stat_result], bool],
    ) -> None:
        self._walk, self._unchanged = walk, unchanged
        self._threads = ThreadPoolExecutor(_READERS, "read")
        self._coming: deque[_Coming] = deque()
        self._linked: set[tuple[int, int]] = set()
        self._now: Future[Reading | None] | None = None

    def nodes(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Each node; the content of a file is asked for before the next."""
        more = True
        while True:
            while more and len(self._coming) < _AHEAD:
                node = next(self._walk, None)
                more = node is not None
                if node is not None:
                    future = self._threads.submit(_begun, *node) if self._wanted(*node) else None
                    self._coming.append((*node, future))
            if not self._coming:
                return
            place, found, self._now = self._coming.popleft()
            yield place, found
            self._drop()

    def _wanted(self, place: bytes, found: os.stat_result) -> bool:
        """Whether the content of a node will be asked for: not of another name of a file."""
        if not stat.S_ISREG(found.st_mode):
            return False
        inode = (found.st_dev, found.st_ino)
        known = inode in self._linked
        if found.st_nlink > 1:
            self._linked.add(inode)
        return not known and not self._unchanged(place, found)

    def reading(self, place: bytes, found: os.stat_result) -> Reading | None:
        """The content of the node that was given last; None where it is gone."""
        try:
            if self._now is not None:
                return self._now.result()
            reading = Reading(place, found)
            if self._unchanged(place, found) or reading.begin():
                return reading
            return None
        except OSError as error:
            raise unreadable(place, error) from error

    def close(self) -> None:
        """Stop reading."""
        self._threads.shutdown(cancel_futures=True)
        self._drop()
        for _, _, future in self._coming:
            self._now = future
            self._drop()

    def _drop(self) -> None:
        """Close what was read ahead and not asked for."""
        with suppress(OSError):
            if self._now and not self._now.cancelled() and (reading := self._now.result()):
                reading.close()
        self._now = None


def _begun(place: bytes, found: os.stat_result) -> Reading | None:
    """A file that is opened, and read where it is small; None where it is gone by now."""
    reading = Reading(place, found)
    return reading if reading.begin() else None


def unreadable(place: bytes, error: OSError) -> SourceFailed:
    """The error for what may not be read, or cannot be."""
    return SourceFailed(
        f"{os.fsdecode(place)} cannot be read",
        detail=error.strerror or str(error),
        hint=UNREADABLE,
    )
