"""Which base backup a moment is recovered from, and what is refused before anything is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.continuity import Continuity, continuity
from cellarer.domain.recovery_course import (
    Base,
    choose_base,
    proof_end,
    refuse_unreachable,
    wal_reach,
    wanted_history,
)
from cellarer.domain.recovery_target import RecoveryTarget, recovery_target
from cellarer.domain.snapshot import RestorePoint
from cellarer.domain.wal import History, Segment, lsn_text
from cellarer.errors import TargetFailed, UsageError

SIZE = 16 << 20
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def base(hour: int, segment: int, timeline: int = 1) -> Base:
    """A base backup that ended at this hour, early in this segment."""
    finished = NOON + timedelta(hours=hour)
    point = RestorePoint(f"b{hour}", "cluster", "postgres_base", finished, 1.0, 0, 0, 0, 0)
    start = segment * SIZE
    return Base(timeline, start, start + 1000, SIZE, True, point, "7", finished)


def log(*numbers: int, timeline: int = 1) -> Continuity:
    """The WAL of these segments."""
    return continuity([Segment(timeline, n).name(SIZE) for n in numbers], {}, SIZE)


BASES = [base(3, 30), base(2, 20), base(1, 10)]


def chosen(target: RecoveryTarget, whole: Continuity) -> Base:
    return choose_base(BASES, target, lambda b: wanted_history(target, b, whole))[0]


def test_the_newest_base_backup_that_ended_before_the_moment_is_taken() -> None:
    everything = log(*range(10, 41))
    assert chosen(RecoveryTarget(), everything) == BASES[0]
    at = recovery_target(at=NOON + timedelta(hours=2, minutes=30))
    assert chosen(at, everything) == BASES[1]
    assert chosen(recovery_target(lsn=lsn_text(15 * SIZE)), everything) == BASES[2]


def test_a_moment_before_all_of_them_is_refused() -> None:
    with pytest.raises(UsageError, match="no base backup leads to"):
        chosen(recovery_target(at=NOON), log(*range(10, 41)))


def test_a_base_backup_of_a_timeline_that_was_left_before_is_passed_over() -> None:
    history = History.parse(2, "1\t0/1E000000\tno reason\n")
    target = recovery_target(timeline="2")
    found, reasons = choose_base(BASES, target, lambda _: history)
    assert found == BASES[1]
    assert "b3 is of timeline 1, which timeline 2 left before it" in reasons[1]


@given(st.sets(st.integers(30, 60)))
def test_the_wal_reaches_to_the_first_segment_that_is_missing(numbers: set[int]) -> None:
    whole = log(*numbers)
    reach = wal_reach(BASES[0], History(1), whole)
    end = next(n for n in range(31, 62) if n not in numbers)
    assert reach.lsn == max(end * SIZE, BASES[0].stop_lsn) or reach.lsn == BASES[0].stop_lsn
    assert (reach.gap is not None) == any(n > end for n in numbers)
    if reach.last is not None:
        assert Segment.parse(reach.last, SIZE).number == end - 1


@given(st.sets(st.integers(28, 45)), st.integers(0, 8 * SIZE), st.booleans())
def test_a_proof_replays_whole_segments_that_lead_on_to_a_bound(
    numbers: set[int], most_bytes: int, whole_end: bool
) -> None:
    backup = replace(BASES[0], whole_end=whole_end)
    first = 31 if whole_end else 30  # a standby's own last segment is not whole
    run = next(n for n in range(first, 47) if n not in numbers)
    expected = max(min(run, 31 + most_bytes // SIZE), 31) * SIZE
    assert proof_end(backup, log(*numbers), most_bytes) == expected


def refusal(target: RecoveryTarget, whole: Continuity, until: datetime | None = None) -> str:
    reach = wal_reach(BASES[0], History(1), whole)
    with pytest.raises(TargetFailed) as caught:
        refuse_unreachable(target, BASES[0], reach, until)
    return f"{caught.value.detail}\n{caught.value.hint}"


def test_a_gap_is_named_with_the_way_out() -> None:
    said = refusal(RecoveryTarget(), log(31, 32, 35))
    assert "from 000000010000000000000021 to 000000010000000000000022" in said
    assert f"--lsn {lsn_text(32 * SIZE)}" in said
    assert "--immediate --point b3" in refusal(RecoveryTarget(), log(35))


def test_a_moment_behind_the_end_is_refused() -> None:
    whole = log(31, 32)
    assert "does not lie before" in refusal(recovery_target(lsn=lsn_text(34 * SIZE)), whole)
    late = recovery_target(at=NOON + timedelta(hours=9))
    assert "stored at" in refusal(late, whole, NOON + timedelta(hours=8))


def test_what_can_be_reached_is_not_refused() -> None:
    whole = log(31, 32)
    reach = wal_reach(BASES[0], History(1), whole)
    for target in (
        RecoveryTarget(),
        RecoveryTarget("immediate"),
        recovery_target(lsn=lsn_text(32 * SIZE)),
        recovery_target(at=NOON + timedelta(hours=4)),
    ):
        refuse_unreachable(target, BASES[0], reach, NOON + timedelta(hours=8))


def test_an_unknown_timeline_is_refused() -> None:
    with pytest.raises(UsageError, match="the history of timeline 7"):
        wanted_history(recovery_target(timeline="7"), replace(BASES[0], timeline=1), log(31))
