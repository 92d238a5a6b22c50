"""Cutting a stream into content-defined chunks.

Deduplication wants small chunks: where 1 % of the rows of a table change, spread evenly, nearly
every chunk of 128 KiB is new but only every seventh of 5 KiB. Compression wants large inputs, so
chunks are compressed together in records (`record.py`). Cuts come from FastCDC 2020; they steer
what is stored once, never what can be read. A file of a database changes in pages, and is cut at
pages.

Where a stream grows at its end, as the rows of a table do, what changes next is mostly what changed
last, so its end is cut eight times as fine. Doing that everywhere would cost more in ids than it
saves (figures in `benchmarks/README.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellarer.errors import ToolMissing

if TYPE_CHECKING:
    from pyfastcdc.cy import FastCDC

SMALLEST_BITS = 11
LARGEST_BITS = 19
"""Nominal chunk sizes from 2 KiB to 512 KiB; the mean is 1.3 times that."""

SMALL_STREAM_BYTES = 64 << 20
"""Up to here the smallest chunks cost a fraction of a second, and halve what changes cost."""

CHUNKS_PER_STREAM = 1 << 19
"""Above this many chunks a stream's chunks double in size: a fine grain for the first gigabytes."""

CHUNKS_PER_SNAPSHOT = 1 << 22
FEWEST_PER_STREAM = 1 << 14
"""A stream gets no more than a quarter of what the streams before it left of a snapshot's chunks,
so that the index of a terabyte in many tables stays at some 100 MB; but this many in any case."""

FINER_BITS = 3
FINEST_BITS = 9
"""The end of a stream that grows there is cut into chunks of an eighth of the size, but not of less
than 512 bytes."""

PAGED = 0x80
"""Added to the bits of a stream that is cut at every page, whatever it holds."""

NOWHERE = (1 << 64) - 1
"""The beginning of the finer end of a stream that has none."""

_TAIL_SHARE = 8
_SMALLEST_TAIL = 1 << 15
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Cuts:
    """How one stream is cut: log2 of the nominal chunk size, and where the finer end begins.

    Where it is cut at pages, the bits are log2 of their size, and `PAGED`.
    """

    bits: int
    finer_from: int = NOWHERE

    @property
    def page_bytes(self) -> int:
        """The size of the pages at which a stream is cut, 0 where it is cut by its content."""
        return 1 << (self.bits ^ PAGED) if self.bits & PAGED else 0


@dataclass(frozen=True)
class Batch:
    """Chunks that lie one after another in `buffer`, from its start: their lengths."""

    buffer: memoryview
    lengths: list[int]


def choose_cuts(
    expected_bytes: int,
    grows_at_end: bool,
    previous: tuple[Cuts, int] | None,
    chunks_before: int = 0,
) -> Cuts:
    """How to cut a stream, given the cuts of its last snapshot and its length then (0: unknown).

    `chunks_before` is the number of chunks in the streams before it. A stream keeps its cuts until
    they are far off, by more than one doubling of the size of chunks or of the length of the finer
    end: other cuts find nothing of what is stored.
    """
    left = (CHUNKS_PER_SNAPSHOT - chunks_before) // 4
    most = min(max(left, FEWEST_PER_STREAM), CHUNKS_PER_STREAM)
    if previous is None:
        return Cuts(_bits(expected_bytes, most), _finer_from(expected_bytes, grows_at_end))
    cuts, length = previous[0], previous[1] or expected_bytes
    bits = _bits(length, most)
    if abs(bits - cuts.bits) <= 1:
        bits = cuts.bits
    finer_from = _finer_from(length, grows_at_end)
    if finer_from != NOWHERE and length // 16 <= length - cuts.finer_from <= length // 4:
        finer_from = cuts.finer_from
    return Cuts(bits, finer_from)


def page_cuts(page_bytes: int, previous: Cuts | None) -> Cuts:
    """How to cut a stream that changes in pages, given the cuts of its last snapshot.

    It keeps them as long as they are not off by more than one doubling of the size of pages.
    """
    bits = PAGED | (page_bytes.bit_length() - 1)
    if previous is not None and previous.bits & PAGED and abs(previous.bits - bits) <= 1:
        return previous
    return Cuts(bits)


def _bits(length_bytes: int, most_chunks: int) -> int:
    if length_bytes <= min(SMALL_STREAM_BYTES, most_chunks << SMALLEST_BITS):
        return SMALLEST_BITS
    bits = SMALLEST_BITS + 1
    while bits < LARGEST_BITS and length_bytes >> bits > most_chunks:
        bits += 1
    return bits


def _finer_from(length_bytes: int, grows_at_end: bool) -> int:
    finer = length_bytes // _TAIL_SHARE
    return length_bytes - finer if grows_at_end and finer >= _SMALLEST_TAIL else NOWHERE


def _finer_bits(bits: int) -> int:
    return max(bits - FINER_BITS, FINEST_BITS)


class Chunker:
    """Cuts one stream. Feed blocks, take batches of chunks, and `finish` for the rest."""

    def __init__(self, cuts: Cuts) -> None:
        self._lengths = _cutter(cuts.bits)
        self._page = cuts.page_bytes
        self._cuts = cuts
        self._left = cuts.finer_from
        self._tail = b""
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def feed(self, block: bytes) -> Iterator[Batch]:
        """Take a block; yield the chunks whose ends are certain."""
        self._waiting.append(block)
        self._waiting_bytes += len(block)
        if self._waiting_bytes < _BATCH_BYTES:
            return
        yield from self._cut_up_to(self._joined(), last=False)

    def finish(self) -> Iterator[Batch]:
        """The chunks of what is left."""
        yield from self._cut_up_to(self._joined(), last=True)

    def _joined(self) -> memoryview:
        parts = [part for part in (self._tail, *self._waiting) if part]
        # Of bytes no copy is made; who gives a buffer may fill it again.
        buffer = memoryview(bytes(parts[0]) if len(parts) == 1 else b"".join(parts))
        self._tail, self._waiting, self._waiting_bytes = b"", [], 0
        return buffer

    def _cut_up_to(self, buffer: memoryview, *, last: bool) -> Iterator[Batch]:
        if len(buffer) >= (border := self._left):
            # The finer end begins within this buffer: a cut is made there whatever the content.
            yield from self._cut(buffer[:border], last=True)
            buffer = buffer[border:]
            self._lengths, self._left = _cutter(_finer_bits(self._cuts.bits)), NOWHERE
        yield from self._cut(buffer, last=last)

    def _cut(self, buffer: memoryview, *, last: bool) -> Iterator[Batch]:
        lengths = self._lengths(buffer)
        if lengths and not last and lengths[-1] != self._page:
            # The last chunk ends where the buffer does, so its true end is still to come; but a
            # whole page ends there.
            self._tail = bytes(buffer[len(buffer) - lengths.pop() :])
        if lengths:
            yield Batch(buffer, lengths)
            if self._left != NOWHERE:
                self._left -= sum(lengths)


def _cutter(bits: int) -> Callable[[memoryview], list[int]]:
    """What tells the lengths of the chunks of a buffer."""
    if bits & PAGED:
        return _pages(1 << (bits ^ PAGED))
    cutter = _fast_cdc(1 << bits)
    return lambda buffer: [chunk.length for chunk in cutter.cut_buf(buffer)]


def _pages(size: int) -> Callable[[memoryview], list[int]]:
    def lengths(buffer: memoryview) -> list[int]:
        whole, rest = divmod(len(buffer), size)
        return [size] * whole + [rest] * bool(rest)

    return lengths


def _fast_cdc(size: int) -> FastCDC:
    try:
        from pyfastcdc.cy import FastCDC
    except ImportError as error:
        raise ToolMissing(
            "the compiled chunker is missing",
            detail="pyfastcdc has no wheel for this Python; its pure form is 200 times slower",
            hint="use CPython 3.11 to 3.15 on Linux or macOS, or install a C compiler",
        ) from error
    return FastCDC(size, min_size=size // 2, max_size=size * 4, seed=0)
