"""What `points`, `doctor` and `status` say of the moments that can be recovered, and of gaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cellarer.domain.retention import Policy
from cellarer.domain.snapshot import WalRange
from cellarer.flows.points import other_clusters, survey, wal_note
from cellarer.flows.retain import Rules, decide
from cellarer.flows.status import status
from cellarer.flows.windows import Log, look_at_logs, look_for_conflicts, read_logs, wal_debts
from cellarer.ports import Stream
from cellarer.vault import format as layout
from cellarer.vault.log import LogReader, LogWriter
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, flip, found
from wal_files import SEGMENT_BYTES, SYSTEM, away, history, segment, writer


def base_backup(made: Founded, number: int, timeline: int = 1, system: str = SYSTEM) -> str:
    """A point that needs WAL from a segment on."""
    session = SnapshotWriter(made.open(), "cluster", "postgres_base", made.now)
    session.add(Stream("data/base/1/1", "relation", iter([b"page"])))
    start = number * SEGMENT_BYTES + 40
    return session.commit(wal_note(WalRange(system, timeline, start, start + 500))).session


def scene_of(state: Path, *numbers: int) -> Founded:
    """WAL with a base backup at the first segment."""
    made = found()
    base_backup(made, numbers[0])
    for number in numbers:
        writer(made, state).put(*segment(number))
    return made


def logs_of(made: Founded) -> list[Log]:
    """As a host sees them that only backs up."""
    vault = Vault.open(made.replicas(), made.write_key, None)
    return read_logs(vault, survey(vault).points, LogReader)


def told(made: Founded) -> list[tuple[str, str]]:
    """The ids and levels of what is found."""
    return [(finding.id, finding.level) for finding in look_at_logs(logs_of(made))]


def test_a_window_reaches_from_the_base_backup_to_the_last_wal(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2, 3)
    (log,) = logs_of(made)
    (window,) = log.windows
    assert (window.source, window.system, window.window.timeline) == ("cluster", SYSTEM, 1)
    point = survey(made.open()).points[0]
    assert window.since == point.time + timedelta(seconds=point.seconds)
    assert window.until is not None
    assert window.since < window.until < datetime(2026, 3, 2, tzinfo=UTC)
    assert window.window.to_lsn == 4 * SEGMENT_BYTES
    assert told(made) == []


def test_a_gap_that_ends_the_newest_base_backup_is_an_error(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2, 4)
    assert told(made) == [("wal-gap", "error")]
    (finding,) = look_at_logs(logs_of(made))
    assert segment(3)[0] in finding.message
    outcome = status(made.open(), [], {}, None, made.now(), [finding])
    assert finding.message in [alarm.message for alarm in outcome.alarms]


def test_a_gap_before_the_newest_base_backup_is_a_warning(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2, 4)
    base_backup(made, 4)
    assert told(made) == [("wal-gap-passed", "warning")]
    # Healed from the server's pg_wal, nothing is to be said.
    writer(made, tmp_path).put(*segment(3))
    assert told(made) == []


def test_wal_without_a_base_backup_is_told(tmp_path: Path) -> None:
    made = found()
    writer(made, tmp_path).put(*segment(1))
    assert told(made) == [("wal-without-base", "warning")]
    (window,) = logs_of(made)[0].windows
    assert window.since is None


def test_a_timeline_begins_where_it_was_left(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2)
    putting = writer(made, tmp_path)
    putting.put(*history(2, (1, "0/280000")))
    putting.put(*segment(2, timeline=2))
    first, second = logs_of(made)[0].windows
    assert first.since is not None
    assert second.since is not None
    assert first.since < second.since
    assert told(made) == []
    # A fork that is not reached from before it is a gap as well.
    del made.stores["a"].objects[layout.wal_key(SYSTEM, segment(2, timeline=2)[0])]
    putting.put(*segment(3, timeline=2))
    assert told(made) == [("wal-gap", "error")]


def test_a_history_that_is_gone_is_missed(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2)
    putting = writer(made, tmp_path)
    putting.put(*history(2, (1, "0/280000")))
    putting.put(*segment(2, timeline=2))
    assert told(made) == []
    del made.stores["a"].objects[layout.wal_key(SYSTEM, "00000002.history")]
    assert told(made) == [("wal-history-gone", "error")]
    # Of no weight for who begins behind it, nor where nothing of before is there.
    base_backup(made, 2, timeline=2)
    assert told(made) == [("wal-history-gone", "warning")]


def test_a_server_that_was_promoted_before_it_was_backed_up_needs_no_history(
    tmp_path: Path,
) -> None:
    made = found()
    base_backup(made, 2, timeline=2)
    writer(made, tmp_path).put(*segment(2, timeline=2))
    assert told(made) == []


def test_a_vault_without_wal_says_nothing(tmp_path: Path) -> None:
    made = found()
    made.backup({"t": b"x"})
    assert logs_of(made) == []


def test_a_replica_that_lacks_wal_is_an_alarm(tmp_path: Path) -> None:
    made = found(replicas=2)
    made.backup({"t": b"x"})
    putting = writer(made, tmp_path, away(made, "b"))
    putting.put(*segment(1))
    putting.put_piece(segment(2)[0], 0, segment(2)[1][:8192])
    vault = made.open()
    debts = wal_debts(vault, survey(vault).entries)
    assert debts == {"a": 0, "b": 1}
    outcome = status(vault, survey(vault).points, {}, None, made.now(), wal_debts=debts)
    alarms = {alarm.subject: alarm.message for alarm in outcome.alarms}
    assert "write-ahead log" in alarms["vault.replicas.b"]
    assert "vault.replicas.a" not in alarms


def test_a_damaged_history_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2)
    writer(made, tmp_path).put(*history(2, (1, "0/280000")))
    made.stores["a"].damage(layout.wal_key(SYSTEM, "00000002.history"), flip(600))
    vault = made.open()
    assert read_logs(vault, survey(vault).points, LogReader) == []
    outcome = status(vault, survey(vault).points, {}, None, made.now())
    assert any("wal/" in alarm.subject for alarm in outcome.alarms)


def test_different_wal_on_parted_replicas_is_found(tmp_path: Path) -> None:
    made = found(replicas=2)
    for number in (1, 2):
        writer(made, tmp_path).put(*segment(number))
    vault = Vault.open(made.replicas(), made.write_key, None)
    assert look_for_conflicts(vault, LogReader) == []
    # Two clones of a server were promoted, and each reaches a replica of its own.
    writer(made, tmp_path, away(made, "b")).put(*segment(3))
    writer(made, tmp_path / "clone", away(made, "a")).put(*segment(3, seed=1))
    (finding,) = look_for_conflicts(vault, LogReader)
    assert (finding.id, finding.level) == ("wal-conflict", "error")
    assert segment(3)[0] in finding.message


def test_another_cluster_under_the_name_of_a_source_is_told_of(tmp_path: Path) -> None:
    made = scene_of(tmp_path, 1, 2)
    other = str(int(SYSTEM) + 1)
    new = base_backup(made, 5, system=other)
    # Of the new one nothing is stored but the base backup.
    assert told(made) == []
    log = LogWriter(made.open(), other, tmp_path, made.now)
    log.put(*history(2, (1, "0/A00000")))
    assert told(made) == [("wal-other-cluster", "warning")]
    points = survey(made.open()).points
    assert other_clusters(points, points[0]) == [SYSTEM]
    # Neither pushes the other out.
    kept = decide(survey(made.open()), Rules(Policy(last=1), {}, UTC), made.now()).keep
    assert {each.point.id for each in kept} == {point.id for point in points}
    assert points[0].id == new
