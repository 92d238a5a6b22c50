"""WAL that no base backup needs goes, and what goes is neither missed nor brought back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cellarer.domain.retention import Policy
from cellarer.domain.snapshot import WalRange
from cellarer.errors import DamagedData, KeyUnusable, ObjectLocked, VaultUnreachable
from cellarer.flows.points import survey, wal_note
from cellarer.flows.retain import Retained, Rules, retain
from cellarer.flows.sync import synchronise
from cellarer.ports import Stream
from cellarer.vault import format as layout
from cellarer.vault.ledger import entries, facts
from cellarer.vault.repair import standing_damage
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from scrubbing import Silent, run
from stand_ins import Days, Fault, Faults, FaultyStore, Founded, Objects, PowerCut, flip, found
from wal_files import SEGMENT_BYTES, SYSTEM, history, keys_of, reader, segment, writer

KEEP_ALL = Rules(Policy(), {}, UTC)
LAST_ONE = Rules(Policy(last=1), {}, UTC)


def base_backup(made: Founded, number: int | None) -> str:
    """A point that needs WAL from a segment on; one that does not say so where None."""
    session = SnapshotWriter(made.open(), "cluster", "postgres_base", made.now)
    session.add(Stream("data/base/1/1", "relation", iter([b"page"])))
    start = (number or 0) * SEGMENT_BYTES + 40
    wal = WalRange(SYSTEM, 1, start, start + 500)
    return session.commit({} if number is None else wal_note(wal)).session


def scene_of(state: Path, replicas: int = 1) -> Founded:
    """WAL of eight days, with a base backup at the third and at the sixth."""
    made = found(replicas=replicas)
    clock = made.now = Days()
    putting = writer(made, state)
    for number in range(1, 9):
        if number in (3, 6):
            base_backup(made, number)
        putting.put(*segment(number))
        clock.next()
    putting.put(*history(2, (1, "0/880000")))
    putting.put(f"{segment(1)[0]}.00000028.backup", b"x")
    putting.told(force=True)
    return made


def applied(
    made: Founded, rules: Rules, replicas: ReplicaSet | None = None, *, dry_run: bool = False
) -> Retained:
    return retain(made.open(replicas), rules, made.now, Silent(), dry_run=dry_run)


def numbers(made: Founded, replica: str = "a") -> list[int]:
    """The segments that are there."""
    names = {segment(number)[0]: number for number in range(1, 9)}
    keys = keys_of(made.stores[replica])
    return sorted(n for name, n in names.items() if layout.wal_key(SYSTEM, name) in keys)


def test_wal_goes_with_the_base_backup_that_needed_it(tmp_path: Path) -> None:
    made = scene_of(tmp_path, replicas=2)
    planned = applied(made, LAST_ONE, dry_run=True)
    assert numbers(made) == list(range(1, 9))
    done = applied(made, LAST_ONE)
    assert numbers(made, "a") == numbers(made, "b") == [6, 7, 8]
    assert [each.before for each in done.wal] == [6 * SEGMENT_BYTES + 40]
    assert "oldest base backup" in done.wal[0].reason
    for name in "ab":
        removal = done.wal_removal[name]
        assert (planned.wal_removal[name].objects, removal.removed_objects) == (6, 6)
        assert planned.wal_removal[name].bytes == removal.removed_bytes
    # A history is small, and later timelines come from it.
    assert layout.wal_key(SYSTEM, "00000002.history") in keys_of(made.stores["a"])


def test_what_went_is_not_missed_and_not_absent(tmp_path: Path) -> None:
    made = scene_of(tmp_path, replicas=2)
    applied(made, LAST_ONE)
    assert run(made).remaining == []
    (window,) = reader(made).continuity().windows
    assert (window.from_lsn, window.gaps) == (6 * SEGMENT_BYTES, ())
    with pytest.raises(DamagedData, match="any more"):
        reader(made).read(segment(2)[0])
    assert reader(made).read(segment(7)[0]) == segment(7)[1]
    assert applied(made, LAST_ONE).wal_removal["a"].objects == 0
    assert len(facts(made.open(), "wal-removed")) == 1


def test_what_went_is_not_brought_back(tmp_path: Path) -> None:
    made = scene_of(tmp_path, replicas=2)
    kept = dict(made.stores["b"].objects)
    applied(made, LAST_ONE)
    old = {key: data for key, data in kept.items() if key.startswith(layout.WAL_PREFIX)}
    made.stores["b"].objects |= old  # as if it had been away meanwhile
    synchronise(made.replicas(), made.open(), Silent(), made.now)
    assert numbers(made, "a") == [6, 7, 8]
    applied(made, LAST_ONE)
    assert numbers(made, "b") == [6, 7, 8]


def test_all_wal_stays_as_long_as_its_base_backups(tmp_path: Path) -> None:
    made = scene_of(tmp_path)
    done = applied(made, KEEP_ALL)
    assert numbers(made) == [3, 4, 5, 6, 7, 8]
    assert not done.wal[0].warning


def test_a_window_keeps_less_than_the_oldest_base_backup(tmp_path: Path) -> None:
    made = scene_of(tmp_path)
    # The sixth day's base backup ended a moment ago: only that one serves so short a window.
    applied(made, replace(KEEP_ALL, wal_window=timedelta(days=30)))
    assert numbers(made) == [3, 4, 5, 6, 7, 8]
    applied(made, replace(KEEP_ALL, wal_window=timedelta()))
    assert numbers(made) == [6, 7, 8]
    assert len(survey(made.open()).points) == 2


def test_without_a_base_backup_nothing_goes(tmp_path: Path) -> None:
    made = found()
    writer(made, tmp_path).put(*segment(1))
    done = applied(made, LAST_ONE)
    assert done.wal[0].warning
    assert numbers(made) == [1]


def test_a_base_backup_that_does_not_say_what_it_needs_keeps_all(tmp_path: Path) -> None:
    made = scene_of(tmp_path)
    base_backup(made, None)
    assert applied(made, LAST_ONE).wal[0].warning
    assert numbers(made) == list(range(1, 9))


def test_pieces_go_when_their_segment_is_whole(tmp_path: Path) -> None:
    made = scene_of(tmp_path)
    putting = writer(made, tmp_path)
    putting.put_piece(segment(8)[0], 0, segment(8)[1][:8192])
    putting.put_piece(segment(9)[0], 0, segment(9)[1][:8192])
    applied(made, KEEP_ALL)
    pieces = [key for key in keys_of(made.stores["a"]) if "-" in key.rpartition("/")[2]]
    assert len(pieces) == 1
    assert segment(9)[0] in pieces[0]


def test_it_takes_the_right_to_delete_and_every_replica(tmp_path: Path) -> None:
    made = scene_of(tmp_path, replicas=2)
    with pytest.raises(KeyUnusable):
        retain(Vault.open(made.replicas(), made.write_key, None), LAST_ONE, made.now, Silent())
    away = made.replicas(
        lambda name, store: (
            FaultyStore(store, Faults(lambda n: Fault.REFUSE)) if name == "b" else store
        )
    )
    with pytest.raises(VaultUnreachable):
        applied(made, LAST_ONE, away)
    assert numbers(made) == list(range(1, 9))
    collector = Vault.open(made.replicas(), None, None, made.collect_key)
    retain(collector, LAST_ONE, made.now, Silent())
    assert numbers(made) == [6, 7, 8]


class Locked(Objects):
    """A store that refuses to delete WAL yet."""

    until = datetime(2026, 4, 1, tzinfo=UTC)

    def delete(self, key: str) -> None:
        if key.startswith(layout.WAL_PREFIX):
            raise ObjectLocked(key, until=self.until)
        super().delete(key)


def test_what_a_store_keeps_locked_is_skipped_and_told(tmp_path: Path) -> None:
    made = scene_of(tmp_path, replicas=2)
    made.stores["a"] = Locked("a", made.stores["a"].objects)
    done = applied(made, LAST_ONE)
    assert numbers(made, "a") == list(range(1, 9))
    assert numbers(made, "b") == [6, 7, 8]
    removal = done.wal_removal["a"]
    assert (removal.removed_objects, removal.locked_objects) == (0, 6)
    assert removal.locked_until == Locked.until
    assert removal.problem is None


def test_killed_at_any_deletion_it_goes_on_the_next_time(tmp_path: Path) -> None:
    for number in range(4):
        made = scene_of(tmp_path / str(number))
        plan = Faults(
            lambda n, number=number: Fault.CRASH_AFTER if n == number else None,  # type: ignore[misc]
            counts=lambda method: method == "delete",
        )
        crashing = made.replicas(lambda name, store, plan=plan: FaultyStore(store, plan))  # type: ignore[misc]
        with pytest.raises(PowerCut):
            applied(made, LAST_ONE, crashing)
        # What is half gone is not missed.
        assert not reader(made).continuity().windows[0].gaps
        applied(made, LAST_ONE)
        assert numbers(made) == [6, 7, 8]


def test_damage_in_wal_that_went_stands_no_more(tmp_path: Path) -> None:
    made = scene_of(tmp_path, replicas=2)
    key = layout.wal_key(SYSTEM, segment(2)[0])
    for store in made.stores.values():
        store.damage(key, flip(9000))
    assert run(made).damaged
    assert standing_damage(entries(made.open()))["a"].keys() == {key}
    applied(made, LAST_ONE)
    assert run(made).remaining == []
    assert standing_damage(entries(made.open())) == {}
