"""WAL is kept from where a kept base backup needs it, and never a byte less."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.log_retention import plan_log
from cellarer.domain.snapshot import RestorePoint, WalRange

SYSTEM = "7561234567890123456"
START = datetime(2026, 3, 1, tzinfo=UTC)


def base(number: int, lsn: int | None, day: float, seconds: float = 0.0) -> RestorePoint:
    """A base backup; without a position it does not say what it needs."""
    wal = None if lsn is None else WalRange(SYSTEM, 1, lsn, lsn + 100)
    time = START + timedelta(days=day)
    return RestorePoint(
        f"p{number}", "cluster", "postgres_base", time, seconds, 0, 0, 0, 0, wal=wal
    )


BASES = st.lists(
    st.tuples(st.integers(0, 10_000), st.floats(0, 30), st.floats(0, 90_000)), max_size=8
).map(lambda found: [base(n, lsn, day, took) for n, (lsn, day, took) in enumerate(found)])
WINDOWS = st.none() | st.timedeltas(timedelta(), timedelta(days=40))


@given(BASES, WINDOWS)
def test_every_moment_of_the_window_can_be_reached(
    bases: list[RestorePoint], window: timedelta | None
) -> None:
    """By brute force: of each base backup that serves a moment, all behind its start is kept."""
    (decision,) = plan_log([SYSTEM], bases, window)
    if not bases:
        assert decision.before == 0
        assert decision.warning
        return
    ends = {point.id: point.time + timedelta(seconds=point.seconds) for point in bases}
    newest = max(ends.values())
    since = newest - window if window is not None else min(ends.values())
    for point in bases:
        assert point.wal is not None
        serves = ends[point.id] >= since
        # Also the last one before the window: with it the window's first moment is reached.
        serves |= not any(ends[point.id] < ends[o.id] <= since for o in bases)
        if serves and ends[point.id] <= newest:
            assert decision.before <= point.wal.start_lsn
    assert decision.before in {point.wal.start_lsn for point in bases if point.wal}


@given(BASES, WINDOWS)
def test_a_longer_window_keeps_no_less(bases: list[RestorePoint], window: timedelta | None) -> None:
    (decision,) = plan_log([SYSTEM], bases, window)
    longer = None if window is None else window + timedelta(days=1)
    assert plan_log([SYSTEM], bases, longer)[0].before <= decision.before


def test_a_base_backup_that_is_silent_keeps_everything() -> None:
    (decision,) = plan_log([SYSTEM], [base(1, 500, 1), base(2, None, 2)], timedelta(days=1))
    assert decision.before == 0
    assert "p2" in decision.warning


def test_other_clusters_and_other_kinds_do_not_count() -> None:
    dump = RestorePoint("d", "db", "postgres_dump", START, 0, 0, 0, 0, 0)
    decisions = plan_log([SYSTEM, "7"], [base(1, 500, 1), dump], None)
    assert [(each.system, each.before) for each in decisions] == [("7", 0), (SYSTEM, 500)]
    assert decisions[0].warning
    assert not decisions[1].warning
