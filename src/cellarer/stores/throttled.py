"""A limit on how much of a line a store may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from cellarer.ports import ObjectInfo, Store
from cellarer.stores.layer import StoreLayer


class TokenBucket:
    """So many bytes a second on average; what was not used is saved up for one second."""

    def __init__(
        self, bytes_per_second: int, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._rate = bytes_per_second
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._balance_bytes = float(bytes_per_second)
        self._counted = clock()

    def take(self, count_bytes: int) -> None:
        """Wait until these bytes are within the limit. Several threads wait one after the other."""
        with self._lock:
            now = self._clock()
            earned = (now - self._counted) * self._rate
            self._balance_bytes = min(self._rate, self._balance_bytes + earned) - count_bytes
            self._counted = now
            debt_bytes = -self._balance_bytes
        if debt_bytes > 0:
            self._sleep(debt_bytes / self._rate)


class Throttled(StoreLayer):
    """At most so many bytes of content a second, up and down each, on average.

    An object goes over the line in one piece; the pause is before it where it is written, and
    after it where it is read. Listings and requests themselves are not counted.
    """

    def __init__(
        self,
        inner: Store,
        bytes_per_second: int,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._up = TokenBucket(bytes_per_second, sleep, clock)
        self._down = TokenBucket(bytes_per_second, sleep, clock)

    def create(self, key: str, data: bytes) -> None:
        self._up.take(len(data))
        self._inner.create(key, data)

    def read(self, key: str) -> bytes:
        data = self._inner.read(key)
        self._down.take(len(data))
        return data

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        data = self._inner.read_range(key, offset, length)
        self._down.take(length)
        return data

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)
