"""Records: chunks compressed and sealed together.

A record's plaintext is `count, lengths, chunks`. Hundreds of small chunks share one compression
window and one seal, so the grain of deduplication costs neither ratio nor space, and no chunk's
size shows outside.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from cellarer.errors import DamagedData
from cellarer.vault.crypto import ENCODING_RAW, ENCODING_ZSTD, RecordCipher, decompress, keyed_id

RECORD_BYTES = 512 << 10
"""Plaintext gathered into one record. Larger gains 3 % of ratio, smaller reads less per chunk."""

COMPRESSION_LEVEL = 1
"""zstd level; the figures behind it are in `benchmarks/README.md`."""

LARGEST_PLAINTEXT = 64 << 20
"""A reader refuses records that claim more: no decompression bomb."""

Buffer = bytes | memoryview

_COUNT = struct.Struct(">I")
_PROBE_BYTES = 64 << 10
_POOR_RATIO = 0.95


@dataclass(frozen=True)
class SealedRecord:
    """A record ready for a pack, with the chunks it holds."""

    id: bytes
    session: str
    sealed: bytes
    chunk_ids: bytes
    """The ids, one after another."""
    chunk_lengths: np.ndarray


class OpenRecord:
    """The record that new chunks go into until it is full."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.chunks = 0
        self.size_bytes = 0
        self.ids: list[bytes] = []
        self.lengths: list[np.ndarray] = []
        self.pieces: list[Buffer] = []

    def take(
        self, buffer: memoryview, starts: np.ndarray, lengths: np.ndarray, *, copied: bool
    ) -> None:
        """Add chunks of a buffer: neighbours as one piece, and that without a copy if wanted."""
        ends = starts + lengths
        breaks = np.flatnonzero(starts[1:] != ends[:-1])
        firsts = starts[np.concatenate(([0], breaks + 1))].tolist()
        lasts = ends[np.concatenate((breaks, [len(ends) - 1]))].tolist()
        for first, last in zip(firsts, lasts, strict=True):
            piece = buffer[first:last]
            self.pieces.append(bytes(piece) if copied else piece)
        self.chunks += len(lengths)
        self.size_bytes += int(lengths.sum())
        self.lengths.append(lengths)


class RecordSealer:
    """Makes the records of one session. Safe to call from several threads."""

    def __init__(self, cipher: RecordCipher, session: str, id_key: bytes) -> None:
        self._cipher = cipher
        self._session = session
        self._id_key = id_key
        self._counter = itertools.count()
        self._local = threading.local()

    def seal(
        self, chunk_ids: bytes, chunk_lengths: np.ndarray, content: Iterable[Buffer]
    ) -> SealedRecord:
        """Compress, where it pays, and encrypt.

        `content` is all chunks one after another, in pieces of any length.
        """
        lengths = chunk_lengths.astype(">u4")
        plain = b"".join((_COUNT.pack(len(lengths)), lengths.tobytes(), *content))
        encoding, packed = self._compress(plain)
        record_id = keyed_id(self._id_key, chunk_ids)  # known by the chunks in it
        # itertools.count is atomic under the interpreter lock: no counter comes twice.
        sealed = self._cipher.seal(record_id, encoding, packed, 0, next(self._counter))
        return SealedRecord(record_id, self._session, sealed, chunk_ids, lengths)

    def _compress(self, plain: bytes) -> tuple[int, bytes]:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
            self._local.compressor = compressor
        if len(plain) > 2 * _PROBE_BYTES:
            middle = len(plain) // 2
            probe = plain[middle : middle + _PROBE_BYTES]
            if len(compressor.compress(probe)) > _POOR_RATIO * len(probe):
                return ENCODING_RAW, plain
        packed = compressor.compress(plain)
        return (ENCODING_ZSTD, packed) if len(packed) < len(plain) else (ENCODING_RAW, plain)


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of an opened record: one after another in `content`, ending at `ends`.

    No object for each: a record of a malicious writer may claim millions of them.
    """

    content: memoryview
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[memoryview]:
        return (self.joined(number, 1) for number in range(len(self)))

    def joined(self, first: int, count: int) -> memoryview:
        """So many chunks from the first on, as one piece. Raises `DamagedData` past the end."""
        if first + count > len(self.ends):
            raise DamagedData("a manifest points past the end of a record")
        if not count:
            return self.content[:0]
        start = int(self.ends[first - 1]) if first else 0
        return self.content[start : int(self.ends[first + count - 1])]


def open_record(cipher: RecordCipher, record_id: bytes, sealed: bytes | memoryview) -> Chunks:
    """The chunks of a record, in their order. Raises `DamagedData`."""
    encoding, packed = cipher.open(record_id, sealed)
    if encoding == ENCODING_ZSTD:
        packed = decompress(packed, LARGEST_PLAINTEXT, "a record")
    try:
        (count,) = _COUNT.unpack_from(packed)
        lengths = np.frombuffer(packed, ">u4", count, _COUNT.size)
    except (struct.error, ValueError) as error:
        raise DamagedData("a record's chunk table is broken") from error
    content = memoryview(packed)[_COUNT.size + lengths.nbytes :]
    if int(lengths.sum(dtype=np.int64)) != len(content):
        raise DamagedData("a record's chunk table does not match its content")
    ends = np.cumsum(lengths, dtype=np.uint32)
    return Chunks(content, ends)
