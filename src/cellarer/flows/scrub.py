"""Scrub: look whether all is there, read it, open it; heal what is damaged, say what is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import (
    CellarerError,
    DamagedData,
    KeyUnusable,
    StoreError,
    UsageError,
    VaultUnreachable,
)
from cellarer.flows.points import survey
from cellarer.flows.repair import Healing, heal_damage, heal_registers
from cellarer.flows.verify import SCRUB
from cellarer.ports import Progress, grows_only, phase, retaining
from cellarer.vault import format as layout
from cellarer.vault.inventory import Inventory
from cellarer.vault.ledger import entries, record_proof
from cellarer.vault.losses import Loss, gone, losses, needed_by
from cellarer.vault.marker import foreign
from cellarer.vault.opening import Opener, opened_wholly
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.repair import (
    clear_aside,
    record_damage,
    record_repair,
    standing_damage,
    standing_unopened,
    whole,
)
from cellarer.vault.replicas import Replica
from cellarer.vault.scrub import (
    KEYED,
    STORED,
    Budget,
    Inspection,
    Part,
    Round,
    current_round,
    damaged_in_round,
    read_in_round,
    record_part,
)
from cellarer.vault.vault import Vault

OPENED = "every record opens, and every chunk is the one that is named"
STOOD = "it was found damaged or missing earlier"
UNSTEADY = "read twice, it was damaged once: see to the disk or the store"


@dataclass(frozen=True)
class Wanted:
    """What to scrub, and how: `share` and `budget` are of each replica, no `replicas` means all."""

    replicas: Collection[str] = ()
    share: float = 1.0
    budget: Budget = field(default_factory=Budget)
    deep: bool = False
    repair: bool = False


@dataclass(frozen=True)
class Damage:
    """An object that is damaged or missing on a replica; `obstacle` is why it was not healed."""

    replica: str
    object: str
    reason: str
    obstacle: str = ""


@dataclass
class ReplicaScrub:
    """What was read of one replica; `whole` says that a round is over with it.

    `owed` counts what may never have come there: no damage, and `sync` brings it.
    """

    name: str
    objects: int = 0
    bytes: int = 0
    round: int = 0
    whole: bool = False
    owed: int = 0
    problem: CellarerError | None = None


@dataclass
class Scrubbed:
    """The outcome: `damaged` and `missing` are what was found, `repaired` what of it is healed."""

    replicas: list[ReplicaScrub] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)
    missing: list[Damage] = field(default_factory=list)
    repaired: list[Damage] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)

    @property
    def remaining(self) -> list[Damage]:
        """What is still damaged or missing."""
        healed = {(each.replica, each.object) for each in self.repaired}
        found = [*self.damaged, *self.missing]
        return [each for each in found if (each.replica, each.object) not in healed]


def scrub(
    vault: Vault,
    wanted: Wanted,
    progress: Progress,
    now: Callable[[], datetime],
    clock: Callable[[], float] = time.monotonic,
) -> Scrubbed:
    """Scrub some replicas, one after the other.

    Raises `KeyUnusable` where a deep scrub has no identity, or nothing may be written down,
    `UsageError` for a replica that is not in the config.
    """
    if wanted.deep and vault.identity is None:
        raise KeyUnusable(
            "opening what is stored needs an identity, and this host has none",
            hint="leave out --deep, or run this where vault.identity is set",
        )
    names = [replica.name for replica in vault.replicas.replicas]
    for name in wanted.replicas:
        if name not in names:
            raise UsageError(f"there is no replica {name}", hint=f"there are: {', '.join(names)}")
    vault.signer_for("scrub")
    if wanted.deep:
        _refuse_stranger(vault)
    healed = heal_registers(vault, now) if wanted.repair else []
    scrubbing = _Scrubbing(vault, wanted, progress, now, clock)
    registers = [Damage(replica, key, STOOD) for replica, key in healed]
    scrubbing.result.damaged.extend(registers)
    scrubbing.result.repaired.extend(registers)
    for replica in vault.replicas.replicas:
        if replica.name in (wanted.replicas or names):
            scrubbing.replica(replica)
    for replica in vault.replicas.replicas if wanted.repair else ():
        with suppress(StoreError):  # it is in nobody's way, and the next run removes it
            clear_aside(vault, replica.name)
    return scrubbing.result


def _refuse_stranger(vault: Vault) -> None:
    """Raise `KeyUnusable` for an identity that nothing is sealed to: all would seem damaged."""
    vault.signer_for("proof")
    with suppress(DamagedData, VaultUnreachable):
        for commit in vault.commits()[-1:]:
            vault.session_root(commit.session)


class _Scrubbing:
    """One run over some replicas."""

    def __init__(
        self,
        vault: Vault,
        wanted: Wanted,
        progress: Progress,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._vault, self._wanted = vault, wanted
        self._progress, self._now, self._clock = progress, now, clock
        self._inventory = Inventory(vault)
        self._opener = Opener(vault, self._inventory.history) if wanted.deep else None
        self._depth = KEYED if wanted.deep else STORED
        self.result = Scrubbed()

    def replica(self, replica: Replica) -> None:
        """Scrub one; one that does not answer is told of in the outcome."""
        state = ReplicaScrub(replica.name)
        self.result.replicas.append(state)
        try:
            self._refuse_foreign(replica)
            listed = self._inventory.compare(replica)
            state.owed = listed.owed
            with phase(self._progress, f"scrubbing replica {replica.name}", listed.bytes):
                self._look(replica, {*listed.missing, *listed.suspect})
                if self._wanted.share > 0:
                    self._read(replica, state, listed.bytes)
        except StoreError as error:
            state.problem = error

    def _refuse_foreign(self, replica: Replica) -> None:
        """Raise `StoreError` where there is no vault, or another one: nothing is missing there."""
        try:
            self._vault.replicas.ask(replica, lambda store: store.read(layout.FORMAT_KEY))
        except DamagedData:
            pass
        except StoreError:
            kept = self._vault.replicas.ask(replica, lambda s: next(s.list("snapshots/"), None))
            if kept is None:
                raise StoreError(
                    f"replica {replica.name} holds no vault",
                    hint="mount it if it is a disk; `cellarer sync` fills a new one",
                ) from None
        if foreign(self._vault.replicas, replica, self._vault.id):
            raise StoreError(
                f"replica {replica.name} holds another vault",
                hint="correct its url in [[vault.replicas]]",
            )

    def _look(self, replica: Replica, suspects: set[str]) -> None:
        """Read what the listing leaves in doubt, and what stands damaged since earlier."""
        told = entries(self._vault)
        standing = standing_damage(told).get(replica.name, {})
        found = Part("")
        inspection = Inspection(self._vault, replica, self._opener)
        for key in sorted({*suspects, *standing}):
            _add(found, inspection.inspect(key))
        absent = standing.keys() & found.missing
        bad = {*found.damaged, *found.unopened, *needed_by(self._vault, absent)}
        left = standing.keys() - bad
        unopened = standing_unopened(told, replica.name) if self._opener is None else set()
        # Healed by a run that did not live to say so, or taken by a collector: needed by none.
        settled = {k for k in left - unopened if k not in absent and self._whole(k, replica.name)}
        if settled := settled | (left & absent):
            record_repair(self._vault, replica.name, settled, self._now())
        self._treat(replica, inspection, found)

    def _whole(self, key: str, replica: str) -> bool:
        """Whether that is certain; what the identity found may not be for other keys to judge."""
        try:
            return whole(self._vault, key, replica)
        except CellarerError:
            return False

    def _read(self, replica: Replica, state: ReplicaScrub, stored_bytes: int) -> None:
        commits = self._inventory.history
        round_ = current_round(entries(self._vault), replica.name, self._depth, commits)
        state.round = round_.number
        inspection = Inspection(self._vault, replica, self._opener)
        budget = self._budget(stored_bytes)
        for part in inspection.read(round_.after, budget, self._clock, self._progress.advance):
            self._treat(replica, inspection, part)
            state.objects, state.bytes = state.objects + part.objects, state.bytes + part.bytes
            state.problem, state.whole = part.problem, part.through == ""
            if part.objects or state.whole:
                record_part(self._vault, replica.name, self._depth, round_, part, self._now())
        if state.whole and self._wanted.deep:
            self._raise(replica, round_)

    def _budget(self, stored_bytes: int) -> Budget:
        given, share = self._wanted.budget, self._wanted.share
        bounds = [] if given.bytes is None else [given.bytes]
        if share < 1:
            bounds.append(math.ceil(stored_bytes * share))
        return Budget(min(bounds, default=None), given.seconds)

    def _treat(self, replica: Replica, inspection: Inspection, found: Part) -> None:
        """Look again at what was found, write it down, heal it, and say what it cost."""
        again = Part("")
        for key in sorted({*found.damaged, *found.unopened, *found.missing}):
            _add(again, inspection.inspect(key))
        needed = needed_by(self._vault, again.missing)
        missing = {key for key in again.missing if key in needed}
        damaged = dict(again.damaged)
        if grows_only(replica.store):
            damaged = self._needed_of(replica.name, damaged)
        steady = {*again.damaged, *again.unopened, *again.missing}
        unsteady = {key for key in (*found.damaged, *found.unopened) if key not in steady}
        if not (damaged or missing or again.unopened or unsteady):
            return
        if again.unopened:
            record_damage(self._vault, replica.name, again.unopened, self._now(), unopened=True)
        healed, failed = self._heal(replica.name, {*damaged, *missing})
        reasons = {**damaged, **again.unopened, **dict.fromkeys(unsteady, UNSTEADY)}

        def told(key: str, reason: str) -> Damage:
            obstacle = "" if key in healed else failed.get(key) or self._obstacle(replica, key)
            return Damage(replica.name, key, reason, obstacle)

        self._enter(self.result.damaged, [told(k, reasons[k]) for k in sorted(reasons)])
        lacking = [told(key, "it is not there") for key in sorted(missing)]
        self._enter(self.result.missing, lacking)
        known = [*self.result.damaged, *self.result.missing]
        self._enter(
            self.result.repaired,
            [d for d in known if d.replica == replica.name and d.object in healed],
        )
        left = ({*damaged, *missing}) - healed
        self._lose(replica.name, [*gone(self._vault, sorted(left)), *again.unopened])

    def _needed_of(self, replica: str, damaged: dict[str, str]) -> dict[str, str]:
        """Without what no point needs, which stays there for ever and is no loss."""
        if self._vault.replicas.away:
            return damaged  # what leads to them may lie there
        needed = needed_by(self._vault, damaged)
        standing = standing_damage(entries(self._vault)).get(replica, {})
        if settled := standing.keys() & damaged.keys() - needed.keys():
            record_repair(self._vault, replica, settled, self._now())
        return {key: reason for key, reason in damaged.items() if key in needed}

    def _heal(self, replica: str, keys: Collection[str]) -> tuple[set[str], dict[str, str]]:
        """What was healed there, and why the rest was not; both are in the ledger then."""
        if not keys:
            return set(), {}
        outcomes = heal_damage(self._vault, {replica: keys}, self._now, repair=self._wanted.repair)
        for outcome in outcomes:
            if outcome.replica != replica:
                # What stood damaged there since earlier was healed at the same time.
                also = [Damage(outcome.replica, key, STOOD) for key in outcome.healed]
                self._enter(self.result.damaged, also)
                self._enter(self.result.repaired, also)
        own = next((each for each in outcomes if each.replica == replica), Healing(replica))
        return set(own.healed), {key: str(error) for key, error in own.failed.items()}

    def _obstacle(self, replica: Replica, key: str) -> str:
        """Why an object cannot be healed where it lies, if it cannot."""
        if grows_only(replica.store):
            return "this replica only grows: nothing there is replaced"
        lock = retaining(replica.store)
        try:
            until = lock.locked_until(key) if lock else None
        except StoreError:
            return ""
        if until is None or until <= self._now():
            return ""
        return f"it is locked until {until:%Y-%m-%d %H:%M:%S} UTC, and nobody replaces it before"

    def _lose(self, replica: str, keys: Sequence[str]) -> None:
        """Take their proof from the points that lost something."""
        known = {loss.point for loss in self.result.lost}
        lost = losses(self._vault, keys) if keys else []
        new = [loss for loss in lost if loss.point not in known]
        self.result.lost += new
        if not new:
            return
        # Of a point without a record there is nothing that could have a proof.
        standing = {point.id for point in survey(self._vault).points if not point.failed}
        untold = [loss for loss in new if loss.point in standing]
        if self._vault.identity is None:
            if untold:
                points = {loss.point: loss.source for loss in untold}
                objects = {key for loss in untold for key in loss.objects}
                record_damage(self._vault, replica, objects, self._now(), points)
            return
        for loss in untold:
            found = f"lost: {', '.join(loss.paths)}; {', '.join(loss.objects)}"
            self._prove(loss.point, loss.source, Check(SCRUB, False, "all streams", found))

    def _raise(self, replica: Replica, round_: Round) -> None:
        """Raise the points that a round at the greatest depth read whole, and that were lower."""
        found = survey(self._vault)
        closed = damaged_in_round(found.entries, replica.name, KEYED, round_.number)
        touched = {c.session for users in needed_by(self._vault, closed).values() for c in users}
        low = {point.id for point in found.points if point.proof < Proof.SCRUBBED} - touched
        read = [
            commit
            for commit in read_in_round(round_, self._inventory.history)
            if commit.session in low and replica.name in commit.replicas
        ]
        for commit in opened_wholly(self._vault, read, closed) if read else ():
            try:
                streams = SnapshotReader(self._vault, commit)
                if streams.broken(()):
                    continue
            except (DamagedData, KeyUnusable):
                continue
            count = f"{len(streams.entries())} streams"
            self._prove(commit.session, commit.source, Check(OPENED, True, count, count))
            self.result.raised.append(commit.session)

    def _prove(self, point: str, source: str, check: Check) -> None:
        proof = Proof.SCRUBBED if check.passed else Proof.STORED
        record_proof(
            self._vault,
            ProofRecord(point, source, proof, check.passed, self._now(), 0.0, (check,)),
        )

    @staticmethod
    def _enter(into: list[Damage], found: Iterable[Damage]) -> None:
        known = {(each.replica, each.object) for each in into}
        into += [each for each in found if (each.replica, each.object) not in known]


def _add(part: Part, one: Part) -> None:
    part.damaged |= one.damaged
    part.unopened |= one.unopened
    part.missing |= one.missing
