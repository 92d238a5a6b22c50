"""All replicas asked at once, by who must not be held up by one that the quorum does not need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from cellarer.errors import CellarerError, StoreError
from cellarer.vault.asking import Answers
from cellarer.vault.replicas import Replica, ReplicaSet

T = TypeVar("T")

GRACE_SECONDS = 2.0
"""How long the others are waited for when the quorum has answered."""

OWED_AT_MOST = 4
"""What a replica may be late with before it is asked no more; each may hold a segment in memory."""

AGAIN_SECONDS = 30.0
"""A replica that did not answer is asked again after so long: whoever asks here runs for days."""


class Prompt:
    """Asks the replicas of a vault; those that are late become debts. `clock` counts seconds.

    What a late one was asked goes on in its thread, and may still be done.
    """

    def __init__(self, replicas: ReplicaSet, clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas, self._clock = replicas, clock
        self._lock = threading.Lock()
        self._owed = {replica.name: 0 for replica in replicas.replicas}
        self._asked_again = clock()

    def each(
        self, act: Callable[[Replica], T], names: Collection[str] | None = None
    ) -> dict[str, T | CellarerError]:
        """What each replica answers, or those of some names; an error for one that is late.

        It waits until as many as the quorum gave a good answer, and for the others a little.
        """
        self._ask_again()
        chosen = [r for r in self._replicas.replicas if names is None or r.name in names]
        answers: dict[str, T | CellarerError] = {}
        asked: Answers[T] = Answers()
        for replica in chosen:
            if self._owes(replica.name):
                answers[replica.name] = _late(replica)
            else:
                asked.ask(replica.name, partial(self._attempt, replica, act))
        good, until = 0, None
        while waiting := [r for r in chosen if r.name not in answers]:
            came = asked.next(None if until is None else until - self._clock())
            if came is None:
                return answers | {replica.name: _late(replica) for replica in waiting}
            answers[came[0]] = came[1]
            good += not isinstance(came[1], CellarerError)
            if good >= self._replicas.write_quorum and until is None:
                until = self._clock() + GRACE_SECONDS
        return answers

    def _attempt(self, replica: Replica, act: Callable[[Replica], T]) -> T:
        with self._lock:
            self._owed[replica.name] += 1
        try:
            return act(replica)
        finally:
            with self._lock:
                self._owed[replica.name] -= 1

    def _owes(self, name: str) -> bool:
        with self._lock:
            return self._owed[name] >= OWED_AT_MOST

    def _ask_again(self) -> None:
        if self._clock() - self._asked_again >= AGAIN_SECONDS:
            self._asked_again = self._clock()
            self._replicas.ask_again()


def _late(replica: Replica) -> StoreError:
    return StoreError(
        f"replica {replica.name} is late",
        detail=f"the others were not held up for it; {replica.store.url}",
        hint="`cellarer sync` brings it what it lacks",
        retryable=True,
    )
