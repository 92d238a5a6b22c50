"""Apply the retention: plan, give points up, repack what is wasteful, collect what nobody needs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo

from cellarer.domain.log_retention import LogDecision, plan_log
from cellarer.domain.recovery import find_point
from cellarer.domain.retention import (
    Decision,
    Policy,
    RetentionPlan,
    hold_reason,
    plan_retention,
)
from cellarer.domain.snapshot import RestorePoint, behind_the_clock, misdated
from cellarer.errors import CellarerError, DamagedData, UsageError
from cellarer.flows.history import missed, refuse_gone
from cellarer.flows.immutability import keep_locked
from cellarer.flows.points import Survey, list_points, refuse_damaged, survey
from cellarer.ports import Progress, phase
from cellarer.vault.collect import Collected, Collector
from cellarer.vault.format import parse_time
from cellarer.vault.heads import SeenHeads
from cellarer.vault.ledger import LedgerEntry, entries, facts_in, record_fact
from cellarer.vault.locks import Locked
from cellarer.vault.log_reader import systems
from cellarer.vault.log_removal import LogRemoval, LogRemover
from cellarer.vault.needs import refuse_unreadable, require_all
from cellarer.vault.repack import Repacked, Repacker
from cellarer.vault.replicas import unreachable
from cellarer.vault.tombstones import forget, tombstones
from cellarer.vault.vault import Vault

GIVING_UP_TAKES = timedelta(hours=12)
"""A retention that was suspended for longer gives up nothing more."""

_HASH = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True)
class Rules:
    """The retention of a config. `general` is for the sources that have none of their own.

    `repack_bytes` is how much one run may copy out of wasteful packs; 0 for nothing. `wal_window`
    is how far back from the newest base backup every moment can be reached; None for all the way.
    """

    general: Policy
    policies: Mapping[str, Policy]
    zone: tzinfo
    repack_bytes: int = 0
    wal_window: timedelta | None = None


@dataclass(frozen=True)
class Retained:
    """What was decided and done. Without a run, `replicas` says what a run would mark."""

    keep: Sequence[Decision]
    remove: Sequence[Decision]
    replicas: Mapping[str, Collected] = field(default_factory=dict)
    locks: Mapping[str, Locked] = field(default_factory=dict)
    repacked: Repacked = field(default_factory=Repacked)
    wal: Sequence[LogDecision] = ()
    wal_removal: Mapping[str, LogRemoval] = field(default_factory=dict)

    @property
    def condemned_bytes(self) -> int:
        """What nobody needs, over all replicas."""
        return sum(each.condemned_bytes for each in self.replicas.values())

    @property
    def swept_bytes(self) -> int:
        """What of it was deleted now."""
        return sum(each.swept_bytes for each in self.replicas.values())


def retain(
    vault: Vault,
    rules: Rules,
    now: Callable[[], datetime],
    progress: Progress,
    *,
    dry_run: bool = False,
    seen: SeenHeads | None = None,
) -> Retained:
    """Decide about every restore point, and carry it out unless `dry_run`.

    With `seen`, what this host saw of the vault, nothing goes where points are gone. What the kept
    ones need stays locked on stores that lock; nothing is collected before that.

    Raises `VaultUnreachable` unless every replica answers and `DamagedData` where anything that
    the decision rests on cannot be read: then nothing is forgotten and nothing is deleted.
    """
    if not dry_run:
        for matter in ("forgotten", "collection", "abort", "repack"):
            vault.signer_for(matter)
    found = survey(vault)
    plan = decide(found, rules, now())
    require_all(vault.replicas)
    refuse_unreadable(vault)
    if seen is not None:
        refuse_gone(vault, found, seen)
    if dry_run:
        return _planned(vault, plan, rules, now)
    run = secrets.token_hex(8)
    plan = _announced(vault, plan, run, now)
    wal = plan_log(systems(vault), [each.point for each in plan.keep], rules.wal_window)
    if wal:
        vault.signer_for("wal-removed")
    began = now()
    for decision in plan.remove:
        if now() - began > GIVING_UP_TAKES:
            raise CellarerError(
                "this retention was suspended for too long: a hold may have come meanwhile",
                hint="run `cellarer retain` again",
            )
        forget(vault, decision.point.id, "; ".join(decision.reasons), now())
        progress.note(f"{decision.point.id} is given up: {'; '.join(decision.reasons)}")
    gone = [decision.point.id for decision in plan.remove]
    if gone:
        done = {"type": "retention", "kept": len(plan.keep), "removed": gone, "run": run}
        record_fact(vault, done, now())
    removal = _remove_log(vault, wal, now, progress) if wal else {}
    # First: the old packs go in the same run, and none of their locks is extended.
    repacked = _repack(vault, rules.repack_bytes, now, progress)
    locks = keep_locked(vault, now, progress)
    collected = _collect(vault, now, progress)
    return Retained(plan.keep, plan.remove, collected, locks, repacked, wal, removal)


def _planned(
    vault: Vault, plan: RetentionPlan, rules: Rules, now: Callable[[], datetime]
) -> Retained:
    """What a run would do. Changes nothing."""
    gone = [decision.point.id for decision in plan.remove]
    wal = plan_log(systems(vault), [each.point for each in plan.keep], rules.wal_window)
    collector = Collector(vault, now, without=gone)
    return Retained(
        plan.keep,
        plan.remove,
        {replica.name: collector.planned(replica) for replica in vault.replicas.replicas},
        repacked=Repacker(vault, now, rules.repack_bytes, without=gone).plan(),
        wal=wal,
        wal_removal=LogRemover(vault, wal).planned() if wal else {},
    )


def _announced(
    vault: Vault, plan: RetentionPlan, run: str, now: Callable[[], datetime]
) -> RetentionPlan:
    """Say what goes, then look once more for holds: one of the two sees the other.

    So every replica must take it, and must answer: whoever holds a point may reach only one.
    """
    if not plan.remove:
        return plan
    going = [decision.point.id for decision in plan.remove]
    away = record_fact(vault, {"type": "giving-up", "points": going, "run": run}, now())
    if away:
        raise unreachable("not every replica takes what is said of giving up points", away)
    held = holds(entries(vault))
    require_all(vault.replicas)
    refuse_unreadable(vault)
    spared = tuple(
        Decision(each.point, (hold_reason(held[each.point.id]),))
        for each in plan.remove
        if each.point.id in held
    )
    remove = tuple(each for each in plan.remove if each.point.id not in held)
    return replace(plan, keep=(*plan.keep, *spared), remove=remove)


def _open_giving_up(told: Iterable[LedgerEntry], now: datetime) -> set[str]:
    """The points that a retention said it gives up, and of which it did not say yet that it did.

    One that was killed never says so; it has stopped by itself after `GIVING_UP_TAKES`, though.
    """
    going: dict[str, set[str]] = {}
    for fact in facts_in(told, "giving-up", "retention"):
        if fact["type"] == "retention":
            going.pop(str(fact.get("run")), None)
        elif now - parse_time(str(fact["time"])) <= 2 * GIVING_UP_TAKES:
            going[str(fact["run"])] = set(map(str, fact["points"]))
    return {point for points in going.values() for point in points}


def decide(found: Survey, rules: Rules, now: datetime) -> RetentionPlan:
    """What the rules say about the points of a vault. Changes nothing."""
    held = holds(found.entries)
    behind = behind_the_clock(found.points, now)
    return plan_retention(
        found.points,
        rules.policies,
        rules.general,
        held,
        now,
        rules.zone,
        behind=behind,
        misdated=misdated(found.points, now),
    )


def holds(entries: Iterable[LedgerEntry]) -> dict[str, str]:
    """The points that are on hold, with the reason given."""
    held: dict[str, str] = {}
    for fact in facts_in(entries, "hold", "release"):
        point = str(fact.get("point"))
        if fact["type"] == "hold":
            held[point] = str(fact.get("reason", ""))
        else:
            held.pop(point, None)
    return held


def hold(vault: Vault, wanted: str, reason: str, now: datetime) -> RestorePoint:
    """Keep a point whatever the rules say. Raises `UsageError` where there is no such point."""
    points = list_points(vault)
    refuse_damaged(vault, points, wanted)
    point = find_point(points, wanted)
    told = " ".join(reason.split())
    record_fact(vault, {"type": "hold", "point": point.id, "reason": told}, now)
    going = _open_giving_up(entries(vault), now)
    if point.id in tombstones(vault):
        raise CellarerError(
            f"{point.id} was given up by retention at this very moment",
            hint="hold another point; `cellarer points` lists them",
        )
    if point.id in going:
        raise CellarerError(
            f"a retention that began before may be giving {point.id} up at this moment",
            detail="the hold is written down, and the next retention heeds it",
            hint="look with `cellarer points` when that one has ended: a point that is listed "
            "then is held",
        )
    return point


def release(
    vault: Vault, wanted: str, now: datetime, seen: SeenHeads | None = None
) -> tuple[str, bool]:
    """Let the rules decide again about a point that is on hold: its id, and False.

    Of what is gone nobody is told any more, and True is returned with what it is called: a point
    that was verified goes by its id, what the next one names or this host saw by its hash. Raises
    `UsageError`.
    """
    found = survey(vault)
    refuse_damaged(vault, found.points, wanted)
    if _HASH.fullmatch(wanted):
        hashes = [each for each in missed(found, seen) if each.startswith(wanted)]
        if len(hashes) != 1:
            raise UsageError(f"{wanted} is missed by nobody", hint="see `cellarer status`")
        return _gone(vault, "", hashes[0], now), True
    there = {commit.session for commit in found.commits}
    if wanted not in there and wanted in {record.point for record in found.proofs}:
        return _gone(vault, wanted, "", now), True
    point = find_point(found.points, wanted).id
    if point not in holds(found.entries):
        raise UsageError(f"{point} is not on hold")
    record_fact(vault, {"type": "release", "point": point}, now)
    return point, False


def _gone(vault: Vault, point: str, hash_: str, now: datetime) -> str:
    record_fact(vault, {"type": "release", "point": point, "gone": True, "missed": hash_}, now)
    return point or hash_


def _remove_log(
    vault: Vault,
    decisions: Sequence[LogDecision],
    now: Callable[[], datetime],
    progress: Progress,
) -> Mapping[str, LogRemoval]:
    """Before locks are extended: none of what goes needs to stay locked."""
    with phase(progress, "removing write-ahead log", None):
        return LogRemover(vault, decisions).run(now, progress.advance)


def _repack(
    vault: Vault, budget_bytes: int, now: Callable[[], datetime], progress: Progress
) -> Repacked:
    """Trouble with it keeps nobody from collecting."""
    repacker = Repacker(vault, now, budget_bytes)
    progress.begin("repacking", None)
    try:
        done = repacker.run(progress.advance)
        if done.repacked_bytes:
            record_fact(vault, _repack_fact(done), now())
    except CellarerError as error:
        return Repacked(problem=error)
    finally:
        progress.end()
    return done


def _repack_fact(done: Repacked) -> dict[str, object]:
    chosen = [each for each in done.plan.packs if each.pack not in done.left]
    return {
        "dead_bytes": sum(each.dead_bytes for each in chosen),
        "packs": len(chosen),
        "repacked_bytes": done.repacked_bytes,
        "type": "repack",
    }


def _collect(vault: Vault, now: Callable[[], datetime], progress: Progress) -> dict[str, Collected]:
    """One replica after the other; the trouble of one leaves the others their turn."""
    done: dict[str, Collected] = {}
    collector = Collector(vault, now)
    for replica in vault.replicas.replicas:
        try:
            with phase(progress, f"collecting on {replica.name}", None):
                collected = done[replica.name] = collector.collect(replica)
                if collected.swept_objects:
                    record_fact(vault, _fact(replica.name, collected), now())
        except CellarerError as error:
            done[replica.name] = replace(done.get(replica.name, Collected()), problem=error)
    return done


def _fact(replica: str, collected: Collected) -> dict[str, object]:
    return {
        "type": "collection",
        "replica": replica,
        "swept_bytes": collected.swept_bytes,
        "swept_objects": collected.swept_objects,
    }


def worst(retained: Retained) -> int:
    """The exit code: 6 for damage, the error's own for other trouble, else 0."""
    problems = [each.problem for each in retained.replicas.values() if each.problem]
    problems += [each.problem for each in retained.locks.values() if each.problem]
    problems += [each.problem for each in retained.wal_removal.values() if each.problem]
    problems += [retained.repacked.problem] if retained.repacked.problem else []
    if retained.repacked.left or any(isinstance(problem, DamagedData) for problem in problems):
        return DamagedData.exit_code
    return problems[0].exit_code if problems else 0
