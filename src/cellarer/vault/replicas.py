"""Several stores as one: written at once, read from the first that has the bytes whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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

T = TypeVar("T")

UPLOADS_PER_REPLICA = 2


@dataclass(frozen=True)
class Replica:
    """A named copy of the vault."""

    name: str
    store: Store


class ReplicaSet:
    """The replicas of one vault; `write_quorum` of them must take a snapshot.

    A replica that did not answer, its store's own retries included, is not asked again: a dead
    endpoint costs its timeout once, not once for each object.
    """

    def __init__(self, replicas: Sequence[Replica], write_quorum: int) -> None:
        self.replicas = tuple(replicas)
        self.write_quorum = write_quorum
        self._away: dict[str, StoreError] = {}
        self.damaged: dict[str, set[str]] = {}
        """Replica name -> objects that were damaged there and read from another replica."""
        self.missing: dict[str, set[str]] = {}
        """The same for objects that were not there; a replica that is behind lacks some."""
        self.unlisted: dict[str, CellarerError] = {}
        """Replica name -> why a listing of it failed: what lies there may be missing in answers."""

    @property
    def away(self) -> list[str]:
        """The replicas that did not answer when they were last asked."""
        return list(self._away)

    def listings(self, prefix: str) -> dict[str, dict[str, int]]:
        """Replica name -> key -> size in bytes, for every replica that answers.

        Raises `VaultUnreachable` when none does.
        """
        answers = self.each(lambda store: {o.key: o.size_bytes for o in store.list(prefix)})
        found = {name: answer for name, answer in answers.items() if isinstance(answer, dict)}
        self.unlisted |= {n: a for n, a in answers.items() if isinstance(a, CellarerError)}
        if not found:
            raise unreachable("no replica of the vault answers", answers)
        return found

    def each(self, act: Callable[[Store], T]) -> dict[str, T | CellarerError]:
        """Do the same on every replica at once; an error stands in the place of an answer."""

        def attempt(replica: Replica) -> T | CellarerError:
            try:
                return self.ask(replica, act)
            except CellarerError as error:
                return error

        with ThreadPoolExecutor(max_workers=len(self.replicas)) as pool:
            answers = pool.map(attempt, self.replicas)
            return dict(zip((r.name for r in self.replicas), answers, strict=True))

    def fetch(self, key: str, check: Callable[[bytes], T]) -> T:
        """What `check` makes of an object, from the first replica whose bytes it accepts.

        `check` raises `DamagedData` for bytes that are not what was written, and `KeyUnusable`
        for those that the key at hand does not open.
        """
        return self._first(key, lambda store: check(store.read(key)))

    def fetch_range(self, key: str, offset: int, length: int, check: Callable[[bytes], T]) -> T:
        """The same for a part of an object."""
        return self._first(key, lambda store: check(store.read_range(key, offset, length)))

    def ask(self, replica: Replica, act: Callable[[Store], T]) -> T:
        """What one replica answers; one that did not answer before is not asked again."""
        if replica.name in self._away:
            raise self._away[replica.name]
        try:
            return act(replica.store)
        except StoreError as error:
            if error.retryable:
                self._away[replica.name] = error
            raise

    def _first(self, key: str, attempt: Callable[[Store], T]) -> T:
        problems: dict[str, CellarerError] = {}
        for replica in self.replicas:
            try:
                answer = self.ask(replica, attempt)
            except (StoreError, DamagedData, KeyUnusable) as error:
                problems[replica.name] = error
            else:
                for name, problem in problems.items():
                    if isinstance(problem, DamagedData):
                        self.damaged.setdefault(name, set()).add(key)
                    elif isinstance(problem, ObjectMissing):
                        self.missing.setdefault(name, set()).add(key)
                return answer
        raise none_whole(key, problems)


class Writing:
    """Puts the objects of one session on the replicas that take part in it.

    A replica that fails drops out and is a debt; fewer than the quorum left ends the session.
    """

    def __init__(self, replicas: Iterable[Replica], write_quorum: int) -> None:
        self._replicas = {replica.name: replica for replica in replicas}
        self._quorum = write_quorum
        self._pools = {
            name: ThreadPoolExecutor(UPLOADS_PER_REPLICA, f"upload-{name}")
            for name in self._replicas
        }
        self.failed: dict[str, CellarerError] = {}

    @property
    def replicas(self) -> list[Replica]:
        """Those that took everything so far."""
        return [replica for name, replica in self._replicas.items() if name not in self.failed]

    def drop(self, name: str, error: CellarerError) -> None:
        """Go on without a replica. Raises `VaultUnreachable` when too few are left."""
        self.failed[name] = error
        self.wait(())

    @property
    def alive(self) -> list[str]:
        """The replicas that took everything so far."""
        return [name for name in self._replicas if name not in self.failed]

    def start(self, key: str, data: bytes) -> list[Future[None]]:
        """Begin to store an object on every replica that is alive."""
        return [self._pools[name].submit(self._put, name, key, data) for name in self.alive]

    def put(self, key: str, data: bytes) -> None:
        """Store an object and wait for it."""
        self.wait(self.start(key, data))

    def wait(self, uploads: Iterable[Future[None]]) -> None:
        """Wait for uploads. Raises `VaultUnreachable` when too few replicas are left."""
        for upload in uploads:
            upload.result()
        if len(self.alive) < self._quorum:
            raise unreachable(
                f"{len(self.alive)} of {self._quorum} needed replicas take what is written",
                self.failed,
            )

    def close(self) -> None:
        """Stop the upload threads; waiting uploads are dropped."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def _put(self, name: str, key: str, data: bytes) -> None:
        if name in self.failed:
            return
        try:
            self._replicas[name].store.create(key, data)
        except CellarerError as error:
            self.failed[name] = error


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
    detail = said(problems)
    for problem in problems.values():
        # A damaged envelope can look like one for somebody else, so every replica is asked.
        if isinstance(problem, KeyUnusable):
            return problem
    if any(isinstance(problem, DamagedData) for problem in problems.values()):
        return DamagedData(
            f"no replica has {key} whole",
            detail=detail,
            hint="restore another point: `cellarer verify --point ID` tells which are whole",
        )
    if all(isinstance(problem, ObjectMissing) for problem in problems.values()):
        return DamagedData(f"{key} is missing on every replica", detail=detail)
    return VaultUnreachable(
        f"{key} cannot be read", detail=detail, hint="see `cellarer doctor`", retryable=True
    )
