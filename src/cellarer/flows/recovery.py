"""Plan how a cluster comes back to a moment: the base backup, and the WAL that leads on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from cellarer.domain.continuity import Continuity
from cellarer.domain.recovery import LATEST, RestorePlan, find_point, plan_restore
from cellarer.domain.recovery_course import (
    Base,
    WalReach,
    choose_base,
    refuse_hidden,
    refuse_unreachable,
    wal_reach,
    wanted_history,
)
from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.domain.snapshot import RestorePoint
from cellarer.domain.wal import History, Segment, lsn_text
from cellarer.errors import CellarerError, TargetFailed, UsageError
from cellarer.flows.points import other_clusters, refuse_damaged, survey
from cellarer.flows.restore import open_point
from cellarer.flows.windows import Log, ReadLog, read_logs
from cellarer.ports import PointReader
from cellarer.vault.log import LogReader
from cellarer.vault.vault import Vault


@dataclass(frozen=True)
class Way:
    """From which base backup, why, along which history, how far that leads, and until when."""

    base: Base
    reasons: list[str]
    history: History
    reach: WalReach
    until: datetime | None


BaseOf = Callable[[RestorePoint, PointReader], Base]


@dataclass(frozen=True)
class RecoveryPlan:
    """Which base backup is restored, and how far WAL is replayed on it.

    `log` is None where the vault has no WAL of that cluster. `expected_lsn` is what a recovery to
    the end of the WAL reaches at least.
    """

    plan: RestorePlan
    base: Base
    history: History
    reach: WalReach
    log: LogReader | None

    @property
    def expected_lsn(self) -> str:
        """As text. The last segment may hold nothing but its beginning."""
        if self.reach.last is None:
            return lsn_text(self.base.stop_lsn)
        size = self.base.segment_bytes
        return lsn_text(max(self.base.stop_lsn, Segment.parse(self.reach.last, size).start(size)))

    @property
    def replay_bytes(self) -> int:
        """About how much WAL there is to replay."""
        return max(self.reach.lsn - self.base.start_lsn, 0)


def plan_recovery(
    vault: Vault,
    source: str,
    wanted: str,
    target: RecoveryTarget,
    now: datetime,
    base_of: BaseOf,
    read_log: ReadLog,
) -> RecoveryPlan:
    """Choose a base backup and judge whether its WAL reaches the target, before anything is done.

    `wanted` is a point's id, or `latest` for the best one. Raises `UsageError` where there is none,
    `TargetFailed` with what can be reached where the target lies beyond a gap or the end.
    """
    points = survey(vault).points
    refuse_damaged(vault, points, wanted)
    own = [point for point in points if point.source == source]
    logs = {log.system: log for log in read_logs(vault, points, read_log)}

    def known_of(base: Base) -> Continuity:
        log = logs.get(base.system)
        return log.continuity if log else Continuity(segment_bytes=base.segment_bytes)

    def way_from(candidates: Sequence[RestorePoint]) -> Way:
        bases = (base_of(point, open_point(vault, point.id)) for point in candidates)
        base, reasons = choose_base(bases, target, lambda b: wanted_history(target, b, known_of(b)))
        history = wanted_history(target, base, known_of(base))
        refuse_hidden(target, history, known_of(base))
        reach = wal_reach(base, history, known_of(base))
        until = _until(logs.get(base.system), reach)
        refuse_unreachable(target, base, reach, until)
        return Way(base, reasons, history, reach, until)

    way = _whole_first(_candidates(own, source, wanted), target, way_from)
    base, reasons, log = way.base, way.reasons, logs.get(way.base.system)
    chosen = plan_restore(own, source, base.point.id, None, now, None)
    if log is None:
        reasons = [*reasons, "the vault has no WAL of this cluster: nothing later can be reached"]
    if others := other_clusters(own, base.point):
        told = f"it is of cluster {base.system}; others of {source} are of {', '.join(others)}"
        reasons = [*reasons, told]
    loss = now - _state(base, target, way.until)
    plan = replace(
        chosen,
        reasons=(*reasons, *chosen.reasons[1:]),
        loss_seconds=max(loss.total_seconds(), 0.0),
    )
    return RecoveryPlan(plan, base, way.history, way.reach, log.reader if log else None)


def _whole_first(
    candidates: Sequence[RestorePoint],
    target: RecoveryTarget,
    way_from: Callable[[Sequence[RestorePoint]], Way],
) -> Way:
    """The way from a base backup that was whole at its source, where it leads as far as any."""
    whole = [point for point in candidates if not point.flaws]
    best = way_from(candidates)
    if not best.base.point.flaws or not whole or target.kind == "immediate":
        return best
    with suppress(UsageError, TargetFailed):
        other = way_from(whole)
        same = other.base.system == best.base.system
        same = same and other.history.timeline == best.history.timeline
        if same and other.reach.lsn >= best.reach.lsn:
            return other
    return best


def _until(log: Log | None, reach: WalReach) -> datetime | None:
    """When the last of the WAL was stored to which it leads: that holds nothing later."""
    if log is None:
        return None
    if reach.gap is not None:
        with suppress(CellarerError):  # only pieces of it may be there
            return log.reader.header(reach.last).stored if reach.last else None
        return None
    windows = [each for each in log.windows if each.window.timeline == reach.timeline]
    return windows[0].until if windows and reach.last is not None else None


def _state(base: Base, target: RecoveryTarget, until: datetime | None) -> datetime:
    """Of about when the recovered cluster will be."""
    if target.time is not None:
        return target.time
    return until if target.kind == "latest" and until is not None else base.finished_at


def _candidates(points: Sequence[RestorePoint], source: str, wanted: str) -> Sequence[RestorePoint]:
    """The points to choose from, newest first."""
    if not points:
        raise UsageError(
            f"there is no restore point of {source}",
            hint="take one with `cellarer backup`, or name another source",
        )
    chosen = points if wanted == LATEST else [find_point(points, wanted)]
    for point in chosen:
        if point.wal is None:
            raise UsageError(
                f"restore point {point.id} is no base backup",
                hint="restore it to a database or a directory instead of pgdata:",
            )
    return chosen
