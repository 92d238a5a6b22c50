"""Reading what a replica holds and judging it, least recently read first.

Names are read in their order and the ledger remembers the last one, so a run goes on where the one
before ended: what was read longest ago comes first. Names of packs are hashes, so any part of the
order is a fair sample. A round is over when the end of the order is reached.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from cellarer.domain.snapshot import ahead
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo, Store, bounded
from cellarer.vault import format as layout
from cellarer.vault.format import check_content_blocks
from cellarer.vault.genuine import Trust
from cellarer.vault.inventory import CONTENT
from cellarer.vault.ledger import LedgerEntry, facts_in, record_fact
from cellarer.vault.opening import Opener
from cellarer.vault.replicas import Replica
from cellarer.vault.trust import SignedTooLate
from cellarer.vault.vault import Commit, Vault

STORED = "stored"
KEYED = "keyed"

READERS = 4
"""Threads; each holds one object, a pack's 17 MiB at most."""

_AHEAD = 2 * READERS
_BLOCK_BYTES = 256 << 10
CHECKPOINT_BYTES = 64 << 30
"""A run that goes on for long writes down how far it came after so much."""

_AGREEING = (layout.CONFIG_PREFIX, layout.KEYS_PREFIX, layout.RESCUE_KEY)
"""What is the same on all replicas, and cannot always be judged by itself."""


@dataclass(frozen=True)
class Budget:
    """How much of a replica one run reads; None means no bound. One object is read in any case."""

    bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Round:
    """A reading of everything on a replica, in one run or in many.

    `after` is the last name that was read; `points` and `of` say which restore points there were
    when it began.
    """

    number: int
    after: str
    points: int
    of: str


@dataclass
class Part:
    """What a run, or a part of it, read. `through` is the last name, "" where the round is over.

    `damaged` has the reason for each object; `unopened` are those whose bytes are as they were
    written, and which the identity shows to be no good. `problem` is why it ended too early.
    """

    through: str
    objects: int = 0
    bytes: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unopened: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    problem: CellarerError | None = None


class Inspection:
    """Judges objects of one replica; with an `Opener` packs are opened, too."""

    def __init__(self, vault: Vault, replica: Replica, opener: Opener | None) -> None:
        self._vault, self._replica, self._opener = vault, replica, opener
        self._trust = Trust.of(vault)
        # Of a directory blocks cost nothing, and fit in the processor's cache as they are hashed:
        # 1.5 GB/s a core instead of 1.0. Of a bucket each block would be a request.
        self._in_blocks = opener is None and bounded(replica.store) is not None

    def read(
        self, after: str, budget: Budget, clock: Callable[[], float], told: Callable[[int], None]
    ) -> Iterator[Part]:
        """Everything behind the name `after`, as far as the budget goes, in parts.

        `clock` gives seconds, `told` hears of bytes that were read.
        """
        infos = self._listed(after)
        started, submitted, part, over = clock(), 0, Part(after), False
        flying: deque[tuple[ObjectInfo, Future[Part]]] = deque()
        with ThreadPoolExecutor(READERS, "scrub") as pool:
            while part.problem is None and (flying or not over):
                spent = budget.bytes is not None and submitted >= budget.bytes
                spent |= budget.seconds is not None and clock() - started >= budget.seconds
                info = None if over or (spent and submitted) else self._next(infos, part)
                over |= info is None
                if info is not None:
                    submitted += max(info.size_bytes, 1)
                    flying.append((info, pool.submit(self.inspect, info.key, info.size_bytes)))
                if len(flying) > (0 if over else _AHEAD):
                    _take(part, *flying.popleft(), told)
                if part.bytes >= CHECKPOINT_BYTES and part.problem is None:
                    yield part
                    part = Part(part.through)
            pool.shutdown(wait=True, cancel_futures=True)
        if part.problem is None and self._next(infos, part) is None and part.problem is None:
            part.through = ""
        yield part

    def inspect(self, key: str, size_bytes: int = 0) -> Part:
        """One object, of the length that was listed, if that is known.

        Raises what says that the replica, or a key, is not there at all.
        """
        part, data = Part(key), b""
        try:
            if self._in_blocks and size_bytes > _BLOCK_BYTES and key.startswith(CONTENT):
                part.bytes = check_content_blocks(key, self._blocks(key, size_bytes))
            else:
                data = self._vault.replicas.ask(self._replica, lambda store: store.read(key))
                part.bytes = len(data)
                if not self._trust.check(key, data):
                    self._compare(key, data)
        except ObjectMissing:
            part.missing.add(key)
            return part
        except SignedTooLate:
            return part
        except DamagedData as error:
            part.damaged[key] = str(error)
            return part
        except StoreError as error:
            if error.retryable:
                raise
            part.damaged[key] = f"it cannot be read: {error}"
            return part
        if self._opener is not None and key.startswith((*CONTENT, layout.WAL_PREFIX)):
            try:
                self._opener.check(key, data)
            except (DamagedData, KeyUnusable) as error:
                part.unopened[key] = str(error)
        return part

    def _blocks(self, key: str, size_bytes: int) -> Iterator[bytes]:
        for start in range(0, size_bytes, _BLOCK_BYTES):
            length = min(_BLOCK_BYTES, size_bytes - start)
            yield self._vault.replicas.ask(
                self._replica, partial(_read_range, key=key, offset=start, length=length)
            )

    def _compare(self, key: str, data: bytes) -> None:
        """Raise `DamagedData` where other replicas have this object, and all hold other bytes."""
        if not key.startswith(_AGREEING):
            return
        differs = []
        for replica in self._vault.replicas.replicas:
            if replica.name == self._replica.name:
                continue
            try:
                other = self._vault.replicas.ask(replica, lambda store: store.read(key))
            except (StoreError, DamagedData):
                continue
            if other == data:
                return
            differs.append(replica.name)
        if differs:
            raise DamagedData(f"{key} differs on {differs[0]}, and nobody can tell which is right")

    def _listed(self, after: str) -> Iterator[ObjectInfo]:
        """The objects behind a name. Raises `StoreError` where the store does not keep order."""
        last = ""
        for info in self._vault.replicas.ask(self._replica, lambda store: store.list("")):
            if info.key < last:
                raise StoreError(
                    f"replica {self._replica.name} does not list in order",
                    detail=f"{info.key} comes after {last}",
                    hint="what was read cannot be remembered there; use another store",
                )
            if info.key not in (after, last) and info.key > after:
                yield info
            last = info.key

    @staticmethod
    def _next(infos: Iterator[ObjectInfo], part: Part) -> ObjectInfo | None:
        try:
            return next(infos, None)
        except StoreError as error:
            part.problem = error
            return None


def _read_range(store: Store, key: str, offset: int, length: int) -> bytes:
    return store.read_range(key, offset, length)


def _take(part: Part, info: ObjectInfo, future: Future[Part], told: Callable[[int], None]) -> None:
    """Add one object to what was read, unless it could not be judged."""
    try:
        one = future.result()
    except CellarerError as error:
        part.problem = error
        return
    part.through = info.key
    part.objects, part.bytes = part.objects + 1, part.bytes + one.bytes
    part.damaged |= one.damaged
    part.unopened |= one.unopened
    part.missing |= one.missing
    told(one.bytes)


def current_round(
    found: Sequence[LedgerEntry], replica: str, depth: str, commits: Sequence[Commit]
) -> Round:
    """The round that was begun and is not over, else a new one."""
    last = next(iter(reversed(_facts(found, replica, depth))), None)
    if last is not None and last["through"]:
        points, of = last["points"]
        return Round(int(last["round"]), str(last["through"]), int(points), str(of))
    number = int(last["round"]) + 1 if last is not None else 1
    return Round(number, "", len(commits), _fingerprint(commits))


def record_part(
    vault: Vault, replica: str, depth: str, round_: Round, part: Part, now: datetime
) -> None:
    """Write into the ledger what was read, and how far: the next run goes on from there."""
    fact: Mapping[str, object] = {
        "bytes": part.bytes,
        "damaged": len(part.damaged) + len(part.unopened) + len(part.missing),
        "depth": depth,
        "objects": part.objects,
        "points": [round_.points, round_.of],
        "replica": replica,
        "round": round_.number,
        "through": part.through,
        "type": "scrub",
    }
    record_fact(vault, fact, now)


def read_in_round(round_: Round, commits: Sequence[Commit]) -> Sequence[Commit]:
    """The points that were there when a round began: by their order, not by their times.

    None where an older point came to the vault since, which another replica had alone.
    """
    begun = commits[: round_.points]
    return begun if _fingerprint(begun) == round_.of else ()


def damaged_in_round(
    found: Sequence[LedgerEntry], replica: str, depth: str, number: int
) -> set[str]:
    """Objects that were found damaged on a replica since a round began, healed or not."""
    damaged: set[str] = set()
    begun = number == 1
    for entry in found:
        fact = entry.fact
        if fact["type"] == "scrub" and fact["replica"] == replica and fact["depth"] == depth:
            begun = begun or fact["round"] == number - 1
        if begun and fact["type"] == "damage" and fact["replica"] == replica:
            damaged.update(map(str, fact["objects"]))
    return damaged


def last_whole(found: Sequence[LedgerEntry], replica: str, now: datetime) -> datetime | None:
    """When a round of this replica was last over, of either depth; not what is dated later."""
    times = [
        layout.parse_time(str(fact["time"]))
        for depth in (STORED, KEYED)
        for fact in _facts(found, replica, depth)
        if not fact["through"]
    ]
    return max((time for time in times if not ahead(time, now)), default=None)


def _facts(found: Sequence[LedgerEntry], replica: str, depth: str) -> list[dict[str, Any]]:
    return [
        fact
        for fact in facts_in(found, "scrub")
        if fact.get("replica") == replica and fact.get("depth") == depth
    ]


def _fingerprint(commits: Sequence[Commit]) -> str:
    return hashlib.sha256("".join(commit.sha256 for commit in commits).encode()).hexdigest()
