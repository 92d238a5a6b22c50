"""Which locks are extended: everything needed stays locked, in small portions, and not forever."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.immutability import looking_order, plan_extensions

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
periods = st.timedeltas(timedelta(hours=1), timedelta(days=4000))
names = st.text("abcdef0123456789", min_size=1, max_size=8)


@given(
    st.dictionaries(names, st.none() | st.timedeltas(timedelta(-9000), timedelta(9000))), periods
)
def test_after_a_run_everything_is_locked_for_half_a_period(
    held: dict[str, timedelta | None], period: timedelta
) -> None:
    locks = {name: None if left is None else NOW + left for name, left in held.items()}
    wanted = plan_extensions(locks, NOW, period)
    for name, lock in locks.items():
        after = wanted.get(name, lock)
        assert after is not None
        assert after >= NOW + period / 2
        if name in wanted:
            assert lock is None or wanted[name] > lock
            assert NOW + period <= wanted[name] <= NOW + period + timedelta(seconds=1)
        elif lock is not None:
            assert lock >= NOW + period / 2


@pytest.mark.parametrize("days", [7, 28, 90])
def test_what_came_in_one_night_is_not_extended_in_one_night(days: int) -> None:
    """Over a year of daily runs: no night takes much, each object twice a period."""
    period = days * DAY
    held: dict[str, datetime | None] = {f"packs/{n}": NOW + period for n in range(400)}
    most, extensions = 0, 0
    for day in range(1, 366):
        wanted = plan_extensions(held, NOW + day * DAY, period)
        most, extensions = max(most, len(wanted)), extensions + len(wanted)
        held |= wanted
    usual = 400 / (days / 2)
    assert most <= usual + 6 * math.sqrt(usual)
    assert 2 * 365 / days - 1 <= extensions / 400 <= 2 * 365 / days + 1


@given(st.sets(names, min_size=1, max_size=60), st.integers(1, 40))
def test_the_order_is_a_circle_that_time_turns(objects: set[str], turns: int) -> None:
    """A run that looks at what was passed since the last one misses nothing, and begins anew."""
    period = 30 * DAY
    whole = looking_order(objects, NOW, period)
    assert sorted(whole) == sorted(objects)
    assert looking_order(objects, NOW + turns * period / 2, period) == whole
    later = looking_order(objects, NOW + timedelta(hours=20), period)
    turn = later.index(whole[0])
    assert later == later[:turn] + [n for n in whole if n not in later[:turn]]
