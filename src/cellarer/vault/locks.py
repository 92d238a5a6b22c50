"""Locks extended for as long as a restore point needs the object, on stores that lock.

Looking is all the state there is: a run that was interrupted is taken up by the next one, which
finds what was extended locked for long. Locks are only ever lengthened, which takes nothing from
anybody; so any key of the vault will do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from cellarer.domain.immutability import looking_order, plan_extensions
from cellarer.errors import CellarerError, DamagedData, ObjectMissing, StoreError
from cellarer.ports import Retaining
from cellarer.vault import format as layout
from cellarer.vault.collect import listed
from cellarer.vault.envelopes import ADMIN, VAULT, parse_name, superseded
from cellarer.vault.ledger import entries
from cellarer.vault.log_inventory import removals, wanted
from cellarer.vault.log_keys import log_keys
from cellarer.vault.needs import Needs
from cellarer.vault.replicas import Replica
from cellarer.vault.vault import Vault

T = TypeVar("T")

REQUESTS = 500_000
"""What one run asks of one replica. Amazon's price in 2026 is 0.2 dollars for as many looks and 2.5
for as many extensions; 16 at once on a line of 20 ms take ten minutes."""

_ASKING = 16
_BATCH = 1000
_EACH = 4
"""Requests that one object takes at most: two looks, the extending, and a look at what it did."""

_ALWAYS = (
    layout.CONFIG_PREFIX,
    layout.SNAPSHOTS_PREFIX,
    layout.FORGOTTEN_PREFIX,
    layout.COLLECTIONS_PREFIX,
    layout.LEDGER_PREFIX,
)
"""Small, and each vouches for others: registers and ledger entries are chains, and without its
tombstone a point that was given up would come back in pieces."""


@dataclass
class Locked:
    """What is known of one replica after a run.

    Of `needed_objects` so many were looked at; `locked_until` is when the first of those may be
    deleted, by what the store itself said last; None where none was looked at. `problem` says why
    a run ended early.
    """

    period: timedelta
    needed_objects: int = 0
    looked_objects: int = 0
    extended_objects: int = 0
    locked_until: datetime | None = None
    problem: CellarerError | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that is needed was looked at."""
        return self.looked_objects == self.needed_objects and self.problem is None

    def saw(self, until: datetime | None) -> None:
        """Count one object that is locked until then."""
        self.looked_objects += 1
        if until is not None and (self.locked_until is None or until < self.locked_until):
            self.locked_until = until


def needed_objects(vault: Vault, replica: Replica, needs: Needs) -> set[str]:
    """Everything on a replica without which some restore point, or the vault's history, is lost.

    Not what a forgotten point alone needs, and no envelope that another one has superseded. Raises
    `StoreError`.
    """
    content = {*listed(vault, replica, layout.PACKS_PREFIX)}
    content |= listed(vault, replica, layout.META_PREFIX).keys()
    found = set(needs.on(replica.name, content).objects)
    for prefix in _ALWAYS:
        found |= listed(vault, replica, prefix).keys()
    index = listed(vault, replica, layout.INDEX_PREFIX)
    found |= {key for key in index if key.split("/")[1] in needs.points}
    sessions = listed(vault, replica, layout.SESSIONS_PREFIX).keys()
    log = listed(vault, replica, layout.WAL_PREFIX).keys()
    found |= wanted(log, removals(entries(vault)))
    logs = log_keys(vault).keys() if log else frozenset[str]()
    named = needs.sessions | needs.repacks.keys() | logs
    found |= sessions & {layout.session_key(session) for session in named}
    keys = set(listed(vault, replica, layout.KEYS_PREFIX))
    keys -= superseded(keys, len(vault.epochs) - 1)
    found |= {key for key in keys if _opens_something(key, needs.sessions | logs)}
    return found | {layout.FORMAT_KEY, layout.RESCUE_KEY}


def _opens_something(key: str, sessions: Collection[str]) -> bool:
    name, _ = parse_name(key) or ("", 0)
    return name == VAULT or name.startswith(ADMIN) or name in sessions


def extend_locks(
    vault: Vault,
    replica: Replica,
    lock: Retaining,
    needs: Needs,
    now: Callable[[], datetime],
    requests: int = REQUESTS,
) -> Locked:
    """Look at what is needed on a replica, extend what is due, and look again at what was extended.

    Trouble with the store ends it, and stands in the outcome with what was seen before.
    """
    result = Locked(lock.locks_for)
    try:
        if not lock.locks():
            raise StoreError(
                f"the bucket of replica {replica.name} does not lock",
                detail="it says itself that object lock is off, and immutable_for is set",
                hint="make a bucket with object lock on; see docs/guides/stores.md",
            )
        names = needed_objects(vault, replica, needs)
        result.needed_objects = len(names)
        ordered = looking_order(names, now(), lock.locks_for)
        while ordered and requests >= _EACH:
            count = min(_BATCH, requests // _EACH)
            requests -= _extend_some(lock, ordered[:count], result, now())
            del ordered[:count]
        if needs.unknown:
            raise DamagedData(
                f"what {len(needs.unknown)} restore points need is not known, nor if it is locked",
                detail=f"the references of {min(needs.unknown)} cannot be read, for one",
                hint="bring them back from another replica with `cellarer sync`",
            )
    except (StoreError, DamagedData) as error:
        result.problem = error
    return result


def _extend_some(lock: Retaining, names: Sequence[str], result: Locked, now: datetime) -> int:
    """A batch; how many requests it took at most."""
    held = dict(_asked(lock.locked_until, names))
    wanted = plan_extensions(held, now, lock.locks_for)
    extended = dict(_asked(partial(_extend, lock, wanted), sorted(wanted)))
    for name in held.keys() - wanted.keys():
        result.saw(held[name])
    for until in extended.values():
        result.saw(until)
    result.extended_objects += len(extended)
    gone = len(names) - len(held) + len(wanted) - len(extended)
    result.needed_objects -= gone
    return len(names) + (_EACH - 1) * len(wanted)


def _extend(lock: Retaining, wanted: Mapping[str, datetime], name: str) -> datetime:
    """Extend one lock, and read it back. Raises `StoreError` where the store did not do it."""
    lock.extend_lock(name, wanted[name])
    until = lock.locked_until(name)
    if until is None or until < wanted[name]:
        raise StoreError(
            f"the lock of {name} was to be extended, and is not",
            detail=f"it should last until {wanted[name]:%Y-%m-%d %H:%M:%S} UTC",
            hint="allow s3:PutObjectRetention and s3:GetObjectRetention; see docs/guides/stores.md",
        )
    return until


def _asked(ask: Callable[[str], T], names: Iterable[str]) -> Iterator[tuple[str, T]]:
    """What was answered for each; an object that is gone meanwhile is left out."""

    def attempt(name: str) -> list[tuple[str, T]]:
        try:
            return [(name, ask(name))]
        except ObjectMissing:
            return []

    with ThreadPoolExecutor(_ASKING, "lock") as pool:
        for answers in pool.map(attempt, names):
            yield from answers
