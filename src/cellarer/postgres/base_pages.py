"""Blocks of a cluster's files, with the pages in them looked at on their way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cellarer.errors import SourceFailed
from cellarer.ports import Pieces
from cellarer.postgres.base_files import segment_of
from cellarer.postgres.pages import Suspect, looked_at

BLOCK_BYTES = 1 << 20
_PAUSES_SECONDS = (0.0, 0.1, 0.4)

MOST_UNSETTLED = 4096
"""A file with more such pages is read as a whole the next time."""

PageReader = Callable[[int], bytes]
"""A page of a file, read once more: by its number in the file."""


@dataclass(frozen=True)
class Layout:
    """How a server lays out its files. `start_lsn` is where the backup starts.

    What was written since is written again by recovery, so a page that is newer may be torn.
    """

    page_bytes: int
    segment_bytes: int
    checksums: bool
    start_lsn: int


@dataclass
class PageCheck:
    """Looks at the pages of one backup and gathers those that are damaged: path, page of file.

    Of pages in `unsettled` the log may tell nothing, though they change: empty ones, for PostgreSQL
    writes a new index past its buffers after it has logged it; and those whose checksum is wrong
    and `excused` (path, page, LSN), as nothing but their own word says that recovery writes them.
    """

    layout: Layout
    damaged: list[tuple[str, int]] = field(default_factory=list)
    unsettled: dict[str, list[int]] = field(default_factory=dict)
    excused: list[tuple[str, int, int]] = field(default_factory=list)

    def checked(self, path: str, first: int, data: bytes, again: PageReader) -> bytes:
        """Pages of a relation's file, from the `first` on; one that was torn, as it is now.

        Raises whatever `again` does.
        """
        count = -(-len(data) // self.layout.page_bytes)
        return self.checked_pages(path, np.arange(first, first + count), data, again)

    def checked_pages(
        self, path: str, numbers: np.ndarray, data: bytes, again: PageReader
    ) -> bytes:
        """The same of pages of any numbers in the file, which follow one another in `data`."""
        layout = self.layout
        if not layout.checksums:
            return data
        before = segment_of(path) * (layout.segment_bytes // layout.page_bytes)
        patched: bytearray | None = None
        found, empty = looked_at(data, layout.page_bytes, before + numbers)
        self._unsettle(path, numbers[empty].tolist())
        for suspect in found:
            number = suspect.page - before
            if self._excused(suspect):
                self._unsettle(path, [number])
                self.excused.append((path, number, suspect.lsn))
                continue
            page = self._settled(suspect.page, number, again)
            if page is None:
                self.damaged.append((path, number))
            else:
                self._unsettle(path, [number])
                patched = patched or bytearray(data)
                at = suspect.at * layout.page_bytes
                patched[at : at + len(page)] = page
        return bytes(patched) if patched else data

    def settle(self, stop_lsn: int) -> None:
        """The backup ended there: no page is newer, whatever its own word is."""
        self.damaged += [(path, page) for path, page, lsn in self.excused if lsn > stop_lsn]

    def _unsettle(self, path: str, numbers: Sequence[int]) -> None:
        """Those beyond the most that is remembered of a file need not be known."""
        own = self.unsettled.setdefault(path, [])
        if len(own) <= MOST_UNSETTLED:
            own.extend(numbers)

    def _settled(self, page: int, number: int, again: PageReader) -> bytes | None:
        """The page once it is in order, None if it does not get so: it may be in the writing."""
        for pause in _PAUSES_SECONDS:
            time.sleep(pause)
            data = again(number)
            if len(data) < self.layout.page_bytes:
                return data  # truncated meanwhile
            found, _ = looked_at(data, self.layout.page_bytes, np.array([page]))
            if not found or self._excused(found[0]):
                return data
        return None

    def _excused(self, suspect: Suspect) -> bool:
        return not suspect.new and suspect.lsn >= self.layout.start_lsn


def file_blocks(
    place: Path, path: str, size_bytes: int, check: PageCheck | None
) -> Iterator[bytes]:
    """A file up to a size, which it may not reach any more. Raises `SourceFailed`."""
    try:
        with place.open("rb", buffering=0) as file:
            for offset in range(0, size_bytes, BLOCK_BYTES):
                block = read_block(file.fileno(), path, offset, size_bytes, check)
                if not block:
                    return
                yield block
    except FileNotFoundError:
        return  # a relation that was dropped meanwhile; recovery drops it as well
    except OSError as error:
        raise SourceFailed(f"{place} cannot be read", detail=error.strerror or "") from error


def read_block(
    descriptor: int, path: str, offset: int, size_bytes: int, check: PageCheck | None
) -> bytes:
    """One block of a file; empty behind its end. Raises `OSError`."""
    block = _read(descriptor, offset, min(BLOCK_BYTES, size_bytes - offset))
    if check is None or not block:
        return block
    page = check.layout.page_bytes
    again = _page_reader(descriptor, page)
    return check.checked(path, offset // page, block, again)


def read_pieces(
    descriptor: int,
    path: str,
    numbers: Sequence[int],
    piece_bytes: int,
    size_bytes: int,
    check: PageCheck,
) -> Pieces:
    """Pieces of a relation's file, each of some pages, by their numbers. Raises `OSError`.

    What was cut off meanwhile is zeros: such pages are new ones, which recovery cuts off as well.
    """
    parts = []
    for first, count in _runs(numbers):
        offset = first * piece_bytes
        wanted = min(count * piece_bytes, size_bytes - offset)
        parts.append(_read(descriptor, offset, wanted).ljust(wanted, b"\0"))
    page = check.layout.page_bytes
    each = np.arange(piece_bytes // page)
    pages = (np.array(numbers)[:, None] * len(each) + each).ravel()
    again = _page_reader(descriptor, page)
    return Pieces(numbers, check.checked_pages(path, pages, b"".join(parts), again))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as the first of each row of neighbours, and how many they are."""
    places = np.array(numbers)
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    counts = np.diff(starts, append=len(places))
    yield from zip(places[starts].tolist(), counts.tolist(), strict=True)


def _read(descriptor: int, offset: int, wanted: int) -> bytes:
    """So many bytes; fewer only where the file ends before."""
    block = os.pread(descriptor, wanted, offset)
    while (
        block
        and len(block) < wanted
        and (more := os.pread(descriptor, wanted - len(block), offset + len(block)))
    ):
        block += more
    return block


def _page_reader(descriptor: int, page_bytes: int) -> PageReader:
    return lambda number: os.pread(descriptor, page_bytes, number * page_bytes)
