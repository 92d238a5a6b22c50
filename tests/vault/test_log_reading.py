"""WAL read out of the vault: what was put comes out, and nothing is lost silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cellarer.domain.wal import Segment
from cellarer.errors import (
    DamagedData,
    KeyUnusable,
    VaultUnreachable,
    WalAbsent,
)
from cellarer.flows.keys import rotate_write_key
from cellarer.vault import format as layout
from cellarer.vault.heads import SeenHeads
from cellarer.vault.keys import WriteKey
from cellarer.vault.log import LogReader
from cellarer.vault.log_state import StateFile
from cellarer.vault.vault import Vault
from key_changes import NOW
from stand_ins import flip, found
from wal_files import (
    SEGMENT_BYTES,
    SYSTEM,
    away,
    history,
    keys_of,
    reader,
    segment,
    sessions_of,
    writer,
)


def test_a_flipped_bit_anywhere_is_never_returned(tmp_path: Path) -> None:
    made = found()
    name, data = segment(1)
    writer(made, tmp_path).put(name, data)
    key = layout.wal_key(SYSTEM, name)
    whole = made.stores["a"].objects[key]
    start = len(whole) - len(whole) % 8
    places = [*range(0, 1200 * 8, 37), *range(1200 * 8, start * 8, start // 20 * 8 + 1)]
    passed = 0
    for bit in [*places, len(whole) * 8 - 1]:
        made.stores["a"].objects[key] = flip(bit)(whole)
        try:
            assert reader(made).read(name) == data
        except DamagedData:
            continue
        # A digit of the signature in upper case is the same digit.
        assert whole[bit // 8 : bit // 8 + 1].isalpha()
        passed += 1
    assert passed < 8
    for length in (0, 5, 12, 300, len(whole) // 2, len(whole) - 1):
        made.stores["a"].objects[key] = whole[:length]
        with pytest.raises(DamagedData):
            reader(made).read(name)


def test_what_is_damaged_on_one_replica_is_read_from_another(tmp_path: Path) -> None:
    made = found(replicas=2)
    name, data = segment(1)
    writer(made, tmp_path).put(name, data)
    made.stores["a"].damage(layout.wal_key(SYSTEM, name), lambda d: d[:-1] + b"x")
    assert reader(made).read(name) == data


def test_who_stores_cannot_read(tmp_path: Path) -> None:
    made = found()
    name, data = segment(1)
    writer(made, tmp_path).put(name, data)
    vault = Vault.open(made.replicas(), made.write_key, None)
    with pytest.raises(KeyUnusable):
        LogReader(vault, SYSTEM).read(name)
    # Neither what the host keeps nor what the vault holds has the root key in the clear.
    root = made.open().session_root(sessions_of(made)[0])
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    stored = b"".join(made.stores["a"].objects.values())
    for secret in (root, root.hex().encode()):
        assert secret not in kept + stored


def test_forged_and_foreign_wal_is_refused(tmp_path: Path) -> None:
    made, other = found(), found()
    name, data = segment(1)
    key = layout.wal_key(SYSTEM, name)
    writer(other, tmp_path / "other").put(name, data)
    writer(made, tmp_path).put(*segment(2))
    made.stores["a"].objects[key] = other.stores["a"].objects[key]
    with pytest.raises(DamagedData):
        reader(made).read(name)
    made.stores["a"].objects[key] = made.stores["a"].objects[layout.wal_key(SYSTEM, segment(2)[0])]
    with pytest.raises(DamagedData):
        reader(made).read(name)


def test_what_was_never_there_is_absent(tmp_path: Path) -> None:
    made = found(replicas=2)
    putting = writer(made, tmp_path)
    putting.put(*segment(1))
    putting.told(force=True)
    reading = reader(made)
    for name in (segment(2)[0], segment(1, timeline=2)[0], history(2)[0], "00000003.history"):
        with pytest.raises(WalAbsent):
            reading.read(name)


def test_nothing_is_absent_while_a_replica_is_away(tmp_path: Path) -> None:
    made = found(replicas=2)
    writer(made, tmp_path).put(*segment(1))
    with pytest.raises(VaultUnreachable):
        reader(made, away(made, "b")).read(segment(2)[0])
    assert reader(made, away(made, "b")).read(segment(1)[0]) == segment(1)[1]


def test_a_segment_that_is_missing_before_another_is_damage(tmp_path: Path) -> None:
    made = found()
    for number in (1, 3):
        writer(made, tmp_path).put(*segment(number))
    with pytest.raises(DamagedData, match="missing"):
        reader(made).read(segment(2)[0])
    (window,) = reader(made).continuity().windows
    assert [(gap.first, gap.last) for gap in window.gaps] == [(segment(2)[0],) * 2]


def test_wal_deleted_from_every_replica_is_damage_not_absence(tmp_path: Path) -> None:
    made = found(replicas=2)
    putting = writer(made, tmp_path)
    for number in (1, 2, 3):
        putting.put(*segment(number))
    putting.put_piece(segment(4)[0], 0, segment(4)[1][:8192])
    putting.told(force=True)
    for store in made.stores.values():
        for key in keys_of(store):
            del store.objects[key]
    reading = reader(made)
    for number in (1, 3, 4):
        with pytest.raises(DamagedData, match="missing"):
            reading.read(segment(number)[0])
    with pytest.raises(WalAbsent):
        reading.read(segment(5)[0])
    (window,) = reading.continuity().windows
    assert window.to_lsn == 4 * SEGMENT_BYTES + 8192
    assert window.gaps[0].first == segment(1)[0]


def test_a_host_remembers_wal_of_which_the_ledger_was_not_told(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    putting.put(*segment(1))
    putting.put(*segment(2))  # told of the first only: five minutes are not over
    seen = SeenHeads(tmp_path / "heads", made.open().id)
    LogReader(made.open(), SYSTEM, seen).continuity()
    del made.stores["a"].objects[layout.wal_key(SYSTEM, segment(2)[0])]
    with pytest.raises(WalAbsent):
        LogReader(made.open(), SYSTEM).read(segment(2)[0])
    with pytest.raises(DamagedData):
        LogReader(made.open(), SYSTEM, seen).read(segment(2)[0])


def test_the_host_that_stores_misses_at_once_what_it_stored(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    for number in (1, 2):
        putting.put(*segment(number))
    putting.put_piece(segment(3)[0], 0, segment(3)[1][:8192])
    for key in keys_of(made.stores["a"]) - {layout.wal_key(SYSTEM, segment(1)[0])}:
        del made.stores["a"].objects[key]
    vault = Vault.open(made.replicas(), made.write_key, None)
    elsewhere = LogReader(vault, SYSTEM).continuity()
    assert not elsewhere.windows[0].gaps  # the ledger will hear of it within the hour
    here = LogReader(vault, SYSTEM, stored=StateFile(tmp_path, vault.id, SYSTEM)).continuity()
    (gap,) = here.windows[0].gaps
    assert (gap.first, gap.last) == (segment(2)[0], segment(3)[0])


def test_a_lost_history_is_damage(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    for each in (segment(1), history(2, (1, "0/280000")), segment(2, timeline=2)):
        putting.put(*each)
    del made.stores["a"].objects[layout.wal_key(SYSTEM, "00000002.history")]
    with pytest.raises(DamagedData, match="missing"):
        reader(made).read("00000002.history")


def test_pieces_make_the_beginning_of_the_last_segment(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    putting.put(*segment(1))
    name, data = segment(2)
    putting.put_piece(name, 0, data[:8192])
    putting.put_piece(name, 8192, data[8192:12000])
    putting.put_piece(name, 16384, data[16384:20000])
    assert reader(made).read(name) == data[:12000] + bytes(SEGMENT_BYTES - 12000)
    putting.put_piece(name, 4096, data[4096:16384])
    assert reader(made).read(name) == data[:20000] + bytes(SEGMENT_BYTES - 20000)
    assert reader(made).continuity().windows[0].to_lsn == 2 * SEGMENT_BYTES + 20000
    putting.put(*segment(3))
    with pytest.raises(DamagedData):
        reader(made).read(name)
    putting.put_piece(name, 20000, data[20000:])
    assert reader(made).read(name) == data
    assert not reader(made).continuity().windows[0].gaps


def test_pieces_that_do_not_fit_together_are_damage(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    name, data = segment(2)
    putting.put_piece(name, 0, data[:8192])
    putting.put_piece(name, 4096, segment(2, seed=1)[1][4096:9000])
    with pytest.raises(DamagedData, match="fit"):
        reader(made).read(name)


def test_continuity_across_timelines(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    for each in (segment(1), segment(2), segment(4), history(2, (1, "0/480000"))):
        putting.put(*each)
    for number in (4, 5):
        putting.put(*segment(number, timeline=2))
    # Without the identity: whoever has any key sees what there is.
    there = LogReader(Vault.open(made.replicas(), made.write_key, None), SYSTEM).continuity()
    assert there.newest_timeline(1) == 2
    reach = there.reach(1, SEGMENT_BYTES, 2)
    assert reach.lsn == 3 * SEGMENT_BYTES
    assert reach.gap is not None
    assert reach.gap.first == Segment(1, 3).name(SEGMENT_BYTES)
    putting.put(*segment(3))
    whole = reader(made).continuity()
    assert whole.reach(1, SEGMENT_BYTES, 2).lsn == 6 * SEGMENT_BYTES
    assert whole.reach(1, SEGMENT_BYTES, 1).lsn == 5 * SEGMENT_BYTES


def test_whoever_reads_for_long_reads_what_a_new_writer_stores(tmp_path: Path) -> None:
    made = found()
    writer(made, tmp_path).put(*segment(1))
    reading = reader(made)
    assert reading.read(segment(1)[0]) == segment(1)[1]
    file = tmp_path / "new.key"
    rotate_write_key(made.open(), file, NOW)
    new = replace(made, write_key=WriteKey.from_text(file.read_text()))
    writer(new, tmp_path).put(*segment(2))
    assert reading.read(segment(2)[0]) == segment(2)[1]
    assert reading.read(segment(1)[0]) == segment(1)[1]


def test_a_damaged_history_is_not_passed_over(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    for each in (segment(1), history(2, (1, "0/280000")), segment(2, timeline=2)):
        putting.put(*each)
    made.stores["a"].damage(layout.wal_key(SYSTEM, "00000002.history"), flip(600))
    # Whoever took the older timeline for the newest would recover less, and call it all.
    with pytest.raises(DamagedData):
        reader(made).continuity()


def test_a_damaged_segment_does_not_hide_how_large_segments_are(tmp_path: Path) -> None:
    made = found()
    putting = writer(made, tmp_path)
    for number in (1, 2, 3):
        putting.put(*segment(number))
    made.stores["a"].damage(layout.wal_key(SYSTEM, segment(1)[0]), flip(600))
    assert reader(made).continuity().segment_bytes == SEGMENT_BYTES


def test_a_damaged_segment_comes_from_its_pieces_where_they_are_all_there(tmp_path: Path) -> None:
    """They stay until retention removes them with their segment."""
    made = found(replicas=2)
    name, data = segment(1)
    half = SEGMENT_BYTES // 2
    putting = writer(made, tmp_path)
    putting.put_piece(name, 0, data[:half])
    putting.put_piece(name, half, data[half:])
    putting.put(name, data)
    for store in made.stores.values():
        store.damage(layout.wal_key(SYSTEM, name), flip(8 * 5000))
    assert LogReader(made.open(), SYSTEM).read(name) == data
    last = f"{name}.{half:08X}-{SEGMENT_BYTES:08X}"
    for store in made.stores.values():
        del store.objects[layout.wal_key(SYSTEM, last)]
    with pytest.raises(DamagedData):
        LogReader(made.open(), SYSTEM).read(name)
