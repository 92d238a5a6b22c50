"""Plan how a cluster comes back to a moment: the base backup, and the WAL that leads on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from cellarer.flows.branch import OwnLog, conflict
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
OwnOf = Callable[[PointReader], OwnLog]


@dataclass(frozen=True)
class RecoveryPlan:
    """Which base backup is restored, and how far WAL is replayed on it.

    `log` is None where the vault has no WAL of that cluster, or WAL of another branch of its life,
    which `conflict` says then. `expected_lsn` is what a recovery to the end of the WAL reaches at
    least.
    """

    plan: RestorePlan
    base: Base
    history: History
    reach: WalReach
    log: LogReader | None
    conflict: str = ""

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


class Branches:
    """Which base backups the log in the vault leads on from, of those that were looked at."""

    def __init__(
        self, vault: Vault, logs: Mapping[str, Log], base_of: BaseOf, own_of: OwnOf
    ) -> None:
        self.conflicts: dict[str, str] = {}
        self._vault, self._logs, self._base_of, self._own_of = vault, logs, base_of, own_of

    def bases(self, points: Sequence[RestorePoint], *, fitting: bool) -> Iterator[Base]:
        """Base backups of these points; where `fitting`, only those that the log leads on from."""
        for point in points:
            reader = open_point(self._vault, point.id)
            base = self._base_of(point, reader)
            if point.id not in self.conflicts:
                log, own = self._logs.get(base.system), self._own_of(reader)
                told = conflict(base, own, log.reader, log.continuity) if log else ""
                self.conflicts[point.id] = told
            if not (fitting and self.conflicts[point.id]):
                yield base

    def log_of(self, base: Base) -> Log | None:
        """The log that leads on from a base backup."""
        return None if self.conflicts[base.point.id] else self._logs.get(base.system)

    def known_of(self, base: Base) -> Continuity:
        """What there is of that log."""
        log = self.log_of(base)
        return log.continuity if log else Continuity(segment_bytes=base.segment_bytes)

    def reasons(self, chosen: Base) -> Iterator[str]:
        """What to know of base backups of another branch."""
        for point, why in self.conflicts.items():
            if why and point == chosen.point.id:
                yield f"the log in the vault is of another branch, and is left out: {why}"
            elif why:
                yield f"{point} does not do: the log in the vault is of another branch: {why}"

    def of_another(self, error: UsageError) -> UsageError:
        """The same error, or what is behind it where the log is of another branch."""
        told = [f"{point}: {why}" for point, why in self.conflicts.items() if why]
        if not told:
            return error
        return UsageError(
            "base backups and the log in the vault are of different branches of the cluster's life",
            detail="\n".join([*told, error.detail]),
            hint="a cluster was recovered twice, or a copy of it went on: name the base backup that"
            " is wanted as it is with --point, or take one of the server that the log is of",
        )


def plan_recovery(
    vault: Vault,
    source: str,
    wanted: str,
    target: RecoveryTarget,
    now: datetime,
    base_of: BaseOf,
    own_of: OwnOf,
    read_log: ReadLog,
) -> RecoveryPlan:
    """Choose a base backup and judge whether its WAL reaches the target, before anything is done.

    `wanted` is a point's id, or `latest` for the best one: that is none of another branch than the
    log, as nobody knows which of the two is wanted. Raises `UsageError` where there is none,
    `TargetFailed` with what can be reached where the target lies beyond a gap or the end.
    """
    points = survey(vault).points
    refuse_damaged(vault, points, wanted)
    own = [point for point in points if point.source == source]
    logs = {log.system: log for log in read_logs(vault, points, read_log)}

    branches = Branches(vault, logs, base_of, own_of)
    undecided = wanted == LATEST and target.kind != "immediate"

    def way_from(candidates: Sequence[RestorePoint]) -> Way:
        def history_of(base: Base) -> History:
            return wanted_history(target, base, branches.known_of(base))

        try:
            bases = branches.bases(candidates, fitting=undecided)
            base, reasons = choose_base(bases, target, history_of)
        except UsageError as error:
            raise branches.of_another(error) from error
        history, known = history_of(base), branches.known_of(base)
        refuse_hidden(target, history, known)
        reach = wal_reach(base, history, known)
        until = _until(branches.log_of(base), reach)
        refuse_unreachable(target, base, reach, until)
        return Way(base, reasons, history, reach, until)

    way = _whole_first(_candidates(own, source, wanted), target, way_from)
    base, log = way.base, branches.log_of(way.base)
    reasons = [*way.reasons, *branches.reasons(base)]
    chosen = plan_restore(own, source, base.point.id, None, now, None)
    if base.system not in logs:
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
    reader, other = log.reader if log else None, branches.conflicts[base.point.id]
    return RecoveryPlan(plan, base, way.history, way.reach, reader, other)


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
