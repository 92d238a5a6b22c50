"""Choosing what to restore: which point, why, and what is lost by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cellarer.domain.quantity import about_duration
from cellarer.domain.snapshot import Proof, RestorePoint, ahead
from cellarer.errors import UsageError

LATEST = "latest"


@dataclass(frozen=True)
class RestorePlan:
    """The point to restore. `loss_seconds` is the time whose changes it does not hold.

    `restore_bytes` are read, which is the whole point until the target was asked; `replaces` names
    what is there now and would go. `forecast_seconds` is None where nothing like it was measured.
    """

    point: RestorePoint
    reasons: tuple[str, ...]
    restore_bytes: int
    forecast_seconds: float | None
    loss_seconds: float
    replaces: tuple[str, ...] = ()


def plan_restore(
    points: Sequence[RestorePoint],
    source: str,
    wanted: str,
    at: datetime | None,
    now: datetime,
    proven_seconds: float | None,
) -> RestorePlan:
    """Choose among the points, newest first by the order of their commits, not by their clocks.

    `wanted` is `latest`, an id, or the last part of one; `at` asks for the newest point not after
    it. The forecast is the time in which a sandbox last brought this point up, where one did.
    Raises `UsageError` where nothing fits.
    """
    own = [point for point in points if point.source == source]
    if not own:
        known = ", ".join(sorted({point.source for point in points})) or "none yet"
        raise UsageError(
            f"there is no restore point of {source}",
            detail=f"sources with points: {known}",
            hint="take one with `cellarer backup`, or name another source",
        )
    if at is not None:
        point, reason = _at(own, at), f"the newest point not after {_moment(at)}"
    elif wanted == LATEST:
        point, reason = own[0], "the newest point"
    else:
        point, reason = find_point(own, wanted), "named by its id"
    reasons = (
        reason,
        *_flaws(point, own),
        _proof_reason(point),
        *_clock_reasons(point, own, now),
    )
    end = min(at, now) if at is not None else now
    loss_seconds = max((end - point.time).total_seconds(), 0.0)
    return RestorePlan(point, reasons, point.read_bytes, proven_seconds, loss_seconds)


def find_point(points: Sequence[RestorePoint], wanted: str) -> RestorePoint:
    """The point with this id, or whose id ends with it; `latest` of one source. Points come newest
    first. Raises `UsageError`.
    """
    if wanted == LATEST and len({point.source for point in points}) == 1:
        return points[0]
    matches = [p for p in points if p.id == wanted or p.id.endswith(f"-{wanted}")]
    if len(matches) != 1:
        problem = "is more than one point" if matches else "is no restore point"
        raise UsageError(f"{wanted} {problem}", hint="`cellarer points` lists them")
    return matches[0]


def _at(points: Sequence[RestorePoint], at: datetime) -> RestorePoint:
    before = [point for point in points if point.time <= at]
    if not before:
        raise UsageError(
            f"no restore point is as old as {_moment(at)}",
            detail=f"the oldest is of {_moment(points[-1].time)}",
            hint="`cellarer points` lists them",
        )
    return before[0]


def _proof_reason(point: RestorePoint) -> str:
    if point.failed:
        return f"its verification FAILED: {point.failed}; choose another point if there is one"
    if point.proof_time is None:
        return "not verified yet: only known to be stored"
    return f"{point.proof.word} at {_moment(point.proof_time)}" + (
        "" if point.proof == Proof.PROVEN else ", not proven"
    )


def _flaws(point: RestorePoint, own: Sequence[RestorePoint]) -> Iterator[str]:
    """What was damaged at its source already, when it was read. Points come newest first."""
    if point.flaws:
        yield (
            f"DAMAGED AT ITS SOURCE: {point.flaws} pages were damaged when they were read, and are "
            "in it as they were"
        )
    for other in own[: own.index(point)]:
        if other.flaws and not point.flaws:
            yield f"{other.id} is newer, and was damaged at its source"


def _clock_reasons(
    point: RestorePoint, own: Sequence[RestorePoint], now: datetime
) -> Iterator[str]:
    """What to know where clocks were wrong."""
    early = ahead(point.time, now)
    if early is not None:
        yield (
            f"it is dated {about_duration(early.total_seconds())} in the future: the clock of its "
            "writer was wrong, and what it lacks cannot be known"
        )
    for other in own:
        if other.time > point.time and ahead(other.time, now):
            yield f"{other.id} is dated later, in the future: its writer's clock was wrong"


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
