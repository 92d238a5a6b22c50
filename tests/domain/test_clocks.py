"""A clock that ran ahead silences no alarm and wins nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.recovery import plan_restore
from cellarer.domain.snapshot import CLOCK_TOLERANCE, RestorePoint, ahead

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
spans = st.timedeltas(timedelta(days=-400), timedelta(days=400))


def point(name: str, time: datetime) -> RestorePoint:
    return RestorePoint(name, "db", "test", time, 1.0, 1, 1, 1, 1)


@given(spans)
def test_only_what_no_right_clock_explains_is_in_the_future(span: timedelta) -> None:
    early = ahead(NOW + span, NOW)
    assert (early is not None) == (span > CLOCK_TOLERANCE)
    assert early in (None, span)


@given(st.lists(spans, min_size=1, max_size=8))
def test_latest_is_the_last_commit_whatever_the_clocks_say(times: list[timedelta]) -> None:
    points = [point(f"p{n}", NOW + span) for n, span in enumerate(times)]
    plan = plan_restore(points, "db", "latest", None, NOW, None)
    assert plan.point == points[0]
    assert plan.loss_seconds >= 0
    told = "\n".join(plan.reasons)
    assert ("it is dated" in told) == (times[0] > CLOCK_TOLERANCE)
    for other, span in zip(points[1:], times[1:], strict=True):
        wrong = span > CLOCK_TOLERANCE and span > times[0]
        assert (f"{other.id} is dated later" in told) == wrong


@given(st.lists(spans, min_size=1, max_size=8), spans)
def test_a_point_for_a_moment_is_not_after_it(times: list[timedelta], at: timedelta) -> None:
    points = [point(f"p{n}", NOW + span) for n, span in enumerate(times)]
    if min(times) > at:
        return
    plan = plan_restore(points, "db", "latest", NOW + at, NOW, None)
    assert plan.point == next(p for p in points if p.time <= NOW + at)
