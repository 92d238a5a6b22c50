"""Patience with a store that answered a moment ago and does not now.

What a client library retries by itself takes seconds and bridges one lost request. This bridges a
minute: a router that starts anew, a store that is being updated, a network mount that comes back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from cellarer.errors import CellarerError
from cellarer.ports import ObjectInfo, Store
from cellarer.stores.layer import StoreLayer

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to try again, and how the pauses grow: doubled from the first to the longest.

    Each pause is between half and the whole of that, so that hosts which lost a store together do
    not come back together.
    """

    total_seconds: float = 60.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 10.0

    def pause(self, attempt: int, chance: float) -> float:
        """The pause after attempt 0, 1, … `chance` is 0 to 1."""
        whole = min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(attempt, 60))
        return whole * (1 + chance) / 2


class Retrying(StoreLayer):
    """Tries again what may succeed later, and only that.

    A store that never answered is not waited for: it is more likely misnamed than passing through
    an outage. Nor is one on which all patience was spent, until it answers again. Trying `create`
    again is safe after a lost reply, as the same bytes again are success.
    """

    def __init__(
        self,
        inner: Store,
        patience: Patience | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(inner)
        self._patience = patience or Patience()
        self._sleep, self._clock, self._chance = sleep, clock, chance
        self._answers = False

    def create(self, key: str, data: bytes) -> None:
        self._persist(lambda: self._inner.create(key, data))

    def read(self, key: str) -> bytes:
        return self._persist(lambda: self._inner.read(key))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._persist(lambda: self._inner.read_range(key, offset, length))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        listing: Iterator[ObjectInfo] | None = None
        last = told = ""

        def following() -> ObjectInfo | None:
            """The next object. A listing that broke off is begun anew; what was told is skipped."""
            nonlocal listing, told
            if listing is None:
                listing, told = iter(self._inner.list(prefix)), last
            try:
                return next((info for info in listing if info.key > told), None)
            except CellarerError:
                listing = None
                raise

        while (info := self._persist(following)) is not None:
            last = info.key
            yield info

    def delete(self, key: str) -> None:
        self._persist(lambda: self._inner.delete(key))

    def _persist(self, act: Callable[[], T]) -> T:
        began, attempt = self._clock(), 0
        while True:
            try:
                answer = act()
            except CellarerError as error:
                if not error.retryable:
                    self._answers = True
                    raise
                pause = self._patience.pause(attempt, self._chance())
                spent = self._clock() - began + pause
                if not self._answers or spent > self._patience.total_seconds:
                    self._answers = False
                    raise
                self._sleep(pause)
                attempt += 1
            else:
                self._answers = True
                return answer
