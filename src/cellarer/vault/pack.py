"""Packs: the objects in which records travel.

    magic | records, shuffled | sealed table of contents | trailer

The table of contents is encrypted and padded, the order of records is random and the whole length
is rounded up, so that a pack tells a bystander nothing of what is in it (the attacks on
content-defined chunking of 2025, eprint 2025/532 and 2025/558, read sizes and order). The name of a
pack is the SHA-256 of its bytes: anyone can audit it without a key.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from cellarer.errors import DamagedData
from cellarer.vault.crypto import seal, unseal
from cellarer.vault.format import ID_BYTES, count_in, frame, padded_length, sessions_in, unframe
from cellarer.vault.record import SealedRecord

PACK_BYTES = 16 << 20
"""A pack is closed at this size: large enough for object stores, small enough that several fit in
memory at once."""

PACK_RECORDS = 1 << 16
"""And with so many records: what repacking gathers may come from as many sessions, which have
numbers of 16 bits in a table of contents."""

MAGIC = b"CLRPACK1"
TRAILER = struct.Struct(">QI4s")
"""Offset and length of the sealed table of contents, and an end mark."""
END_MARK = b"KCAP"

RECORD_FIELDS = np.dtype(
    [("id", "V16"), ("offset", ">u4"), ("length", ">u4"), ("chunks", ">u4"), ("session", ">u2")]
)
"""One record in a table of contents; `session` counts in the header's list of sessions."""

_TOC_PURPOSE = "cellarer/1/pack-toc"


@dataclass(frozen=True)
class TableOfContents:
    """What a pack holds: records, and for each the ids and lengths of its chunks, in order."""

    sessions: tuple[str, ...]
    records: np.ndarray
    chunk_ids: bytes
    chunk_lengths: np.ndarray

    def of(self, sessions: AbstractSet[str]) -> TableOfContents:
        """The same with the records of these sessions alone."""
        if sessions >= {*self.sessions}:
            return self
        own = np.array([session in sessions for session in self.sessions])
        kept = own[self.records["session"]]
        chunks = np.repeat(kept, self.records["chunks"].astype(np.int64))
        ids = np.frombuffer(self.chunk_ids, f"V{ID_BYTES}")[chunks].tobytes()
        lengths = self.chunk_lengths[chunks]
        return TableOfContents(self.sessions, self.records[kept], ids, lengths)

    def to_bytes(self) -> bytes:
        """The plaintext form."""
        header: dict[str, object] = {
            "chunks": len(self.chunk_lengths),
            "records": len(self.records),
            "sessions": list(self.sessions),
        }
        lengths = self.chunk_lengths.astype(">u4").tobytes()
        return frame(header, self.records.tobytes(), self.chunk_ids, lengths)

    @classmethod
    def from_bytes(cls, data: bytes) -> TableOfContents:
        """Parse the plaintext form; bytes behind its end are padding."""
        header, arrays = unframe(data, "a table of contents")
        try:
            ids_at = count_in(header, "records") * RECORD_FIELDS.itemsize
            lengths_at = ids_at + count_in(header, "chunks") * ID_BYTES
            end = lengths_at + count_in(header, "chunks") * 4
            if end > len(arrays):
                raise ValueError("it is shorter than its header says")
            toc = cls(
                sessions=tuple(sessions_in(header["sessions"])),
                records=np.frombuffer(arrays[:ids_at], RECORD_FIELDS),
                chunk_ids=bytes(arrays[ids_at:lengths_at]),
                chunk_lengths=np.frombuffer(arrays[lengths_at:end], ">u4"),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedData("a table of contents is broken", detail=str(error)) from error
        counted = int(toc.records["chunks"].astype(np.int64).sum())
        if counted != len(toc.chunk_lengths) or len(toc.chunk_ids) != counted * ID_BYTES:
            raise DamagedData("a table of contents contradicts itself")
        if len(toc.records) and int(toc.records["session"].max()) >= len(toc.sessions):
            raise DamagedData("a table of contents names a session that is not in it")
        return toc


@dataclass(frozen=True)
class SealedPack:
    """A pack ready to be stored; `order` has the numbers of the given records as they lie in it."""

    sha256: str
    data: bytes
    toc: TableOfContents
    order: Sequence[int]


def build_pack(records: Sequence[SealedRecord], index_key: bytes) -> SealedPack:
    """Shuffle, lay out, add the sealed table of contents, pad and name."""
    numbers = list(range(len(records)))
    secrets.SystemRandom().shuffle(numbers)
    order = [records[number] for number in numbers]
    toc = _contents(order)
    plain = toc.to_bytes()
    body_length = len(MAGIC) + sum(len(record.sealed) for record in order)
    bare = body_length + len(seal(index_key, plain, _TOC_PURPOSE)) + TRAILER.size
    sealed_toc = seal(index_key, plain, _TOC_PURPOSE, padding=padded_length(bare) - bare)
    trailer = TRAILER.pack(body_length, len(sealed_toc), END_MARK)
    data = b"".join((MAGIC, *(record.sealed for record in order), sealed_toc, trailer))
    return SealedPack(hashlib.sha256(data).hexdigest(), data, toc, numbers)


def record_bytes(trailer: bytes) -> int:
    """How many bytes of records a pack holds, by its last `TRAILER.size` bytes."""
    try:
        offset, _, mark = TRAILER.unpack(trailer)
    except struct.error as error:
        raise DamagedData("a pack is too short") from error
    if mark != END_MARK:
        raise DamagedData("this object is no pack")
    return int(offset) - len(MAGIC)


def read_toc(data: bytes, index_key: bytes) -> TableOfContents:
    """The table of contents of a whole pack. Raises `DamagedData`."""
    try:
        offset, length, mark = TRAILER.unpack(data[-TRAILER.size :])
    except struct.error as error:
        raise DamagedData("a pack is too short") from error
    if not data.startswith(MAGIC) or mark != END_MARK:
        raise DamagedData("this object is no pack")
    sealed = data[offset : offset + length]
    return TableOfContents.from_bytes(unseal(index_key, sealed, _TOC_PURPOSE))


def _contents(order: Sequence[SealedRecord]) -> TableOfContents:
    sessions = tuple(sorted({record.session for record in order}))
    numbers = {session: number for number, session in enumerate(sessions)}
    lengths = [len(record.sealed) for record in order]
    offsets = itertools.accumulate(lengths[:-1], initial=len(MAGIC))
    rows = [
        (r.id, offset, len(r.sealed), len(r.chunk_lengths), numbers[r.session])
        for r, offset in zip(order, offsets, strict=True)
    ]
    return TableOfContents(
        sessions=sessions,
        records=np.array(rows, RECORD_FIELDS),
        chunk_ids=b"".join(record.chunk_ids for record in order),
        chunk_lengths=np.concatenate([record.chunk_lengths for record in order]),
    )
