"""Retention as a law: what is kept, whatever the points, the rules and the clock."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.retention import Policy, RetentionPlan, plan_retention
from cellarer.domain.snapshot import Proof, RestorePoint

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def point(
    name: str,
    time: datetime,
    source: str = "db",
    proof: Proof = Proof.STORED,
    failed: str = "",
) -> RestorePoint:
    return RestorePoint(name, source, "test", time, 1.0, 1, 1, 1, 1, {}, proof, None, failed)


def days(count: int, **fields: object) -> list[RestorePoint]:
    """One point a day, at noon, the newest first: p0 is of today, an hour ago."""
    newest = NOW - timedelta(hours=1)
    return [point(f"p{n}", newest - timedelta(days=n), **fields) for n in range(count)]  # type: ignore[arg-type]


def plan(points: list[RestorePoint], policy: Policy, **fields: object) -> RetentionPlan:
    settings: dict[str, object] = {"holds": {}, "now": NOW, "zone": UTC, **fields}
    return plan_retention(points, {}, policy, **settings)  # type: ignore[arg-type]


def kept(found: RetentionPlan) -> list[str]:
    return [decision.point.id for decision in found.keep]


def reasons(found: RetentionPlan, name: str) -> str:
    return "; ".join(next(d.reasons for d in found.keep if d.point.id == name))


sources = st.sampled_from(["db", "files"])
moments = st.integers(-40 * 24, 800 * 24).map(lambda hours: NOW - timedelta(hours=hours))
drawn_points = st.lists(
    st.tuples(moments, sources, st.sampled_from(Proof), st.sampled_from(["", "", "", "rows"])),
    max_size=30,
).map(lambda rows: [point(f"p{n}", *row) for n, row in enumerate(rows)])
counts = st.none() | st.integers(0, 12)
policies = st.builds(
    Policy,
    last=counts,
    within=st.none() | st.integers(1, 90).map(lambda d: timedelta(days=d)),
    hourly=counts,
    daily=counts,
    weekly=counts,
    monthly=counts,
    yearly=counts,
)
rules = policies.filter(lambda policy: not policy.is_empty)
zones = st.sampled_from([UTC, BERLIN, ZoneInfo("Pacific/Apia"), ZoneInfo("Asia/Kolkata")])


@given(drawn_points, policies, zones, st.randoms())
def test_the_order_of_the_points_changes_nothing(
    points: list[RestorePoint], policy: Policy, zone: ZoneInfo, chance: object
) -> None:
    shuffled = list(points)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(points, policy, zone=zone) == plan(shuffled, policy, zone=zone)


@given(drawn_points, policies, zones)
def test_every_point_is_decided_once_and_with_a_reason(
    points: list[RestorePoint], policy: Policy, zone: ZoneInfo
) -> None:
    found = plan(points, policy, zone=zone)
    decided = [decision.point.id for decision in (*found.keep, *found.remove)]
    assert sorted(decided) == sorted(p.id for p in points)
    assert all(decision.reasons for decision in (*found.keep, *found.remove))


@given(drawn_points, rules, st.data())
def test_a_larger_policy_keeps_all_that_a_smaller_one_keeps(
    points: list[RestorePoint], policy: Policy, data: st.DataObject
) -> None:
    grown: dict[str, Any] = {}
    for rule in dataclasses.fields(Policy):
        value = getattr(policy, rule.name)
        if rule.name == "within":
            grown[rule.name] = (value or timedelta(0)) + timedelta(
                days=data.draw(st.integers(1, 9))
            )
        else:
            grown[rule.name] = (value or 0) + data.draw(st.integers(0, 5))
    assert set(kept(plan(points, policy))) <= set(kept(plan(points, Policy(**grown))))


@given(drawn_points, policies, zones)
def test_planning_again_on_what_is_kept_removes_nothing(
    points: list[RestorePoint], policy: Policy, zone: ZoneInfo
) -> None:
    first = plan(points, policy, zone=zone)
    again = plan([decision.point for decision in first.keep], policy, zone=zone)
    assert again.remove == ()


@given(drawn_points, rules, st.sets(st.integers(0, 29)), st.timedeltas())
def test_what_must_stay_stays_whatever_the_clock_says(
    points: list[RestorePoint], policy: Policy, held: set[int], jump: timedelta
) -> None:
    try:
        now = NOW + jump
    except OverflowError:
        now = NOW
    holds = {f"p{n}": "case 17" for n in held}
    stay = set(kept(plan(points, policy, holds=holds, now=now)))
    assert {p.id for p in points} & set(holds) <= stay
    for source in ("db", "files"):
        own = sorted((p for p in points if p.source == source), key=lambda p: (p.time, p.id))
        if own:
            assert own[-1].id in stay
        proven = [p for p in own if p.proof == Proof.PROVEN and not p.failed]
        if proven:
            assert proven[-1].id in stay


@given(drawn_points, rules)
def test_points_dated_in_the_future_push_nothing_out(
    points: list[RestorePoint], policy: Policy
) -> None:
    """Somebody with a write key cannot make retention remove good points by dating his ahead."""
    past = [p for p in points if p.time <= NOW]
    assert set(kept(plan(past, policy))) <= set(kept(plan(points, policy)))


@given(drawn_points, rules, st.integers(0, 60))
def test_a_clock_that_jumps_ahead_removes_nothing_by_itself(
    points: list[RestorePoint], policy: Policy, jumped: int
) -> None:
    """Without points that are newer in truth, a later `now` keeps the same."""
    past = [p for p in points if p.time <= NOW]
    later = NOW + timedelta(days=jumped)
    assert kept(plan(past, policy)) == kept(plan(past, policy, now=later))


@given(drawn_points, rules)
def test_a_failed_verification_never_takes_the_place_of_a_good_point(
    points: list[RestorePoint], policy: Policy
) -> None:
    stay = set(kept(plan(points, policy)))
    for decision in plan([p for p in points if not p.failed], policy).keep:
        counted = [r for r in decision.reasons if ": the newest of" in r or ": number" in r]
        assert not counted or decision.point.id in stay


def test_without_a_rule_everything_is_kept() -> None:
    found = plan(days(40), Policy())
    assert len(found.keep) == 40
    assert "no rule is set" in reasons(found, "p39")


def test_generations() -> None:
    found = plan(days(400), Policy(daily=7, weekly=4, monthly=3, yearly=2))
    dailies = [f"p{n}" for n in range(7)]
    # 25 November 2026 is a Wednesday: the Sundays before it, the ends of months, the last year.
    assert kept(found) == [*dailies, "p10", "p17", "p25", "p56", "p329"]
    assert "daily: the newest of 2026-11-25" in reasons(found, "p0")
    assert "weekly: the newest of week 47 of 2026" in reasons(found, "p3")
    assert "monthly: the newest of 2026-10" in reasons(found, "p25")
    assert reasons(found, "p329") == "yearly: the newest of 2025"
    assert len(found.remove) == 400 - len(found.keep)


def test_the_oldest_fills_a_rule_that_has_not_enough_periods() -> None:
    found = plan(days(40), Policy(daily=2, yearly=7))
    assert kept(found) == ["p0", "p1", "p39"]
    assert reasons(found, "p39") == "yearly: the oldest, as there are fewer than 7"


def test_a_day_begins_where_the_users_live() -> None:
    late = datetime(2026, 7, 1, 22, 30, tzinfo=UTC)  # half past midnight in Berlin
    points = [point("early", late - timedelta(hours=1)), point("late", late)]
    assert kept(plan(points, Policy(daily=1), zone=UTC)) == ["late"]
    assert kept(plan(points, Policy(daily=2), zone=UTC)) == ["late", "early"]
    found = plan(points, Policy(daily=2), zone=BERLIN)
    assert "daily: the newest of 2026-07-02" in reasons(found, "late")
    assert "daily: the newest of 2026-07-01" in reasons(found, "early")


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # 02:30 in Berlin, then 02:30 again
    points = [point("summer", first), point("winter", first + timedelta(hours=1))]
    found = plan(points, Policy(hourly=2), zone=BERLIN)
    assert all("hourly: the newest" in reasons(found, name) for name in ("summer", "winter"))


def test_the_day_of_25_hours_is_one_day() -> None:
    midnight = datetime(2026, 10, 25, 0, 0, tzinfo=BERLIN).astimezone(UTC)
    points = [point("first", midnight), point("last", midnight + timedelta(hours=24, minutes=59))]
    assert kept(plan(points, Policy(daily=1), zone=BERLIN)) == ["last"]


def test_a_failed_day_does_not_count() -> None:
    points = days(5)
    points[1] = dataclasses.replace(points[1], failed="rows")
    found = plan(points, Policy(daily=3))
    assert kept(found) == ["p0", "p2", "p3"]
    assert "its verification failed: rows" in found.remove[0].reasons[0]


def test_a_good_point_stands_for_its_day_even_if_a_failed_one_is_newer() -> None:
    morning = NOW - timedelta(hours=30)
    points = [
        point("good", morning),
        point("bad", morning + timedelta(hours=2), failed="rows"),
        point("newest", NOW - timedelta(hours=1)),
    ]
    assert kept(plan(points, Policy(daily=2))) == ["newest", "good"]


def test_where_every_point_failed_they_are_kept_as_if_they_were_good() -> None:
    points = [dataclasses.replace(p, failed="rows") for p in days(5)]
    assert kept(plan(points, Policy(daily=3))) == ["p0", "p1", "p2"]


def test_the_last_proven_point_outlives_every_rule() -> None:
    points = days(50)
    points[40] = dataclasses.replace(points[40], proof=Proof.PROVEN)
    points[45] = dataclasses.replace(points[45], proof=Proof.PROVEN)
    found = plan(points, Policy(last=1))
    assert kept(found) == ["p0", "p40"]
    assert reasons(found, "p40") == "the last proven of its source"


def test_what_was_proven_stays_though_its_proof_was_taken() -> None:
    """By a scrub that cannot open what it reads, for one; until another point is proven."""
    points = days(50)
    points[40] = dataclasses.replace(points[40], failed="lost", best_proof=Proof.PROVEN)
    found = plan(points, Policy(last=1))
    assert kept(found) == ["p0", "p40"]
    assert reasons(found, "p40") == "the last that was proven, and nothing is that now"
    points[20] = dataclasses.replace(points[20], proof=Proof.PROVEN, best_proof=Proof.PROVEN)
    assert kept(plan(points, Policy(last=1))) == ["p0", "p20"]


def test_what_a_kept_point_needs_is_kept_and_so_on() -> None:
    needs = {"p1": ["p7"], "p7": ["p9"], "p3": ["p4"]}
    found = plan(days(12), Policy(daily=2), needs=needs)
    assert kept(found) == ["p0", "p1", "p7", "p9"]
    assert reasons(found, "p9") == "needed by p7"


def test_a_source_may_have_rules_of_its_own() -> None:
    points = days(6) + [dataclasses.replace(p, id=f"f{p.id}", source="files") for p in days(6)]
    found = plan_retention(points, {"files": Policy(last=1)}, Policy(last=3), {}, NOW, UTC)
    assert sorted(kept(found)) == ["fp0", "p0", "p1", "p2"]


def test_where_backups_stopped_nothing_runs_out() -> None:
    old = [dataclasses.replace(p, time=p.time - timedelta(days=500)) for p in days(20)]
    assert kept(plan(old, Policy(within=timedelta(days=3)))) == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("policy", "expires"),
    [
        (Policy(daily=30), datetime(2026, 12, 25, tzinfo=BERLIN)),
        (Policy(weekly=1), datetime(2026, 11, 30, tzinfo=BERLIN)),
        (Policy(monthly=2), datetime(2027, 1, 1, tzinfo=BERLIN)),
        (Policy(yearly=7, daily=1), datetime(2033, 1, 1, tzinfo=BERLIN)),
        (Policy(within=timedelta(days=7)), NOW - timedelta(hours=1) + timedelta(days=7)),
        (Policy(hourly=2), datetime(2026, 11, 25, 14, tzinfo=BERLIN)),
        (Policy(last=3), None),
        (Policy(), None),
        (Policy(yearly=9999), None),
    ],
)
def test_when_a_point_may_expire(policy: Policy, expires: datetime | None) -> None:
    found = plan(days(3), policy, zone=BERLIN)
    assert found.keep[0].expires == expires


def test_a_point_on_hold_does_not_expire() -> None:
    found = plan(days(3), Policy(daily=1), holds={"p0": "", "p2": "case 17"})
    assert kept(found) == ["p0", "p2"]
    assert [decision.expires for decision in found.keep] == [None, None]
    assert reasons(found, "p2") == "on hold: case 17"
