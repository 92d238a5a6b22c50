"""Repacking: living records of wasteful packs are copied into new ones, in a session of its own.

    announce -> copy, pack by pack -> index segments -> table of moves -> register (REPACK)

Records are sealed under the keys of those who wrote them and stay as they are, so this needs no
right to read. Before the register exists nothing is changed for anybody; after it, the old packs
are needed by nobody, and the next round of collecting takes them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import numpy as np

from cellarer.domain.repacking import PackUse, RepackPlan, plan_repack
from cellarer.errors import (
    CellarerError,
    DamagedData,
    ObjectExists,
    StoreError,
    VaultUnreachable,
)
from cellarer.ports import grows_only, retaining
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.closing import abort, own_repacks
from cellarer.vault.collect import listed
from cellarer.vault.fence import refuse_swept
from cellarer.vault.index import RecordTable
from cellarer.vault.moves import PLACE, MoveTable, distinct
from cellarer.vault.needs import Needs
from cellarer.vault.pack import PACK_BYTES, TRAILER, TableOfContents, read_toc, record_bytes
from cellarer.vault.packer import Packer
from cellarer.vault.record import SealedRecord
from cellarer.vault.registers import Repack, signed_register
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.roundlog import fenced
from cellarer.vault.vault import Vault
from cellarer.vault.writing import Writing

_ASKING = 16
LONGEST_LOCK = timedelta(days=90)
"""A pack that object lock keeps for longer is not repacked. Others stay beside their copies until
the lock ends: nobody extends that of what is not needed."""

_SUSPECT = 0.25
"""Where so much of an object is no living record, its trailer is read: the rest may be dead, or the
table of contents and padding of a small pack."""


@dataclass(frozen=True)
class Repacked:
    """What a run planned and did. `left` are packs that could not be read whole, and why.

    `off` says why nothing is repacked in this vault, if so; `problem` why it ended too early.
    """

    plan: RepackPlan = field(default_factory=RepackPlan)
    repacked_bytes: int = 0
    left: dict[str, str] = field(default_factory=dict)
    off: str = ""
    problem: CellarerError | None = None


class Repacker:
    """Plans and carries out one repack. To carry it out needs the right to collect."""

    def __init__(
        self,
        vault: Vault,
        now: Callable[[], datetime],
        budget_bytes: int,
        *,
        without: Collection[str] = (),
    ) -> None:
        self._vault, self._now, self._budget = vault, now, budget_bytes
        self._needs = Needs(vault, without)
        self._living = np.empty(0, PLACE)

    def plan(self) -> Repacked:
        """What a run would write anew now. Changes nothing.

        Raises `VaultUnreachable` or `DamagedData` where what is needed is not known for certain.
        """
        if off := self._off():
            return Repacked(off=off)
        self._needs.refresh()
        uses = self._uses()
        while True:
            plan = plan_repack(uses, PACK_BYTES, self._budget)
            locked = {each.pack for each in plan.packs if self._locked(each.pack)}
            if not locked:
                return Repacked(plan)
            uses = [use for use in uses if use.pack not in locked]

    def run(self, progress: Callable[[int], None]) -> Repacked:
        """Plan, and carry it out. Raises as `plan`, and `StoreError` where a replica fails."""
        if self._budget > 0:
            self._end_earlier()
        planned = self.plan()
        if not planned.plan.packs:
            return planned
        session = _Session(self._vault, self._now)
        try:
            left: dict[str, str] = {}
            for each in planned.plan.packs:
                try:
                    session.copy(each.pack, self._living_in(each.pack))
                except DamagedData as error:
                    left[each.pack] = str(error)
                progress(each.live_bytes)
            return Repacked(planned.plan, session.finish(), left)
        finally:
            session.abandon()

    def _off(self) -> str:
        """Why nothing may be repacked at all; empty if it may."""
        if self._budget <= 0:
            return "retention.repack is 0"
        growing = [r.name for r in self._vault.replicas.replicas if grows_only(r.store)]
        if growing:
            return f"{', '.join(growing)} only grows: the old packs would stay there for ever"
        return ""

    def _uses(self) -> list[PackUse]:
        """The packs in which something lives, with what is dead in them."""
        replicas = self._vault.replicas.replicas
        stored: dict[str, dict[str, int]] = {}
        homes = []
        for replica in replicas:
            stored[replica.name] = {}
            for prefix in (layout.PACKS_PREFIX, layout.META_PREFIX):
                stored[replica.name] |= listed(self._vault, replica, prefix)
            homes.append(self._needs.on(replica.name, stored[replica.name].keys()).places)
        self._living = distinct(*homes)
        numbers, starts = np.unique(self._living["pack"], return_index=True)
        lengths = self._living["length"].astype(np.int64)
        live = np.add.reduceat(lengths, starts) if len(starts) else lengths
        names = [self._needs.packs.names[number] for number in numbers.tolist()]
        lacking = self._lacking(names, stored)
        sizes = {key: size for found in stored.values() for key, size in found.items()}
        with ThreadPoolExecutor(_ASKING) as pool:
            dead = pool.map(self._dead, names, (sizes[name] for name in names), map(int, live))
            return [
                PackUse(name, int(living), dead_bytes, lacking.get(name, ()))
                for name, living, dead_bytes in zip(names, live, dead, strict=True)
            ]

    def _lacking(
        self, packs: Iterable[str], stored: Mapping[str, Mapping[str, int]]
    ) -> dict[str, tuple[str, ...]]:
        """Pack -> replicas that swept it and will never take it again under this name."""
        lacking: dict[str, tuple[str, ...]] = {}
        wanted = set(packs)
        for replica in self._vault.replicas.replicas:
            if missing := wanted - stored[replica.name].keys():
                swept, _ = fenced(self._vault.replicas, replica, self._vault)
                for pack in missing & swept:
                    lacking[pack] = (*lacking.get(pack, ()), replica.name)
        return lacking

    def _dead(self, pack: str, size_bytes: int, live_bytes: int) -> int:
        """The bytes of records in a pack that nobody needs; 0 where they are few."""
        if size_bytes - live_bytes < _SUSPECT * size_bytes:
            return 0
        start = size_bytes - TRAILER.size
        try:
            held = self._vault.replicas.fetch_range(pack, start, TRAILER.size, record_bytes)
        except (DamagedData, VaultUnreachable):
            return 0  # it is not touched: a scrub tells of it
        return min(max(held - live_bytes, 0), size_bytes)

    def _locked(self, pack: str) -> bool:
        """Whether some store keeps the pack for so long that a copy beside it does not pay."""
        for replica in self._vault.replicas.replicas:
            lock = retaining(replica.store)
            if lock is not None and lock.locks():
                until = lock.locked_until(pack)
                if until is not None and until > self._now() + LONGEST_LOCK:
                    return True
        return False

    def _living_in(self, pack: str) -> np.ndarray:
        number = self._needs.packs.number(pack)
        start, end = np.searchsorted(self._living["pack"], [number, number + 1])
        return self._living[start:end]

    def _end_earlier(self) -> None:
        """Finish what runs before this one left: close the dead, spread what is registered."""
        vault = self._vault
        signer = vault.signer_for("repack")
        announced = vault.replicas.listings(layout.SESSIONS_PREFIX).values()
        closed = vault.replicas.listings(layout.SNAPSHOTS_PREFIX).values()
        ended = {key.removeprefix(layout.SNAPSHOTS_PREFIX) for found in closed for key in found}
        names = {key.removeprefix(layout.SESSIONS_PREFIX) for found in announced for key in found}
        for session in sorted(own_repacks(vault, signer.public, names - ended)):
            abort(vault, session)
        for repack in vault.repacks():
            key = layout.snapshot_key(repack.session)
            known = {*repack.replicas, *repack.absent}
            for replica in (r for r in vault.replicas.replicas if r.name not in known):
                # It claims nothing of what lies there, so it may come at any time.
                register = vault.replicas.fetch(key, partial(_checked, vault, key))
                with contextlib.suppress(ObjectExists):
                    replica.store.create(key, register)


def _checked(vault: Vault, key: str, data: bytes) -> bytes:
    if not isinstance(vault.open_register(key, data), Repack):
        raise DamagedData(f"{key} closes its session on this replica")
    return data


class _Session:
    """One repack: `copy` packs, then `finish`; `abandon` in any case."""

    def __init__(self, vault: Vault, now: Callable[[], datetime]) -> None:
        self._vault = vault
        self._signer = vault.signer_for("repack")
        started = now()
        self._id = layout.new_session(started)
        # What one replica lacked would not be deleted there: all of them or none.
        everyone = vault.replicas.replicas
        self._writing = Writing(ReplicaSet(everyone, len(everyone)), everyone)
        self._table = RecordTable()
        self._packers = {
            layout.PACKS_PREFIX: self._packer(layout.PACKS_PREFIX, 0),
            layout.META_PREFIX: self._packer(layout.META_PREFIX, 100_000),
        }
        self._old: list[tuple[str, np.ndarray, np.ndarray]] = []
        announcement: dict[str, object] = {
            "repacker": self._signer.public,
            "session": self._id,
            "started": layout.time_text(started),
            "vault": vault.id,
        }
        self._undecided = True
        try:
            signed = self._signer.sign("session", announcement)
            self._writing.put(layout.session_key(self._id), signed)
            self._writing.settle()
        except BaseException:
            self.abandon()
            raise

    def copy(self, pack: str, living: np.ndarray) -> None:
        """Copy the records at these places of a pack. Raises `DamagedData` if it is not whole."""
        data = self._vault.replicas.fetch(pack, lambda held: layout.check_content_name(pack, held))
        toc = read_toc(data, self._vault.index_key)
        records = records_at(data, toc, living)
        into = self._packers[pack[: pack.index("/") + 1]]
        numbers = np.array([self._table.reserve() for _ in records])
        for number, record in zip(numbers.tolist(), records, strict=True):
            into.add(number, record)
        self._old.append((pack, living, numbers))

    def finish(self) -> int:
        """Make known where everything lies: the last write of all. Returns the bytes stored."""
        if not self._old:
            return 0
        for each in self._packers.values():
            each.close()
        table = self._moves()
        sealed = table.seal(self._vault.index_key)
        name = layout.object_key(layout.META_PREFIX, hashlib.sha256(sealed).hexdigest())
        self._writing.put(name, sealed)
        self._writing.barrier()
        for each in self._packers.values():
            each.index()
        self._writing.settle()
        refuse_swept(self._vault, self._writing, {name, *table.targets})
        inner = crypto.sealed_text(self._vault.index_key, {"moves": name}, f"snapshot {self._id}")
        public = self._signer.public
        register = signed_register(
            self._signer, self._vault, self._id, public, "repack", sealed=inner
        )
        self._undecided = False
        try:
            self._writing.put(layout.snapshot_key(self._id), register)
            self._writing.settle()
        except VaultUnreachable as error:
            raise StoreError(
                f"repack {self._id} was not registered on every replica",
                detail=str(error),
                hint="run `cellarer retain` again; what was copied is used where it is registered, "
                "and deleted elsewhere",
                retryable=True,
            ) from error
        return len(sealed) + sum(each.stored_bytes for each in self._packers.values())

    def abandon(self) -> None:
        """Stop; what was written without a register is for collectors to take away."""
        try:
            if self._undecided:
                self._undecided = False
                with contextlib.suppress(CellarerError):  # the next run closes it
                    abort(self._vault, self._id)
        finally:
            self._writing.close()

    def _packer(self, prefix: str, first_segment: int) -> Packer:
        key = self._vault.index_key
        return Packer(prefix, self._id, key, self._table, self._writing, first_segment)

    def _moves(self) -> MoveTable:
        names = [pack for pack, _, _ in self._old]
        places = self._table.places(np.concatenate([numbers for _, _, numbers in self._old]))
        old = np.concatenate([living for _, living, _ in self._old])
        old["pack"] = np.repeat(np.arange(len(names)), [len(living) for _, living, _ in self._old])
        return MoveTable.of(
            [*names, *places.packs], old, places.rows["pack"] + len(names), places.rows["offset"]
        )


def records_at(data: bytes, toc: TableOfContents, living: np.ndarray) -> list[SealedRecord]:
    """The records at these places. Raises `DamagedData` for a place that the pack does not name.

    Whoever wrote the pack says where a record begins and ends, and which chunks it holds.
    """
    rows = {(int(row["offset"]), int(row["length"])): at for at, row in enumerate(toc.records)}
    counts = toc.records["chunks"].astype(np.int64)
    ends = np.cumsum(counts)
    records = []
    for place in living:
        offset, length = int(place["offset"]), int(place["length"])
        at = rows.get((offset, length))
        if at is None:
            raise DamagedData(f"no record of {length} bytes begins at {offset}")
        end, row = int(ends[at]), toc.records[at]
        start = end - int(counts[at])
        ids = toc.chunk_ids[start * layout.ID_BYTES : end * layout.ID_BYTES]
        session = toc.sessions[int(row["session"])]
        sealed = data[offset : offset + length]
        lengths = toc.chunk_lengths[start:end]
        records.append(SealedRecord(row["id"].tobytes(), session, sealed, ids, lengths))
    return records
