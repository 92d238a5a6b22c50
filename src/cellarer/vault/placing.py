"""Chunks of streams put where they can be read: found among what is stored, or in new records."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import Executor, Future

import numpy as np
from blake3 import blake3

from cellarer.vault.chunker import Batch
from cellarer.vault.format import ID_BYTES
from cellarer.vault.index import ABSENT, ChunkIds
from cellarer.vault.known import Known
from cellarer.vault.packer import Packer
from cellarer.vault.record import RECORD_BYTES, OpenRecord, RecordSealer, SealedRecord

RECORDS_IN_FLIGHT = 6

_ID = np.dtype(f"V{ID_BYTES}")

_COPIED_SHARE = 4
"""A batch of which less than a quarter is new is copied from, so that it need not stay."""


class Placer:
    """Fills the records of one session. They are sealed in the threads of `sealing`."""

    def __init__(
        self, known: Known, id_key: bytes, sealer: RecordSealer, sealing: Executor
    ) -> None:
        self._index, self._table = known.index, known.table
        self._id_key, self._sealer, self._pool = id_key, sealer, sealing
        self._sealing: deque[tuple[int, Future[SealedRecord]]] = deque()
        self._open = OpenRecord(self._table.reserve())
        self.added_bytes = 0

    def place(self, batch: Batch, packer: Packer) -> tuple[bytes, np.ndarray, np.ndarray]:
        """The ids of a batch's chunks, and where each lies: in which record, at what position.

        Those that are not stored yet are put into records.
        """
        named = self._named(batch)
        ids = ChunkIds(named)
        records, positions = self._index.find(ids)
        if (records == ABSENT).any():
            first = ids.first_occurrences()
            unknown = (records == ABSENT) & (first == np.arange(len(first)))
            new = np.flatnonzero(unknown)
            new_ids = np.frombuffer(named, _ID)[new]
            records[new], positions[new] = self._put_into_records(batch, new_ids, new, packer)
            self._index.add(ids, records, positions, unknown)
            records, positions = records[first], positions[first]
        return named, records, positions

    def _named(self, batch: Batch) -> bytes:
        """The ids of a batch's chunks, one after another."""
        buffer, hasher, named, start = batch.buffer, blake3(key=self._id_key), [], 0
        for length in batch.lengths:
            hasher.update(buffer[start : (start := start + length)])
            named.append(hasher.digest(ID_BYTES))
            hasher.reset()
        return b"".join(named)

    def _put_into_records(
        self, batch: Batch, ids: np.ndarray, new: np.ndarray, packer: Packer
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fill records with the new chunks of a batch; the record and the position of each."""
        lengths = np.array(batch.lengths)
        starts = np.cumsum(lengths) - lengths
        filled = np.cumsum(lengths[new]).tolist()
        self.added_bytes += filled[-1]
        copied = filled[-1] * _COPIED_SHARE < len(batch.buffer)
        records, positions = np.empty(len(new), np.int64), np.empty(len(new), np.int64)
        at = 0
        while at < len(new):
            before = filled[at - 1] if at else 0
            end = bisect_right(filled, before + RECORD_BYTES - self._open.size_bytes)
            if end <= at and self._open.size_bytes:
                self._flush(packer)
                continue
            end = max(end, at + 1)
            part = new[at:end]
            records[at:end] = self._open.number
            positions[at:end] = np.arange(end - at) + self._open.chunks
            self._open.take(batch.buffer, starts[part], lengths[part], copied=copied)
            self._open.ids.append(ids[at:end].tobytes())
            at = end
        return records, positions

    def _flush(self, packer: Packer) -> None:
        record = self._open
        if record.ids:
            lengths = np.concatenate(record.lengths)
            sealing = self._pool.submit(
                self._sealer.seal, b"".join(record.ids), lengths, record.pieces
            )
            self._sealing.append((record.number, sealing))
            self._open = OpenRecord(self._table.reserve())
        self._drain(packer, RECORDS_IN_FLIGHT)

    def finish(self, packer: Packer) -> None:
        """Everything that was placed is in closed packs."""
        self._flush(packer)
        self._drain(packer, 0)
        packer.close()

    def _drain(self, packer: Packer, limit: int) -> None:
        while len(self._sealing) > limit:
            number, sealing = self._sealing.popleft()
            packer.add(number, sealing.result())
