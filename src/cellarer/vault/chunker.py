"""Cutting a stream into content-defined chunks.

Deduplication wants small chunks: where 1 % of the rows of a table change, spread evenly, nearly
every chunk of 128 KiB is new but only every sixth of 2.7 KiB. Compression wants large inputs, so
chunks are compressed together in records (`pack.py`). Cuts come from FastCDC 2020; they steer what
is stored once, never what can be read.
"""

from __future__ import annotations

from collections.abc import Iterator

from cellarer.errors import ToolMissing

SMALLEST_BITS = 11
LARGEST_BITS = 17
"""Nominal chunk sizes from 2 KiB to 128 KiB; the mean is 1.3 times that. At 2 KiB an update of
every hundredth row of 260 bytes makes 16 % of a table new, at 4 KiB 27 %."""

CHUNKS_PER_STREAM = 1 << 19
"""Above this many chunks a stream's chunks double in size, which keeps an index entry per
128 KiB for a terabyte and the finest grain for the first gigabyte."""

_BUFFER_BYTES = 1 << 20


def chunk_bits(length_bytes: int, previous_bits: int | None) -> int:
    """The nominal size (log2 of bytes) for a stream of about this length.

    A stream keeps the size of its last snapshot until it is off by more than one doubling: another
    size finds nothing of what is stored.
    """
    bits = SMALLEST_BITS
    while bits < LARGEST_BITS and length_bytes >> bits > CHUNKS_PER_STREAM:
        bits += 1
    if previous_bits is not None and abs(bits - previous_bits) <= 1:
        return previous_bits
    return bits


class Chunker:
    """Cuts one stream. Feed blocks, take chunks, and `finish` for the rest."""

    def __init__(self, bits: int) -> None:
        try:
            from pyfastcdc.cy import FastCDC
        except ImportError as error:
            raise ToolMissing(
                "the compiled chunker is missing",
                detail="pyfastcdc has no wheel for this Python; its pure form is 200 times slower",
                hint="use CPython 3.11 to 3.15 on Linux or macOS, or install a C compiler",
            ) from error
        size = 1 << bits
        self._cutter = FastCDC(size, min_size=size // 2, max_size=size * 4, seed=0)
        self._tail = b""
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def feed(self, block: bytes) -> Iterator[memoryview]:
        """Take a block; yield the chunks whose ends are certain."""
        self._waiting.append(block)
        self._waiting_bytes += len(block)
        if self._waiting_bytes < _BUFFER_BYTES:
            return
        buffer = b"".join((self._tail, *self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        last = None
        for chunk in self._cutter.cut_buf(buffer):
            if last is not None:
                yield last
            last = chunk.data
        # The last chunk ends where the buffer does, so its true end is still to come.
        self._tail = b"" if last is None else bytes(last)

    def finish(self) -> Iterator[memoryview]:
        """The chunks of what is left."""
        buffer = b"".join((self._tail, *self._waiting))
        self._tail, self._waiting, self._waiting_bytes = b"", [], 0
        for chunk in self._cutter.cut_buf(buffer):
            yield chunk.data
