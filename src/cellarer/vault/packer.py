"""Gathers sealed records into packs, stores them, and keeps the index of what it stored."""

from __future__ import annotations

import numpy as np

from cellarer.vault.format import index_key, object_key
from cellarer.vault.index import (
    SEGMENT_CHUNKS,
    RecordTable,
    chunk_count,
    seal_segment,
)
from cellarer.vault.pack import PACK_BYTES, PACK_RECORDS, TableOfContents, build_pack
from cellarer.vault.record import SealedRecord
from cellarer.vault.writing import Writing


class Packer:
    """Packs of one class (data or meta) of one session."""

    def __init__(
        self,
        prefix: str,
        session: str,
        key: bytes,
        table: RecordTable,
        writing: Writing,
        first_segment: int = 0,
    ) -> None:
        self._prefix, self._session, self._key = prefix, session, key
        self._table, self._writing = table, writing
        self._open: list[tuple[int, SealedRecord]] = []
        self._open_bytes = 0
        self._unindexed: list[tuple[str, TableOfContents]] = []
        self._unindexed_chunks = 0
        self._segment = first_segment
        self.objects = 0
        self.stored_bytes = 0

    def add(self, number: int, record: SealedRecord) -> None:
        """Take a record; close and store the pack when it is full."""
        self._open.append((number, record))
        self._open_bytes += len(record.sealed)
        if self._open_bytes >= PACK_BYTES or len(self._open) >= PACK_RECORDS:
            self.close()

    def close(self) -> None:
        """Store what is left as a pack."""
        if not self._open:
            return
        pack = build_pack([record for _, record in self._open], self._key)
        key = object_key(self._prefix, pack.sha256)
        order = np.array([self._open[number][0] for number in pack.order])
        self._table.settle(order, key, pack.toc)
        self._open, self._open_bytes = [], 0
        self._writing.put(key, pack.data)
        self._count(len(pack.data))
        self._unindexed.append((key, pack.toc))
        self._unindexed_chunks += chunk_count(pack.toc)
        if self._unindexed_chunks >= SEGMENT_CHUNKS:
            self._writing.barrier()
            self.index()

    def index(self) -> None:
        """Store a segment of the packs that have none yet; a barrier stands between them."""
        if not self._unindexed:
            return
        data = seal_segment(self._key, self._unindexed)
        self._writing.put(index_key(self._session, self._segment), data)
        self._count(len(data))
        self._segment += 1
        self._unindexed, self._unindexed_chunks = [], 0

    def _count(self, length: int) -> None:
        self.objects += 1
        self.stored_bytes += length
