"""A call that hangs must not hang the backup: for stores whose calls cannot be given a time limit.

A read from a network mount whose server is gone waits in the kernel, where nothing in this process
can reach it. So every call runs in a thread of its own, and is left to itself when its time is
over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

from cellarer.errors import StoreError
from cellarer.ports import ObjectInfo, Store
from cellarer.stores.layer import StoreLayer

T = TypeVar("T")

HANGING_CALLS = 8
"""How many may be left to themselves; each keeps a thread, and the bytes of an upload."""

_LISTED_AT_ONCE = 1000


class TimeLimited(StoreLayer):
    """A call that takes longer than `seconds` fails, and may still take effect later.

    That is what a lost reply means anywhere: creating is safe to repeat, as it compares, and a name
    that was deleted is never used for anything else. While `HANGING_CALLS` hang, no more are begun.
    """

    def __init__(self, inner: Store, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._hanging = 0

    def create(self, key: str, data: bytes) -> None:
        self._limited(f"{key} cannot be stored", lambda: self._inner.create(key, data))

    def read(self, key: str) -> bytes:
        return self._limited(f"{key} cannot be read", lambda: self._inner.read(key))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._limited(
            f"{key} cannot be read", lambda: self._inner.read_range(key, offset, length)
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # Some names for each thread: one for each name would cost more than reading them.
        message = f"{prefix or 'the store'} cannot be listed"
        listing = iter(self._inner.list(prefix))
        while infos := self._limited(message, lambda: [*islice(listing, _LISTED_AT_ONCE)]):
            yield from infos

    def delete(self, key: str) -> None:
        self._limited(f"{key} cannot be deleted", lambda: self._inner.delete(key))

    def _limited(self, message: str, act: Callable[[], T]) -> T:
        with self._lock:
            if self._hanging >= HANGING_CALLS:
                raise self._late(message, f"{self._hanging} earlier calls still hang")
        outcome: Future[T] = Future()

        def work() -> None:
            try:
                result = act()
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        # A daemon: the program ends even where this thread never does.
        threading.Thread(target=work, name="store-call", daemon=True).start()
        try:
            return outcome.result(self._seconds)
        except TimeoutError:
            if outcome.done():
                return outcome.result()  # it came at the last moment, or raised this itself
            with self._lock:
                self._hanging += 1
            outcome.add_done_callback(self._returned)
            raise self._late(message, f"no answer within {self._seconds:.0f} seconds") from None

    def _returned(self, outcome: Future[T]) -> None:
        with self._lock:
            self._hanging -= 1

    def _late(self, message: str, reason: str) -> StoreError:
        return StoreError(
            message,
            detail=f"{reason}; {self.url}",
            hint="look at the disk or the network mount; where it is only slow, raise the "
            "replica's `timeout`",
            retryable=True,
        )
