"""From which base backup a recovery begins: one that was whole at its source, where that leads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from cellarer.bootstrap.recoveries import course_of_proof
from cellarer.domain.recovery import LATEST
from cellarer.domain.recovery_course import Base
from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.domain.snapshot import RestorePoint, WalRange
from cellarer.domain.wal import lsn_text
from cellarer.flows.points import survey, wal_note
from cellarer.flows.recovery import RecoveryPlan, plan_recovery
from cellarer.flows.status import status
from cellarer.ports import PointReader, Stream
from cellarer.vault.log import LogReader
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, found
from wal_files import SEGMENT_BYTES, SYSTEM, history, segment, writer

if TYPE_CHECKING:
    from cellarer.postgres.basebackup import BackupFacts


def base_backup(made: Founded, number: int, flaws: int = 0) -> str:
    """One that begins and ends in a segment."""
    session = SnapshotWriter(made.open(), "cluster", "postgres_base", made.now)
    session.add(Stream("data/base/1/1", "relation", iter([b"page"])))
    start = number * SEGMENT_BYTES + 40
    note = wal_note(WalRange(SYSTEM, 1, start, start + 500))
    return session.commit(note | ({"flaws": flaws} if flaws else {})).session


def as_base(point: RestorePoint, reader: PointReader) -> Base:
    assert point.wal is not None
    return Base(
        timeline=1,
        start_lsn=point.wal.start_lsn,
        stop_lsn=point.wal.stop_lsn,
        segment_bytes=SEGMENT_BYTES,
        whole_end=True,
        point=point,
        system=SYSTEM,
        finished_at=point.time + timedelta(seconds=point.seconds),
    )


def planned(made: Founded, wanted: str = LATEST) -> RecoveryPlan:
    target = RecoveryTarget()
    return plan_recovery(made.open(), "cluster", wanted, target, made.now(), as_base, LogReader)


def vault_of(state: Path, *numbers: int) -> tuple[Founded, str, str]:
    """A whole base backup at segment 1, and a newer one at 3 that was damaged at its source."""
    made = found()
    whole = base_backup(made, 1)
    for number in numbers:
        writer(made, state).put(*segment(number))
    return made, whole, base_backup(made, 3, flaws=2)


def test_a_whole_one_is_taken_although_a_damaged_one_is_newer(tmp_path: Path) -> None:
    made, whole, damaged = vault_of(tmp_path, 1, 2, 3, 4)
    plan = planned(made).plan
    assert plan.point.id == whole
    assert f"{damaged} is newer, and was damaged at its source" in plan.reasons
    # Who names the other one is told.
    plan = planned(made, damaged).plan
    assert plan.point.id == damaged
    assert any("DAMAGED AT ITS SOURCE: 2 pages" in reason for reason in plan.reasons)


def test_a_damaged_one_is_better_than_none_that_leads_there(tmp_path: Path) -> None:
    made, _, damaged = vault_of(tmp_path, 1, 3, 4)
    plan = planned(made).plan
    assert plan.point.id == damaged
    assert any("DAMAGED AT ITS SOURCE" in reason for reason in plan.reasons)


def test_that_the_newest_was_damaged_is_an_alarm(tmp_path: Path) -> None:
    made, _, _ = vault_of(tmp_path, 1, 2, 3)
    points = survey(made.open()).points
    alarms = status(made.open(), points, {"cluster": None}, None, made.now()).alarms
    assert any("2 pages of its newest point were damaged" in alarm.message for alarm in alarms)


def test_a_whole_one_of_another_cluster_or_an_older_moment_is_not_preferred(tmp_path: Path) -> None:
    made, _, damaged = vault_of(tmp_path, 1, 2)
    # The log ends before the newer one: it alone leads to where it ends.
    assert planned(made).plan.point.id == damaged
    made, _, damaged = vault_of(tmp_path / "other", 1, 2, 3, 4)
    target = RecoveryTarget("immediate")
    plan = plan_recovery(
        made.open(), "cluster", LATEST, target, made.now(), as_base, LogReader
    ).plan
    assert plan.point.id == damaged


def test_a_proof_needs_no_log_of_a_timeline_that_has_just_begun(tmp_path: Path) -> None:
    """Its history is there at once, its first segment when that is full."""
    made = found()
    base_backup(made, 1)
    writer(made, tmp_path).put(*segment(1))
    writer(made, tmp_path).put(*history(2, (1, "0/200000")))
    facts = SimpleNamespace(
        system_identifier=SYSTEM,
        timeline=1,
        start_lsn=lsn_text(SEGMENT_BYTES + 40),
        stop_lsn=lsn_text(SEGMENT_BYTES + 540),
        wal_segment_size=SEGMENT_BYTES,
        standby=False,
    )
    assert course_of_proof(made.open())(cast("BackupFacts", facts)).timeline == "1"
    writer(made, tmp_path).put(*segment(2, timeline=2))
    assert course_of_proof(made.open())(cast("BackupFacts", facts)).timeline == "2"
