"""Which restore points are kept, why, and which may go.

A point stays if any rule wants it. Whatever the rules say, these stay too: the newest of a source,
its last proven one, a point on hold, and what a kept point needs. Time enters as an argument, and
only to tell points that are dated in the future: these stay and count for nothing, so that a clock
that jumped, or a writer that lies about the time, pushes nothing out. Periods are those in which
there are points; without new points nothing ages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo

from cellarer.domain.snapshot import Proof, RestorePoint

NO_RULE = "no rule is set: every point is kept"


@dataclass(frozen=True)
class Policy:
    """The rules for one source. None: no such rule. `within` is a span, the others are counts."""

    last: int | None = None
    within: timedelta | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule at all, which keeps everything."""
        return self == Policy()


@dataclass(frozen=True)
class Decision:
    """A point with everything that speaks for keeping it, or with why nothing does.

    `expires`, for a kept point, is the earliest moment at which the rules may give it up if
    backups go on as often as the rules count; None where only later events decide.
    """

    point: RestorePoint
    reasons: tuple[str, ...]
    expires: datetime | None = None


@dataclass(frozen=True)
class RetentionPlan:
    """What stays and what may go, newest first."""

    keep: tuple[Decision, ...]
    remove: tuple[Decision, ...]


@dataclass
class _Wanted:
    """What was found to speak for a point so far."""

    reasons: list[str] = field(default_factory=list)
    moments: list[datetime] = field(default_factory=list)


_Found = dict[str, _Wanted]


def plan_retention(
    points: Sequence[RestorePoint],
    policies: Mapping[str, Policy],
    general: Policy,
    holds: Mapping[str, str],
    now: datetime,
    zone: tzinfo,
    needs: Mapping[str, Sequence[str]] | None = None,
    behind: Collection[str] = (),
    misdated: Collection[str] = (),
) -> RetentionPlan:
    """Decide about all restore points of a vault, in any order.

    Those of another cluster under the name of a source count by themselves: a server was made anew,
    or a config leads to the wrong one. `policies` has the sources with rules of their own,
    `general` is for the others, also for those that no config names any more. `holds` is point ->
    reason; `needs` is point -> the points without which it cannot be restored. `zone` says where a
    day begins. `behind` are points that were committed after one that is dated later, and nothing
    after them: they stay. `misdated` are all that were committed after one that is dated later: in
    a period they count beside the others, and take no place from one that is dated rightly.
    """
    found: _Found = {point.id: _Wanted() for point in points}
    for source, cluster in {(point.source, point.cluster) for point in points}:
        own = [p for p in points if (p.source, p.cluster) == (source, cluster)]
        own.sort(key=lambda point: (point.time, point.id), reverse=True)
        _judge(own, policies.get(source, general), now, zone, misdated, found)
    for point in points:
        if point.id in holds:
            found[point.id].reasons.append(hold_reason(holds[point.id]))
        if point.id in behind:
            found[point.id].reasons.append("committed after a point that is dated later: kept")
    _keep_needed(needs or {}, found)
    newest_first = sorted(points, key=lambda point: (point.time, point.id), reverse=True)
    held = set(holds)
    keep = [_kept(p, found[p.id], p.id in held) for p in newest_first if found[p.id].reasons]
    remove = [_removed(p) for p in newest_first if not found[p.id].reasons]
    return RetentionPlan(tuple(keep), tuple(remove))


def _judge(
    own: Sequence[RestorePoint],
    policy: Policy,
    now: datetime,
    zone: tzinfo,
    misdated: Collection[str],
    found: _Found,
) -> None:
    """All rules on the points of one source, newest first."""
    if policy.is_empty:
        for point in own:
            found[point.id].reasons.append(NO_RULE)
        return
    past = [point for point in own if point.time <= now]
    for point in own:
        if point.time > now:
            found[point.id].reasons.append("dated in the future: it does not count")
    for newest in {own[0].id, *(point.id for point in past[:1])}:
        found[newest].reasons.append("the newest of its source")
    _keep_proven(own, found)
    if not past:
        return
    _keep_proven(past, found)
    # A failed verification does not take the place of a good point.
    ranked = [p for p in past if not p.failed] + [p for p in past if p.failed]
    if policy.last is not None:
        for number, point in enumerate(ranked[: policy.last], 1):
            found[point.id].reasons.append(f"last {policy.last}: number {number}")
    if policy.within is not None:
        _keep_within(past, policy.within, found)
    for rule, period in _PERIODS.items():
        count = getattr(policy, rule)
        if count:
            rightly = [point for point in ranked if point.id not in misdated]
            chosen = _keep_periods(rightly, rule, count, period, zone, found)
            others = [point for point in ranked if point.id in misdated]
            _keep_beside(others, rule, chosen, count, period, zone, found)


def _keep_proven(own: Sequence[RestorePoint], found: _Found) -> None:
    """The newest of those that reached the highest rung: the last of which most is known."""
    best = max((p.proof for p in own if not p.failed), default=Proof.STORED)
    once = max((p.best_proof for p in own), default=Proof.STORED)
    if once > best:
        # What took its proof may have been wrong, as a scrub that cannot open what it reads.
        last = next(p for p in own if p.best_proof == once)
        reason = f"the last that was {once.word}, and nothing is that now"
        if reason not in found[last.id].reasons:
            found[last.id].reasons.append(reason)
    if best > Proof.STORED:
        last = next(p for p in own if p.proof == best and not p.failed)
        reason = f"the last {best.word} of its source"
        if reason not in found[last.id].reasons:
            found[last.id].reasons.append(reason)


def _keep_within(past: Sequence[RestorePoint], within: timedelta, found: _Found) -> None:
    """Counted from the newest point, not from now: where backups stopped, nothing runs out."""
    newest = past[0].time
    for point in past:
        if newest - point.time <= within:
            found[point.id].reasons.append(f"within {_span(within)} of the newest")
            found[point.id].moments.append(point.time + within)


def _keep_periods(
    ranked: Sequence[RestorePoint],
    rule: str,
    count: int,
    period: _Period,
    zone: tzinfo,
    found: _Found,
) -> list[RestorePoint]:
    """The newest point of each period; the oldest of all where there are fewer periods."""
    representatives = _newest_of_each(ranked, period, zone)
    chosen = list(representatives.items())[:count]
    for key, point in chosen:
        found[point.id].reasons.append(f"{rule}: the newest of {period.name(key)}")
        _expire(point, count, period, zone, found)
    if ranked and len(representatives) < count:
        good = [point for point in ranked if not point.failed] or ranked
        if good[-1] not in representatives.values():
            reason = f"{rule}: the oldest, as there are fewer than {count}"
            found[good[-1].id].reasons.append(reason)
    return [point for _, point in chosen]


def _keep_beside(
    misdated: Sequence[RestorePoint],
    rule: str,
    chosen: Sequence[RestorePoint],
    count: int,
    period: _Period,
    zone: tzinfo,
    found: _Found,
) -> None:
    """Points whose date may be wrong stay beside those that a rule chose, and push none out."""
    oldest = min((point.time.astimezone(zone) for point in chosen), default=None)
    for key, point in list(_newest_of_each(misdated, period, zone).items())[:count]:
        if (
            oldest is None
            or len(chosen) < count
            or point.time >= oldest
            or key == period.key(oldest)
        ):
            found[point.id].reasons.append(f"{rule}: dated {period.name(key)}, which may be wrong")
            _expire(point, count, period, zone, found)


def _expire(point: RestorePoint, count: int, period: _Period, zone: tzinfo, found: _Found) -> None:
    """When a rule lets a point go that stands for a period."""
    end = period.after(point.time.astimezone(zone), count)
    if end is not None:
        found[point.id].moments.append(end)


def _newest_of_each(
    points: Sequence[RestorePoint], period: _Period, zone: tzinfo
) -> dict[object, RestorePoint]:
    representatives: dict[object, RestorePoint] = {}
    for point in points:
        representatives.setdefault(period.key(point.time.astimezone(zone)), point)
    return representatives


def _keep_needed(needs: Mapping[str, Sequence[str]], found: _Found) -> None:
    """What a kept point cannot do without, and what that needs in its turn."""
    waiting = [point for point, wanted in found.items() if wanted.reasons]
    seen = set(waiting)
    while waiting:
        by = waiting.pop()
        for needed in needs.get(by, ()):
            if needed not in found:
                continue
            found[needed].reasons.append(f"needed by {by}")
            if needed not in seen:
                seen.add(needed)
                waiting.append(needed)


def _kept(point: RestorePoint, wanted: _Wanted, held: bool) -> Decision:
    expires = None if held else max(wanted.moments, default=None)
    return Decision(point, tuple(wanted.reasons), expires)


def _removed(point: RestorePoint) -> Decision:
    failed = f"; its verification failed: {point.failed}" if point.failed else ""
    return Decision(point, (f"no rule wants it{failed}",))


@dataclass(frozen=True)
class _Period:
    """A part of the calendar: `key` of a local time, its name, and when the n-th next began."""

    key: Callable[[datetime], object]
    name: Callable[[object], str]
    after: Callable[[datetime, int], datetime | None]


def _day_after(day: date, moment: datetime) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=moment.tzinfo)


def _days(moment: datetime, count: int) -> datetime | None:
    return _on(lambda: _day_after(moment.date() + timedelta(days=count), moment))


def _weeks(moment: datetime, count: int) -> datetime | None:
    monday = moment.date() - timedelta(days=moment.weekday())
    return _on(lambda: _day_after(monday + timedelta(weeks=count), moment))


def _months(moment: datetime, count: int) -> datetime | None:
    months = moment.year * 12 + moment.month - 1 + count
    return _on(lambda: _day_after(date(months // 12, months % 12 + 1, 1), moment))


def _years(moment: datetime, count: int) -> datetime | None:
    return _on(lambda: _day_after(date(moment.year + count, 1, 1), moment))


def _hours(moment: datetime, count: int) -> datetime | None:
    hour = moment.replace(minute=0, second=0, microsecond=0)
    return _on(lambda: hour + timedelta(hours=count))


def _on(moment: Callable[[], datetime]) -> datetime | None:
    """None where a generous count leads past the calendar's end."""
    try:
        return moment()
    except (OverflowError, ValueError):
        return None


def _span(span: timedelta) -> str:
    days, rest = divmod(span, timedelta(days=1))
    return f"{days} d" if not rest else f"{span.total_seconds() / 3600:g} h"


def _hour_name(key: object) -> str:
    assert isinstance(key, tuple)
    return f"{key[0]} {key[1]:02d} h"


def _week_name(key: object) -> str:
    assert isinstance(key, tuple)
    return f"week {key[1]} of {key[0]}"


# An hour that comes twice, when summer ends, is two.
_PERIODS = {
    "hourly": _Period(lambda t: (t.date(), t.hour, t.fold), _hour_name, _hours),
    "daily": _Period(lambda t: t.date(), str, _days),
    "weekly": _Period(lambda t: t.isocalendar()[:2], _week_name, _weeks),
    "monthly": _Period(lambda t: f"{t:%Y-%m}", str, _months),
    "yearly": _Period(lambda t: f"{t:%Y}", str, _years),
}


def hold_reason(given: str) -> str:
    """Why a point on hold is kept, with the reason that was given for the hold, if any."""
    return f"on hold: {given}" if given else "on hold"
