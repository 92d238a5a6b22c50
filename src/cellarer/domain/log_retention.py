"""Which write-ahead log is kept, and why.

WAL is worth what base backups make of it: a recovery begins at the start of one, and every later
moment needs all WAL from there on. What lies before the start of the oldest one serves nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cellarer.domain.quantity import format_duration
from cellarer.domain.snapshot import RestorePoint, WalRange

BASE_BACKUP = "postgres_base"
"""The kind of the points that WAL is replayed on."""


@dataclass(frozen=True)
class LogDecision:
    """What becomes of the WAL of one cluster: all before `before` may go, nothing where that is 0.

    `point` is the base backup from whose start on WAL is kept. `warning` says what is wrong with
    keeping it, if anything is.
    """

    system: str
    before: int
    reason: str
    point: str = ""
    warning: str = ""


def plan_log(
    systems: Iterable[str], kept: Collection[RestorePoint], window: timedelta | None
) -> list[LogDecision]:
    """Decide about the WAL of each cluster, by the points that retention keeps.

    With a `window` WAL is kept from the base backup on with which every moment of so long before
    the newest one can be reached; older ones are restored to their own end, with the WAL that is in
    them. It is counted from the newest base backup, not from now: where they stopped, nothing runs
    out. Without it, WAL is kept from the oldest one on.
    """
    bases = [point for point in kept if point.kind == BASE_BACKUP]
    silent = min((point.id for point in bases if point.wal is None), default="")
    return [
        _keep_all(system, silent) if silent else _decide(system, _of(bases, system), window)
        for system in sorted(systems, key=int)
    ]


def _of(bases: Iterable[RestorePoint], system: str) -> list[tuple[RestorePoint, WalRange]]:
    return [(point, point.wal) for point in bases if point.wal and point.wal.system == system]


def _keep_all(system: str, silent: str) -> LogDecision:
    reason = f"all is kept: base backup {silent} does not say what it needs"
    return LogDecision(system, 0, reason, warning=f"{silent} does not say which WAL it needs")


def _decide(
    system: str, bases: list[tuple[RestorePoint, WalRange]], window: timedelta | None
) -> LogDecision:
    if not bases:
        return LogDecision(
            system,
            0,
            "all is kept, as there is no base backup",
            warning="there is no base backup: nothing can be recovered with this WAL",
        )
    serving, reason = bases, "the oldest base backup"
    if window is not None:
        newest = max(_finished(point) for point, _ in bases)
        early = [each for each in bases if _finished(each[0]) <= newest - window]
        if early:
            # The last of the early ones, and all behind it: of these one may have begun before it.
            since = max(_finished(point) for point, _ in early)
            serving = [each for each in bases if _finished(each[0]) >= since]
            span = format_duration(window)
            reason = f"so that every moment of {span} before the newest can be reached"
    point, wal = min(serving, key=lambda each: each[1].start_lsn)
    return LogDecision(
        system, wal.start_lsn, f"kept from the start of {point.id} on, {reason}", point.id
    )


def _finished(point: RestorePoint) -> datetime:
    """When a base backup ended: to no earlier moment it leads."""
    return point.time + timedelta(seconds=point.seconds)
