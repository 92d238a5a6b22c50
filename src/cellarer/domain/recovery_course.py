"""Choosing the base backup for a moment, and judging whether WAL leads from it to there; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cellarer.domain.continuity import Continuity, Gap
from cellarer.domain.recovery_target import CURRENT, LATEST, RecoveryTarget
from cellarer.domain.snapshot import RestorePoint
from cellarer.domain.wal import (
    History,
    Segment,
    end_of_segment,
    history_name,
    lsn_text,
    parse_lsn,
    segment_at,
)
from cellarer.errors import TargetFailed, UsageError


@dataclass(frozen=True)
class BaseWal:
    """Where in the WAL a base backup lies. LSNs are numbers.

    `whole_end` says whether its own WAL holds the segment in which it ended to that segment's end.
    """

    timeline: int
    start_lsn: int
    stop_lsn: int
    segment_bytes: int
    whole_end: bool

    @property
    def own_end(self) -> int:
        """The end of the segment in which it ended."""
        return end_of_segment(self.stop_lsn, self.segment_bytes)


@dataclass(frozen=True)
class Base(BaseWal):
    """A base backup, as far as choosing needs it."""

    point: RestorePoint
    system: str
    finished_at: datetime


@dataclass(frozen=True)
class WalReach:
    """How far WAL leads from a base backup to the target's timeline, and what ends it there.

    `last` is the last segment on the way, None where there is none behind the base backup's own.
    """

    timeline: int
    lsn: int
    last: str | None
    gap: Gap | None = None


def choose_base(
    bases: Iterable[Base],
    target: RecoveryTarget,
    history_of: Callable[[Base], History],
) -> tuple[Base, list[str]]:
    """The newest base backup, of those given newest first, from which the target can be reached.

    It ended before the target, and the history of the timeline that is asked for leads through it;
    with the reasons. Raises `UsageError` where there is none. When a transaction's number or a name
    was, is not known: then the newest is taken.
    """
    passed: list[str] = []
    for base in bases:
        history = history_of(base)
        why = _unfit(base, target, history)
        if why is not None:
            passed.append(f"{base.point.id} {why}")
            continue
        reasons = [f"the newest base backup from which {target.text} can be reached"]
        if passed:
            reasons.append(f"newer ones do not do: {passed[0]}")
        if target.kind in ("xid", "name"):
            reasons.append(
                "when that was is not known: if before this base backup ended, name an older one"
                " with --point"
            )
        return base, [*reasons, f"along timeline {history.timeline}"]
    raise UsageError(
        f"no base backup leads to {target.text}",
        detail="; ".join(passed[:5]) or "there is none",
        hint="`cellarer points` lists them, and the windows of WAL; name a later moment or another"
        " --timeline",
    )


def wanted_history(target: RecoveryTarget, base: BaseWal, log: Continuity) -> History:
    """The history of the timeline to recover along. Raises `UsageError` for an unknown one."""
    if target.kind == "immediate" or target.timeline == CURRENT:
        timeline = base.timeline
    elif target.timeline == LATEST:
        timeline = log.newest_timeline(base.timeline)
    else:
        timeline = int(target.timeline)
    if timeline not in log.histories and timeline not in (1, base.timeline):
        raise UsageError(
            f"the history of timeline {timeline} is not in the vault",
            detail=f"known are {', '.join(map(str, sorted({1, *log.histories})))}",
            hint="name another --timeline",
        )
    return log.histories.get(timeline, History(timeline))


def refuse_hidden(target: RecoveryTarget, history: History, log: Continuity) -> None:
    """Raise `TargetFailed` where the newest timeline is wanted, and what leads to one is not known:
    it has WAL, and no history.
    """
    hidden = [
        window.timeline
        for window in log.windows
        if window.timeline not in log.histories
        and window.timeline > history.timeline
        and (target.kind == "latest"
             or (target.kind == "lsn" and parse_lsn(target.value) > window.from_lsn))
    ]  # fmt: skip
    if hidden and target.timeline == LATEST:
        name = history_name(hidden[0])
        raise TargetFailed(
            f"{name} is missing on every replica, so it is not known what leads to timeline "
            f"{hidden[0]}",
            detail=f"there is WAL of that timeline, and {target.text} may lie there",
            hint="While a server has the file in its pg_wal, `cellarer wal push` stores it again. "
            f"To recover along the timeline before: --timeline {history.timeline}.",
        )


def wal_reach(base: BaseWal, history: History, log: Continuity) -> WalReach:
    """How far the WAL leads from the end of the base backup along a history."""
    size = base.segment_bytes
    starts = [base.stop_lsn, base.own_end] if base.whole_end else [base.stop_lsn]
    found = max(
        (log.reach(base.timeline, start, history.timeline) for start in starts),
        key=lambda each: each.lsn,
    )
    last = None
    if found.lsn > base.own_end or (found.lsn > base.stop_lsn and not base.whole_end):
        last = segment_at(found.timeline, found.lsn - 1, size).name(size)
    return WalReach(history.timeline, found.lsn, last, found.gap)


def proof_end(base: BaseWal, log: Continuity, most_bytes: int) -> int:
    """Up to which segment's end a base backup is recovered when it is proven.

    As far as WAL leads on its own timeline, and `most_bytes` behind its own end at the most; that
    end where no whole segment follows.
    """
    history = wanted_history(RecoveryTarget("immediate"), base, log)
    reach = min(wal_reach(base, history, log).lsn, base.own_end + most_bytes)
    return max(base.own_end, reach // base.segment_bytes * base.segment_bytes)


def refuse_unreachable(
    target: RecoveryTarget, base: Base, reach: WalReach, until: datetime | None
) -> None:
    """Raise `TargetFailed` with what can be reached, where the target lies beyond it.

    `until` is when the last of the reachable WAL was stored, where known: it holds nothing later.
    """
    beyond = ""
    if target.kind == LATEST and reach.gap:
        beyond = "there is more behind it"
    elif target.kind == "lsn" and parse_lsn(target.value) >= reach.lsn:
        # A record has to begin there.
        beyond = f"LSN {target.value} does not lie before that"
    elif target.time is not None and reach.last is None:
        beyond = "nothing is there that follows the base backup"
    elif target.time is not None and until is not None and target.time > until:
        beyond = f"its end was stored at {_moment(until)}"
    if not beyond:
        return
    what = f"the WAL in the vault ends at LSN {lsn_text(reach.lsn)}; {beyond}"
    if reach.gap:
        what = f"WAL is missing from {reach.gap.first} to {reach.gap.last}; {beyond}"
    stored = f", stored at {_moment(until)}" if until else ""
    raise TargetFailed(
        f"the WAL in the vault does not reach {target.text}",
        detail=f"{what}\nwhat can be reached from base backup {base.point.id}:"
        f" {_moment(base.finished_at)} to LSN {lsn_text(reach.lsn)}{stored}",
        hint=_way_out(target, base, reach),
    )


def _way_out(target: RecoveryTarget, base: Base, reach: WalReach) -> str:
    if not reach.gap:
        hint = "Name an earlier moment, or `latest`: all that there is."
        return hint if target.kind != "lsn" else f"{hint} Nothing has been written."
    if reach.last is None:
        return f"Recover to the end of the base backup: --immediate --point {base.point.id}."
    # A recovery stops at records: the beginning of the last segment has some behind it.
    before = Segment.parse(reach.last, base.segment_bytes).start(base.segment_bytes)
    return f"Recover to what is before the gap: --lsn {lsn_text(before)}."


def _unfit(base: Base, target: RecoveryTarget, history: History) -> str | None:
    """Why the base backup cannot be recovered to the target; None where it can."""
    if not history.leads_through(base.timeline, base.stop_lsn):
        return f"is of timeline {base.timeline}, which timeline {history.timeline} left before it"
    if target.time is not None and base.finished_at > target.time:
        return f"ended at {_moment(base.finished_at)}"
    if target.kind == "lsn" and base.stop_lsn > parse_lsn(target.value):
        return f"ends at LSN {lsn_text(base.stop_lsn)}"
    return None


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
