"""Several stores as one: read from the nearest that has the bytes whole, or asked all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cellarer.errors import (
    CellarerError,
    DamagedData,
    KeyUnusable,
    ObjectMissing,
    StoreError,
    VaultUnreachable,
)
from cellarer.ports import Store
from cellarer.vault import format as layout
from cellarer.vault.age import NotSealedTo
from cellarer.vault.asking import LEFT_ALONE, Answers, Pace, Race
from cellarer.vault.trust import SignedTooLate

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""How long one replica may be silent when all are asked at once and another has answered."""

LARGE_BYTES = 1 << 20
"""A read of so much is compared with reads of packs, a smaller one with other small ones."""


class AnotherVault(StoreError):
    """A replica holds another vault, `found`: nothing is read there, and nothing written."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"it holds another vault, {found}", hint="correct its url in [[vault.replicas]]"
        )
        self.found = found


@dataclass(frozen=True)
class Replica:
    """A named copy of the vault."""

    name: str
    store: Store


class ReplicaSet:
    """The replicas of one vault; `write_quorum` of them must take a snapshot.

    A replica that did not answer, its store's own retries included, is not asked again: a dead
    endpoint costs its timeout once, not once for each object. `clock` counts seconds.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        write_quorum: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replicas = tuple(replicas)
        self.write_quorum = write_quorum
        self._clock = clock
        self._paces = {replica.name: Pace() for replica in self.replicas}
        self._away: dict[str, StoreError] = {}
        self._aside: dict[str, AnotherVault] = {}
        self.damaged: dict[str, set[str]] = {}
        """Replica name -> objects that were damaged there and read from another replica, and keys
        of sessions that a writer found damaged, or lost where they have to be."""
        self.missing: dict[str, set[str]] = {}
        """The same for objects that were not there; a replica that is behind lacks some."""
        self.unlisted: dict[str, CellarerError] = {}
        """Replica name -> why a listing of it failed: what lies there may be missing in answers."""

    def named(self, name: str) -> Replica:
        """The replica of this name, which there is."""
        return next(replica for replica in self.replicas if replica.name == name)

    @property
    def away(self) -> list[str]:
        """The replicas that did not answer when they were last asked."""
        return list(self._away)

    def ask_again(self) -> None:
        """Ask those again that did not answer: for who runs longer than an outage lasts."""
        self._away.clear()

    def leave_alone(self, name: str, why: StoreError) -> None:
        """Take a replica for one that does not answer, and say why."""
        self._away[name] = why

    @property
    def aside(self) -> list[str]:
        """The replicas that hold another vault."""
        return list(self._aside)

    def set_aside(self, name: str, found: str) -> None:
        """Ask a replica no more that holds another vault, `found`; forget what it said."""
        self._aside[name] = AnotherVault(found)
        self.damaged.pop(name, None)
        self.missing.pop(name, None)

    def listings(self, prefix: str) -> dict[str, dict[str, int]]:
        """Replica name -> key -> size in bytes, for every replica that answers.

        Raises `VaultUnreachable` when none does.
        """

        def read(replica: Replica, sign: Callable[[], None]) -> dict[str, int]:
            def listed(store: Store) -> dict[str, int]:
                found = {}
                for info in store.list(prefix):
                    found[info.key] = info.size_bytes
                    sign()
                return found

            return self.ask(replica, listed)

        answers = self._each(self.replicas, read)
        found = {name: answer for name, answer in answers.items() if isinstance(answer, dict)}
        self.unlisted |= {n: a for n, a in answers.items() if isinstance(a, CellarerError)}
        if not found:
            raise unreachable("no replica of the vault answers", answers)
        return found

    def each(self, act: Callable[[Store], T]) -> dict[str, T | CellarerError]:
        """Do the same on every replica at once; an error stands in the place of an answer."""
        return self._each(self.replicas, lambda replica, sign: self.ask(replica, act))

    def each_of(
        self, replicas: Sequence[Replica], act: Callable[[Replica], T]
    ) -> dict[str, T | CellarerError]:
        """The same with some of the replicas; `act` uses `ask`."""
        return self._each(replicas, lambda replica, sign: act(replica))

    def _each(
        self, replicas: Sequence[Replica], act: Callable[[Replica, Callable[[], None]], T]
    ) -> dict[str, T | CellarerError]:
        """The same; `act` gets what it calls as a sign of life, so that long answers may be long.

        Once one replica has answered, another that gives no such sign is not waited for.
        """
        signs = {replica.name: self._clock() for replica in replicas}
        asked: Answers[T] = Answers()

        def attempt(replica: Replica) -> T:
            def sign() -> None:
                signs[replica.name] = self._clock()

            return act(replica, sign)

        for replica in replicas:
            asked.ask(replica.name, partial(attempt, replica))
        answers: dict[str, T | CellarerError] = {}
        first: float | None = None
        while waiting := [r for r in replicas if r.name not in answers]:
            if first is None:
                came = asked.next(None)
            else:
                due = {r.name: max(first, signs[r.name]) + PATIENCE_SECONDS for r in waiting}
                came = asked.next(min(due.values()) - self._clock())
            if came is not None:
                answers[came[0]] = came[1]
                if first is None and came[0] not in {*self._away, *self._aside}:
                    first = self._clock()
                continue
            for replica in waiting:
                if due[replica.name] <= self._clock():
                    answers[replica.name] = self.give_up(replica)
        return {replica.name: answers[replica.name] for replica in replicas}

    def give_up(self, replica: Replica) -> StoreError:
        """Ask a replica no more that does not answer; the error to say so."""
        error = StoreError(
            f"replica {replica.name} does not answer",
            detail=f"no sign of life for {PATIENCE_SECONDS:.0f} seconds; {replica.store.url}",
            hint="see `cellarer doctor`",
            retryable=True,
        )
        return self._away.setdefault(replica.name, error)

    def fetch(self, key: str, check: Callable[[bytes], T]) -> T:
        """What `check` makes of an object, from the first replica whose bytes it accepts.

        `check` raises `DamagedData` for bytes that are not what was written, and `KeyUnusable`
        for those that the key at hand does not open.
        """
        large = key.startswith(layout.PACKS_PREFIX)
        return self._first(key, lambda store: store.read(key), check, large=large)

    def fetch_range(self, key: str, offset: int, length: int, check: Callable[[bytes], T]) -> T:
        """The same for a part of an object."""
        return self._first(
            key,
            lambda store: store.read_range(key, offset, length),
            check,
            large=length >= LARGE_BYTES,
        )

    def ask(self, replica: Replica, act: Callable[[Store], T]) -> T:
        """What one replica answers; one that did not answer before is not asked again."""
        for silent in (self._aside, self._away):
            if replica.name in silent:
                raise silent[replica.name]
        try:
            return act(replica.store)
        except StoreError as error:
            if error.retryable:
                self._away[replica.name] = error
            raise

    def _first(
        self,
        key: str,
        read: Callable[[Store], bytes],
        check: Callable[[bytes], T],
        *,
        large: bool,
    ) -> T:
        """The nearest replica is asked, and the next one where it is late or has no good answer."""
        named = {replica.name: replica for replica in self.replicas}

        def attempt(name: str) -> T:
            began = self._clock()
            data = self.ask(named[name], read)
            self._paces[name].took(self._clock() - began, large=large)
            return check(data)

        def tell(name: str, problem: CellarerError) -> None:
            # What another replica's copy opens, and this one does not, is no wrong key.
            if isinstance(problem, DamagedData | NotSealedTo):
                self.damaged.setdefault(name, set()).add(key)
            elif isinstance(problem, ObjectMissing):
                self.missing.setdefault(name, set()).add(key)

        race: Race[T] = Race(self._paces, tell, large=large)
        for answer in race.run(self._nearest(large=large), attempt):
            return answer
        raise none_whole(key, race.problems)

    def _nearest(self, *, large: bool) -> list[str]:
        """The replicas in the order in which they are asked; as the config has them where alike."""

        def rank(name: str) -> tuple[bool, bool, int]:
            pace = self._paces[name]
            return name in self._away, pace.owed >= LEFT_ALONE, pace.distance(large=large)

        return sorted((replica.name for replica in self.replicas), key=rank)


def unreachable(message: str, answers: dict[str, T | CellarerError]) -> VaultUnreachable:
    """The error for too few replicas, with what each of them said."""
    problems = {name: a for name, a in answers.items() if isinstance(a, CellarerError)}
    hint = next((problem.hint for problem in problems.values() if problem.hint), "")
    return VaultUnreachable(
        message, detail=said(problems), hint=hint or "see `cellarer doctor`", retryable=True
    )


def said(problems: dict[str, CellarerError]) -> str:
    """What each replica said, on one line."""
    return "; ".join(f"{name}: {problem}" for name, problem in problems.items())


def none_whole(key: str, problems: dict[str, CellarerError]) -> CellarerError:
    """The error for an object that no replica gave, with what each of them said."""
    problems = {n: p for n, p in problems.items() if not isinstance(p, AnotherVault)}
    late = next((p for p in problems.values() if isinstance(p, SignedTooLate)), None)
    if late and all(isinstance(p, SignedTooLate | StoreError) for p in problems.values()):
        return late
    detail = said(problems)
    hint = next((p.hint for p in problems.values() if isinstance(p, DamagedData) and p.hint), "")
    for problem in problems.values():
        # A damaged envelope can look like one for somebody else, so every replica is asked.
        if isinstance(problem, KeyUnusable):
            return problem
    if any(isinstance(problem, DamagedData) for problem in problems.values()):
        other = "restore another point: `cellarer verify --point ID` tells which are whole"
        if key.startswith(layout.SNAPSHOTS_PREFIX):
            other = (
                "run `cellarer scrub --repair`; docs/guides/retention.md has what to do where it "
                "is lost for good"
            )
        if key.startswith((layout.CONFIG_PREFIX, layout.FORMAT_KEY)):
            other = (
                f"nothing is read without it: copy {key} back from an older state of a replica, "
                "such as a version of the bucket or a snapshot of the disk"
            )
        return DamagedData(f"no replica has {key} whole", detail=detail, hint=hint or other)
    if all(isinstance(problem, ObjectMissing) for problem in problems.values()):
        return DamagedData(f"{key} is missing on every replica", detail=detail)
    return VaultUnreachable(
        f"{key} cannot be read", detail=detail, hint="see `cellarer doctor`", retryable=True
    )
