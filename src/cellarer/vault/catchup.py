"""Bringing a replica up to date by copying what it lacks. Needs no key that reads.

Every object is looked at before it is copied, as far as the keys at hand go, and one that cannot be
copied stops none of the others: only the restore points that need it stay out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from cellarer.errors import (
    CellarerError,
    DamagedData,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.comparison import (
    damaged_objects,
    marked_replicas,
    outcome,
    repacks_closed,
    silent,
)
from cellarer.vault.configuration import epochs
from cellarer.vault.envelopes import VAULT, superseded
from cellarer.vault.genuine import Trust, good_copy
from cellarer.vault.ledger import entries
from cellarer.vault.log_inventory import removals, wanted
from cellarer.vault.manifest import record_places
from cellarer.vault.marker import set_foreign_aside
from cellarer.vault.moved import lie_among, tables_on
from cellarer.vault.moves import MoveTable
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.roundlog import fenced
from cellarer.vault.tombstones import tombstones
from cellarer.vault.trust import SignedTooLate
from cellarer.vault.vault import Vault

_FIRST = (
    layout.CONFIG_PREFIX,
    layout.KEYS_PREFIX,
    layout.SESSIONS_PREFIX,
    layout.FORGOTTEN_PREFIX,
)
"""What is copied before the rounds of the replica are read: a collector waits for the sessions
that it finds announced."""

_CONTENT = (layout.PACKS_PREFIX, layout.META_PREFIX, layout.INDEX_PREFIX)
"""What collectors delete; it must have arrived before the snapshots that need it."""

_ORDER = (*_FIRST, *_CONTENT)

_LAST = (layout.RESCUE_KEY, layout.FORMAT_KEY)
"""What makes a vault of a place: copied when all the rest is there."""

COPIES_AT_ONCE = 4
"""Objects on their way to one replica; each is held in memory, a pack's 17 MiB at most."""

_BATCH = 1000


@dataclass(frozen=True)
class CaughtUp:
    """What one replica received.

    `problem` says why it is still behind, if it is; `failed` what could not be copied, and why, by
    the object's name; `withheld` the restore points that stayed out for that; `damaged` what it
    held already and not whole, as far as lengths tell.
    """

    copied_objects: int
    copied_bytes: int
    problem: CellarerError | None = None
    failed: Mapping[str, CellarerError] = field(default_factory=dict)
    withheld: Sequence[str] = ()
    damaged: AbstractSet[str] = frozenset()

    def after(self, earlier: CaughtUp) -> CaughtUp:
        """What two goes come to."""
        return replace(
            self,
            copied_objects=self.copied_objects + earlier.copied_objects,
            copied_bytes=self.copied_bytes + earlier.copied_bytes,
        )


def catch_up(
    replicas: ReplicaSet,
    progress: Callable[[int], None],
    trust: Trust | None = None,
    *,
    fill_new: bool = True,
    besides: Collection[str] = (),
    within_seconds: float = math.inf,
) -> dict[str, CaughtUp]:
    """Copy to every replica what it lacks of the others; snapshots after all they name.

    The snapshots to copy are listed first: whatever they name is then sure to be listed after.
    Without `fill_new` a replica that holds no vault is left alone: it may be a disk that is not
    mounted. So is one that holds another vault than `trust` says, and those `besides`. Nothing is
    begun `within_seconds` after this. Raises `UsageError` where two replicas hold different vaults
    and nobody says which is meant.
    """
    until = time.monotonic() + within_seconds
    if trust and trust.vault_id:
        set_foreign_aside(replicas, trust.vault_id)
    marked = marked_replicas(replicas)
    if trust is None:
        trust = Trust(None, next(iter(marked.values()), None))
        if trust.vault_id:
            set_foreign_aside(replicas, trust.vault_id)
    prefixes = (layout.SNAPSHOTS_PREFIX, *_ORDER, layout.WAL_PREFIX, layout.LEDGER_PREFIX)
    listings = {prefix: replicas.listings(prefix) for prefix in prefixes}
    damaged = damaged_objects(replicas, trust, listings)
    everything = {
        prefix: {key for keys in found.values() for key in keys}
        for prefix, found in listings.items()
    }
    keys = everything[layout.KEYS_PREFIX]
    keys -= superseded(keys, len(epochs(replicas)) - 1)
    everything[layout.WAL_PREFIX] = _wanted_log(everything[layout.WAL_PREFIX], trust.vault)
    result = {}
    for replica in (each for each in replicas.replicas if each.name not in besides):
        name = replica.name
        if not all(name in found for found in listings.values()):
            result[name] = CaughtUp(0, 0, silent(name, replicas.unlisted.get(name)))
            continue
        if name not in marked and not fill_new:
            hint = "mount it if it is a disk; `cellarer sync` fills a new one"
            problem = CellarerError(f"replica {name} holds no vault", hint=hint)
            result[name] = CaughtUp(0, 0, problem)
            continue
        own = {prefix: found[name].keys() - damaged[name] for prefix, found in listings.items()}
        closed_here = repacks_closed(replicas, replica, listings[layout.SNAPSHOTS_PREFIX])
        copying = _Copying(replicas, replica, trust, own, everything, progress, closed_here, until)
        done = copying.all()
        if done.problem is None and damaged[name]:
            told = DamagedData(f"{min(damaged[name])} is damaged on replica {name}")
            done = replace(done, problem=told)
        result[name] = replace(done, damaged=damaged[name])
    return result


def _wanted_log(keys: AbstractSet[str], vault: Vault | None) -> set[str]:
    """The WAL to copy. Without a key also what retention has removed, which it removes again."""
    return wanted(keys, removals(entries(vault)) if vault and keys else {})


class _Copying:
    """The copying to one replica. `own` is what it holds whole, `everything` what anyone holds.

    `closed_here` are repacks that a collector closed on this replica alone.
    """

    def __init__(
        self,
        replicas: ReplicaSet,
        replica: Replica,
        trust: Trust,
        own: Mapping[str, AbstractSet[str]],
        everything: Mapping[str, AbstractSet[str]],
        progress: Callable[[int], None],
        closed_here: AbstractSet[str],
        until: float,
    ) -> None:
        self._replicas, self._replica = replicas, replica
        self._trust, self._progress, self._until = trust, progress, until
        self._held = {key for keys in own.values() for key in keys}
        self._wanted = {prefix: keys - own[prefix] for prefix, keys in everything.items()}
        self._others = {key for prefix in _CONTENT for key in everything[prefix]}
        self._kept_out: AbstractSet[str] = frozenset()
        self._failed: dict[str, CellarerError] = {}
        self._withheld: list[str] = []
        self._refusal: CellarerError | None = None
        self._repacks_unknown = bool(closed_here)
        self._objects, self._bytes = 0, 0

    def all(self) -> CaughtUp:
        """Copy everything that can be copied, in the order that keeps the replica readable."""
        for prefix in _FIRST:
            self._copy(self._wanted[prefix], self._plain)
        self._heed_collectors()
        for prefix in _CONTENT:
            self._copy(self._wanted[prefix], self._plain)
        self._opened = {key.split("/")[1].partition(".")[0] for key in self._held_envelopes()}
        # Where records were moved to must be known before what needs them there.
        registers = self._wanted[layout.SNAPSHOTS_PREFIX]
        self._copy(registers, self._repack)
        self._copy(registers - self._held, self._register)
        self._copy(self._wanted[layout.WAL_PREFIX], self._plain)
        self._copy(self._wanted[layout.LEDGER_PREFIX], self._plain)
        if not self._foundation_failed():
            for key in _LAST:
                self._copy([key], self._plain_if_absent)
        problem = self._refusal or self._problem()
        withheld = [key.removeprefix(layout.SNAPSHOTS_PREFIX) for key in sorted(self._withheld)]
        return CaughtUp(self._objects, self._bytes, problem, self._failed, withheld)

    def _heed_collectors(self) -> None:
        """See which objects are being deleted here, or were: none of them is written or built on.

        Only now, as the sessions are announced: a round that begins later waits for them.
        """
        store, vault = self._replica.store, self._trust.vault
        try:
            swept, condemned = fenced(self._replicas, self._replica, vault)
            if not swept and not condemned:
                return
            listed = {info.key for prefix in _CONTENT for info in store.list(prefix)}
        except CellarerError as error:
            self._refusal = error
            return
        for prefix in _CONTENT:
            self._held -= {key for key in self._held if key.startswith(prefix)} - listed
            self._wanted[prefix] = self._wanted[prefix] - swept - condemned
        self._held -= swept | condemned
        self._kept_out = (swept | condemned) & self._others

    def _held_envelopes(self) -> list[str]:
        return [key for key in self._held if key.startswith(layout.KEYS_PREFIX)]

    def _copy(self, keys: Iterable[str], act: Callable[[str], int | None]) -> None:
        """Some objects at once; `act` returns how many bytes it copied, None for nothing."""
        ordered = sorted(keys)
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            with ThreadPoolExecutor(COPIES_AT_ONCE, "copy") as pool:
                done = pool.map(partial(self._in_time, act), batch)
                for key, copied in zip(batch, done, strict=True):
                    if copied is not None:
                        self._held.add(key)
                        self._objects, self._bytes = self._objects + 1, self._bytes + copied
                        self._progress(copied)

    def _in_time(self, act: Callable[[str], int | None], key: str) -> int | None:
        if self._refusal is None and time.monotonic() >= self._until:
            told = f"replica {self._replica.name} lacks more than could be copied in time"
            self._refusal = StoreError(told, hint="`cellarer sync` copies the rest")
        return act(key) if self._refusal is None else None

    def _plain(self, key: str) -> int | None:
        try:
            data, _ = good_copy(self._replicas, self._trust, key, self._replica.name)
        except SignedTooLate:
            return None
        except CellarerError as error:
            self._failed[key] = error
            return None
        return self._store(key, data)

    def _plain_if_absent(self, key: str) -> int | None:
        try:
            self._replicas.ask(self._replica, lambda store: store.read(key))
        except ObjectMissing:
            return self._plain(key)
        except StoreError as error:
            self._refusal = self._refusal or error
        return None

    def _store(self, key: str, data: bytes) -> int | None:
        if self._refusal is not None:
            return None
        try:
            self._replica.store.create(key, data)
        except ObjectExists:
            where = f"replica {self._replica.name}"
            self._failed[key] = DamagedData(f"{key} is there already and differs on {where}")
        except StoreError as error:
            # A full disk or a replica that went away takes nothing more.
            self._refusal = error
        else:
            return len(data)
        return None

    def _repack(self, key: str) -> int | None:
        """The register of a repack: that records lie elsewhere as well claims nothing more."""
        try:
            data = self._best_register(key)
        except CellarerError:
            self._repacks_unknown = True
            return None  # whatever it is, it fails again when its turn comes
        if outcome(key, data) != "repack":
            return None
        stored = self._store(key, data)
        self._repacks_unknown |= stored is None
        return stored

    def _register(self, key: str) -> int | None:
        """A snapshot's register, if all is there that the snapshot needs."""
        session = key.removeprefix(layout.SNAPSHOTS_PREFIX)
        given_up = layout.forgotten_key(session) in self._held
        if given_up and self._trust.vault is None:
            return None  # the tombstone may be forged, and what the point needs is not known
        try:
            given_up = given_up and session in self._tombstones
            data = self._best_register(key)
            if outcome(key, data) == "repack":
                return None  # it had its turn
            whole = given_up or self._needs_are_met(key, data)
        except SignedTooLate:
            return None
        except CellarerError as error:
            self._failed[key] = error
            return None
        if whole and self._refusal is None:
            return self._store(key, data)
        self._withheld.append(key)
        return None

    @cached_property
    def _tombstones(self) -> set[str]:
        """The sessions that were given up for certain: anybody may have put an object there."""
        return tombstones(self._trust.vault) if self._trust.vault else set()

    def _best_register(self, key: str) -> bytes:
        """What is no ABORT, if any replica has it: a collector may have closed it there."""
        data, _ = good_copy(self._replicas, self._trust, key, self._replica.name)
        if outcome(key, data) != "abort":
            return data
        for replica in self._replicas.replicas:
            try:
                other = self._replicas.ask(replica, lambda store: store.read(key))
                if self._trust.check(key, other) and outcome(key, other) != "abort":
                    return other
            except (StoreError, DamagedData):
                continue
        return data

    def _needs_are_met(self, key: str, register: bytes) -> bool:
        if outcome(key, register) != "commit":
            return True
        body = layout.parse_json(register, key)["body"]
        if self._foundation_failed():
            return False
        if self._trust.index_key is None:
            # Which of the failed objects this snapshot needs is sealed.
            return not (self._kept_out or self._repacks_unknown) and not any(
                not key.startswith(layout.SNAPSHOTS_PREFIX) for key in self._failed
            )
        purpose = f"snapshot {body.get('session')}"
        inner = crypto.unsealed_text(self._trust.index_key, str(body.get("sealed")), purpose)
        references = str(inner["references"])
        if references not in self._held:
            return False
        data, _ = good_copy(self._replicas, self._trust, references)
        records = record_places(self._trust.index_key, data)
        return lie_among(records, self._held, self._tables) and all(
            layout.session_key(session) in self._held and session in self._opened
            for session in records.sessions
        )

    @cached_property
    def _tables(self) -> list[tuple[str, MoveTable]]:
        vault = self._trust.vault
        return tables_on(vault, self._replica.name, self._held) if vault else []

    def _foundation_failed(self) -> bool:
        """Whether something is lacking without which nothing here can be read."""
        return any(
            key.startswith((layout.CONFIG_PREFIX, f"{layout.KEYS_PREFIX}{VAULT}."))
            for key in self._failed
        )

    def _problem(self) -> CellarerError | None:
        if not self._failed and not self._withheld:
            return None
        if not self._failed and self._kept_out:
            return CellarerError(
                f"{len(self._withheld)} restore points stay out, as collecting is or was deleting "
                f"{len(self._kept_out)} objects there",
                detail=f"{min(self._kept_out)} for one",
                hint="end the collection with `cellarer retain`, then run `cellarer sync` where a "
                "key is; points that still stay out are complete only on a new replica",
                retryable=True,
            )
        why = "; ".join(str(error) for error in list(self._failed.values())[:3])
        if self._failed and self._withheld and self._trust.index_key is None:
            why += "; without a key nobody can tell which points need these, so all stay out"
        damaged = not self._failed or any(
            isinstance(error, DamagedData) for error in self._failed.values()
        )
        return (DamagedData if damaged else CellarerError)(
            f"{len(self._failed)} objects could not be copied, and {len(self._withheld)} restore "
            "points stay out",
            detail=why,
            hint="`cellarer verify --point ID` tells which points are whole; take a new backup",
        )
