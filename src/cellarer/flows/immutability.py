"""What points need stays locked, where the store locks; and whether it was seen to be so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cellarer.domain.finding import Finding
from cellarer.domain.quantity import about_duration
from cellarer.domain.snapshot import RestorePoint
from cellarer.errors import CellarerError
from cellarer.ports import Progress, retaining
from cellarer.vault import format as layout
from cellarer.vault.ledger import LedgerEntry, entries, facts_in, record_fact
from cellarer.vault.locks import Locked, extend_locks
from cellarer.vault.needs import Needs
from cellarer.vault.vault import Vault

DAILY = timedelta(hours=20)
"""A command that runs often looks at locks once a day, in whichever hour."""

_HINT = "run `cellarer retain`, or `cellarer sync` where there is no collect key, every day"


@dataclass(frozen=True)
class SeenLocks:
    """What some run saw of one replica, as the ledger has it.

    Nothing of what was looked at can be deleted before `locked_until`; `complete` says that this
    is everything that is needed.
    """

    measured_at: datetime
    locked_until: datetime
    complete: bool
    needed_objects: int
    extended_objects: int

    def covers(self, point: RestorePoint) -> bool:
        """Whether the point was there, whole, when this was seen."""
        return self.complete and point.time + timedelta(seconds=point.seconds) <= self.measured_at


def keep_locked(
    vault: Vault,
    now: Callable[[], datetime],
    progress: Progress,
    *,
    unless_seen_within: timedelta | None = None,
) -> dict[str, Locked]:
    """Extend locks on every replica that locks, and write down what was seen; any key may.

    A replica that was looked at a short while ago may be left out. One that is in trouble leaves
    the others their turn.
    """
    locking = {r.name: (r, lock) for r in vault.replicas.replicas if (lock := retaining(r.store))}
    if locking and unless_seen_within is not None:
        for name, seen in seen_locks(entries(vault)).items():
            if seen.complete and now() - seen.measured_at < unless_seen_within:
                locking.pop(name, None)
    if not locking:
        return {}
    needs = Needs(vault)
    needs.estimate()
    outcomes = {}
    for name, (replica, lock) in locking.items():
        progress.begin(f"looking at the locks on {name}", None)
        try:
            outcomes[name] = extend_locks(vault, replica, lock, needs, now)
            if outcomes[name].looked_objects:
                record_fact(vault, _fact(name, outcomes[name]), now())
        except CellarerError as error:
            outcomes.setdefault(name, Locked(lock.locks_for)).problem = error
        finally:
            progress.end()
    return outcomes


def _fact(replica: str, locked: Locked) -> dict[str, object]:
    assert locked.locked_until is not None
    return {
        "type": "immutability",
        "replica": replica,
        "locked_until": layout.time_text(locked.locked_until),
        "needed_objects": locked.needed_objects,
        "looked_objects": locked.looked_objects,
        "extended_objects": locked.extended_objects,
    }


def seen_locks(found: Iterable[LedgerEntry]) -> dict[str, SeenLocks]:
    """Replica -> what was seen of it last."""
    seen = {}
    for fact in facts_in(found, "immutability"):
        seen[str(fact["replica"])] = SeenLocks(
            measured_at=layout.parse_time(str(fact["time"])),
            locked_until=layout.parse_time(str(fact["locked_until"])),
            complete=fact["looked_objects"] == fact["needed_objects"],
            needed_objects=int(fact["needed_objects"]),
            extended_objects=int(fact["extended_objects"]),
        )
    return seen


def immutable_until(point: RestorePoint, seen: Mapping[str, SeenLocks]) -> dict[str, datetime]:
    """Replica -> until when nobody can delete anything there that the point needs.

    For the replicas on which that was seen since the point was made.
    """
    return {
        name: locks.locked_until
        for name, locks in seen.items()
        if locks.covers(point) and point.replicas.get(name) == "stored"
    }


def look_at_locks(
    vault: Vault, found: Iterable[LedgerEntry], points: Iterable[RestorePoint], now: datetime
) -> list[Finding]:
    """What is wrong with the locks of the replicas that have some."""
    seen = seen_locks(found)
    oldest = min((point.time for point in points), default=now)
    findings = []
    for replica in vault.replicas.replicas:
        lock = retaining(replica.store)
        if lock is None or replica.name in vault.replicas.away:
            continue
        subject = f"vault.replicas.{replica.name}"
        try:
            if not lock.locks():
                message = "its bucket does not lock, although immutable_for is set"
                hint = "make a bucket with object lock on; see docs/guides/stores.md"
                findings.append(Finding("store-lock-absent", "error", subject, message, hint))
                continue
        except CellarerError as error:
            findings.append(Finding.of(error, subject))
            continue
        locks = seen.get(replica.name)
        if message := _lapse(locks, oldest, now, lock.locks_for):
            findings.append(Finding("locks-lapse", "error", subject, message, _HINT))
    return findings


def _lapse(locks: SeenLocks | None, oldest: datetime, now: datetime, period: timedelta) -> str:
    """Why what points need is, or soon may be, without a lock; empty where it is not."""
    if locks is None:
        if now - oldest < period / 2:
            return ""
        return "nobody has ever extended its locks, and they last as long as immutable_for says"
    ago = about_duration(max((now - locks.measured_at).total_seconds(), 0.0))
    if locks.locked_until <= now:
        return f"locks of objects that points need have lapsed; they were last seen {ago} ago"
    left = locks.locked_until - now
    if left < period / 4:
        soon = about_duration(left.total_seconds())
        return f"locks of objects that points need lapse in {soon}; they were last seen {ago} ago"
    return ""
