"""Stores that act when they are let, or not at all."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from cellarer.errors import CellarerError, StoreError
from cellarer.ports import ObjectInfo
from stand_ins import Objects, PowerCut

T = TypeVar("T")


class Pace:
    """Lets a thread do its next operations, one by one."""

    def __init__(self, act: Callable[[Pace], None]) -> None:
        self._waiting: queue.Queue[tuple[threading.Event, threading.Event] | None] = queue.Queue()
        self._killed = False
        self.ended = False
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._thread.start()

    def _run(self, act: Callable[[Pace], None]) -> None:
        with contextlib.suppress(PowerCut, CellarerError):
            act(self)
        self._waiting.put(None)

    def step(self, operation: Callable[[], T]) -> T:
        """In the thread: wait for leave, then act."""
        leave, done = threading.Event(), threading.Event()
        self._waiting.put((leave, done))
        leave.wait()
        try:
            if self._killed:
                raise PowerCut
            return operation()
        finally:
            done.set()

    def go(self, operations: int) -> None:
        """Let it do so many operations, or as many as it wants."""
        while operations and not self.ended:
            waiting = self._waiting.get()
            if waiting is None:
                self.ended = True
                self._thread.join()
                return
            waiting[0].set()
            waiting[1].wait()
            operations -= 1

    def kill(self) -> None:
        """It ends before its next operation."""
        self._killed = True
        self.go(10_000)


class PacedStore:
    """A store that acts when it is let; reading needs no leave."""

    def __init__(self, inner: Objects, pace: Pace) -> None:
        self._inner, self._pace = inner, pace
        self.url = inner.url
        self.read, self.read_range = inner.read, inner.read_range

    def create(self, key: str, data: bytes) -> None:
        self._pace.step(lambda: self._inner.create(key, data))

    def delete(self, key: str) -> None:
        self._pace.step(lambda: self._inner.delete(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._pace.step(lambda: self._inner.list(prefix))


class AwayStore:
    """A store that does not answer while `away` says so."""

    def __init__(self, inner: Objects, away: Callable[[], bool]) -> None:
        self._inner, self._away = inner, away
        self.url = inner.url

    def _answering(self) -> Objects:
        if self._away():
            raise StoreError("the replica is away", retryable=True)
        return self._inner

    def create(self, key: str, data: bytes) -> None:
        self._answering().create(key, data)

    def read(self, key: str) -> bytes:
        return self._answering().read(key)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._answering().read_range(key, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._answering().list(prefix)

    def delete(self, key: str) -> None:
        self._answering().delete(key)
