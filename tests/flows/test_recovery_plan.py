"""From which base backup a recovery begins: one that was whole at its source, where that leads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from cellarer.bootstrap.recoveries import course_of_proof, own_log
from cellarer.domain.recovery import LATEST
from cellarer.domain.recovery_course import Base
from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.domain.snapshot import RestorePoint, WalRange
from cellarer.domain.wal import lsn_text
from cellarer.errors import UsageError
from cellarer.flows.points import survey, wal_note
from cellarer.flows.recovery import RecoveryPlan, plan_recovery
from cellarer.flows.status import status
from cellarer.ports import PointReader, Stream
from cellarer.vault.log import LogReader
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, found
from wal_files import SEGMENT_BYTES, SYSTEM, history, segment, writer

if TYPE_CHECKING:
    from cellarer.postgres.basebackup import BackupFacts


def base_backup(
    made: Founded, number: int, flaws: int = 0, timeline: int = 1, *own: tuple[str, bytes]
) -> str:
    """One that begins and ends in a segment, and holds some of its `own` log."""
    session = SnapshotWriter(made.open(), "cluster", "postgres_base", made.now)
    session.add(Stream("data/base/1/1", "relation", iter([b"page"])))
    for name, content in own:
        session.add(Stream(f"wal/{name}", "wal", iter([content])))
    start = number * SEGMENT_BYTES + 40
    note = wal_note(WalRange(SYSTEM, timeline, start, start + 500))
    return session.commit(note | ({"flaws": flaws} if flaws else {})).session


def as_base(point: RestorePoint, reader: PointReader) -> Base:
    assert point.wal is not None
    return Base(
        timeline=point.wal.timeline,
        start_lsn=point.wal.start_lsn,
        stop_lsn=point.wal.stop_lsn,
        segment_bytes=SEGMENT_BYTES,
        whole_end=True,
        point=point,
        system=SYSTEM,
        finished_at=point.time + timedelta(seconds=point.seconds),
    )


def planned(made: Founded, wanted: str = LATEST, kind: str = LATEST) -> RecoveryPlan:
    target = RecoveryTarget(kind)  # type: ignore[arg-type]
    now = made.now()
    return plan_recovery(made.open(), "cluster", wanted, target, now, as_base, own_log, LogReader)


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
    assert planned(made, kind="immediate").plan.point.id == damaged


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

    def timeline() -> str:
        vault = made.open()
        reader = SnapshotReader(vault, vault.commits()[-1])
        return course_of_proof(vault)(reader, cast("BackupFacts", facts)).timeline

    assert timeline() == "1"
    writer(made, tmp_path).put(*segment(2, timeline=2))
    assert timeline() == "2"


# ------------------------------------------------------------------------------ another branch


def test_a_base_of_another_branch_is_passed_over(tmp_path: Path) -> None:
    """Under one timeline, at the same positions, other log: a cluster that was recovered twice."""
    made = found()
    fitting = base_backup(made, 1, 0, 1, segment(1))
    for number in (1, 2, 3, 4):
        writer(made, tmp_path).put(*segment(number))
    other = base_backup(made, 3, 0, 1, segment(3, seed=7))
    plan = planned(made)
    assert plan.plan.point.id == fitting
    assert any(other in reason and "another branch" in reason for reason in plan.plan.reasons)
    assert plan.log is not None
    # Who names it gets it as it is, and no log with it.
    plan = planned(made, other)
    assert (plan.plan.point.id, plan.log, plan.reach.last) == (other, None, None)
    assert "other write-ahead log" in plan.conflict
    assert any("left out" in reason for reason in plan.plan.reasons)


def test_bases_that_are_all_of_another_branch_are_not_chosen_for_anybody(tmp_path: Path) -> None:
    made = found()
    base_backup(made, 3, 0, 1, segment(3, seed=7))
    writer(made, tmp_path).put(*segment(3))
    with pytest.raises(UsageError, match="different branches") as raised:
        planned(made)
    assert "--point" in raised.value.hint


def test_what_follows_the_end_of_a_base_need_not_be_in_it(tmp_path: Path) -> None:
    """A standby's base backup ends in the middle of a segment."""
    made = found()
    name, content = segment(3)
    base = base_backup(made, 3, 0, 1, (name, content[:600] + bytes(len(content) - 600)))
    writer(made, tmp_path).put(name, content)
    writer(made, tmp_path).put(*segment(4))
    plan = planned(made)
    assert (plan.plan.point.id, plan.conflict) == (base, "")


def test_a_timeline_of_the_same_number_that_began_elsewhere_is_another_one(tmp_path: Path) -> None:
    made = found()
    fitting = base_backup(made, 1, 0, 1, segment(1))
    for each in (segment(1), segment(2), history(2, (1, "0/280000")), segment(2, timeline=2)):
        writer(made, tmp_path).put(*each)
    other = base_backup(made, 5, 0, 2, history(2, (1, "0/300000")))
    assert planned(made, other).conflict.startswith("its timeline 2 began elsewhere")
    assert planned(made, fitting).conflict == ""


def test_the_proof_of_a_base_of_another_branch_says_so(tmp_path: Path) -> None:
    made = found()
    base_backup(made, 3, 0, 1, segment(3, seed=7))
    for number in (3, 4):
        writer(made, tmp_path).put(*segment(number))
    facts = SimpleNamespace(
        system_identifier=SYSTEM,
        timeline=1,
        start_lsn=lsn_text(3 * SEGMENT_BYTES + 40),
        stop_lsn=lsn_text(3 * SEGMENT_BYTES + 540),
        wal_segment_size=SEGMENT_BYTES,
        standby=False,
    )
    vault = made.open()
    reader = SnapshotReader(vault, vault.commits()[-1])
    course = course_of_proof(vault)(reader, cast("BackupFacts", facts))
    assert (course.target.kind, course.last) == ("immediate", None)
    assert "other write-ahead log" in course.conflict
