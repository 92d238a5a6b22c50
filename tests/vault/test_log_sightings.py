"""What was known of a server when its WAL was stored comes out again, on the way of a history."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import History
from cellarer.errors import DamagedData
from cellarer.vault import format as layout
from cellarer.vault.log_object import parse_header, sighting_in
from cellarer.vault.log_sightings import LOOKED_AT, Sightings
from key_changes import NOW
from stand_ins import found
from wal_files import SEGMENT_BYTES, SYSTEM, reader, segment, writer


def seen(number: float, timeline: int = 1) -> Sighting:
    """As of when the WAL had come so many segments far."""
    lsn = int(number * SEGMENT_BYTES)
    return Sighting(NOW + timedelta(seconds=number), timeline, lsn, 7 * 10**15 + int(10 * number))


def test_the_newest_and_the_newest_that_is_held(tmp_path: Path) -> None:
    made = found(replicas=2)
    putting = writer(made, tmp_path)
    putting.put(*segment(1), seen(2))
    putting.put(*segment(2))  # handed over, by who knows nothing of the server
    putting.put(*segment(3), seen(4.5))
    name, data = segment(4)
    putting.put_piece(name, 0, data[:8192], seen(4.25))
    putting.put_piece(name, 8192, data[8192:16384], seen(9))  # the store had been away
    sightings = Sightings(reader(made), History(1), SEGMENT_BYTES)
    assert sightings.newest() == seen(9)
    assert sightings.before(SEGMENT_BYTES * 4 + SEGMENT_BYTES // 4) == seen(4.25)
    assert sightings.before(SEGMENT_BYTES * 4) == seen(2)
    assert sightings.before(SEGMENT_BYTES) is None
    # The same segment again changes nothing, and its pieces are older than the whole of it.
    putting.put(name, data, seen(10))
    assert Sightings(reader(made), History(1), SEGMENT_BYTES).newest() == seen(10)
    putting.put(name, data, seen(11))
    assert Sightings(reader(made), History(1), SEGMENT_BYTES).newest() == seen(10)


def test_what_was_left_by_a_history_is_not_on_its_way(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    for number in (1, 2, 3):
        putting.put(*segment(number), seen(number + 1))
    fork = History(2, ((1, 2 * SEGMENT_BYTES + 100),))
    # That of the second came with log from before the fork, and tells of what the fork dropped.
    assert Sightings(reader(made), fork, SEGMENT_BYTES).before(9 * SEGMENT_BYTES) == seen(2)
    putting.put(*segment(2, timeline=2), seen(2.5, timeline=2))
    assert Sightings(reader(made), fork, SEGMENT_BYTES).newest() in (seen(3), seen(2.5, 2))
    assert Sightings(reader(made), fork, SEGMENT_BYTES).before(3 * SEGMENT_BYTES) != seen(4)
    assert Sightings(reader(made), History(1), SEGMENT_BYTES).newest() == seen(4)


def test_log_without_any_is_not_read_to_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellarer.vault.log_sightings.LOOKED_AT", 2)
    assert LOOKED_AT > 2
    made = found()
    putting = writer(made, tmp_path)
    putting.put(*segment(1), seen(2))
    for number in (2, 3):
        putting.put(*segment(number))
    assert Sightings(reader(made), History(1), SEGMENT_BYTES).newest() is None


def test_nobody_without_a_key_reads_one_nor_moves_it(tmp_path: Path) -> None:
    made = found()
    name, data = segment(1)
    writer(made, tmp_path).put(name, data, seen(2))
    key = layout.wal_key(SYSTEM, name)
    whole = made.stores["a"].objects[key]
    assert str(seen(2).xid).encode() not in whole
    header, vault = parse_header(key, whole), made.open()
    assert sighting_in(vault.index_key, header) == seen(2)
    with pytest.raises(DamagedData):
        sighting_in(bytes(32), header)
    with pytest.raises(DamagedData):
        sighting_in(vault.index_key, replace(header, key=key[:-1] + "2"))
