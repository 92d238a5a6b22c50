"""Packs of very many small records, as repacking gathers them."""

from __future__ import annotations

import numpy as np

from cellarer.vault import format as layout
from cellarer.vault.index import RecordTable
from cellarer.vault.pack import PACK_RECORDS, read_toc
from cellarer.vault.packer import Packer
from cellarer.vault.record import SealedRecord
from cellarer.vault.writing import Writing
from stand_ins import found


def test_a_pack_has_records_of_no_more_sessions_than_it_can_number() -> None:
    scene = found()
    replicas = scene.replicas()
    writing, table = Writing(replicas, replicas.replicas), RecordTable()
    key = scene.write_key.index
    packer = Packer(layout.META_PREFIX, "20260301T120000Z-00c0ffee", key, table, writing)
    lengths = np.zeros(0, ">u4")
    for number in range(PACK_RECORDS + 10):
        session = f"20260301T120000Z-{number:08x}"
        record = SealedRecord(number.to_bytes(16, "big"), session, b"sealed", b"", lengths)
        packer.add(table.reserve(), record)
    packer.close()
    writing.settle()
    writing.close()
    packs = [k for k in scene.stores["a"].objects if k.startswith("meta/")]
    tocs = [read_toc(scene.stores["a"].objects[pack], key) for pack in packs]
    assert sorted(len(toc.records) for toc in tocs) == [10, PACK_RECORDS]
    for number in (0, PACK_RECORDS - 1, PACK_RECORDS + 9):
        place = table[number]
        assert (place.id, place.session) == (
            number.to_bytes(16, "big"),
            f"20260301T120000Z-{number:08x}",
        )
        data = scene.stores["a"].objects[place.pack]
        assert data[place.offset : place.offset + place.length] == b"sealed"
