"""Stores that fail as a test has planned it: the one tool of every crash sweep."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import TypeVar

from cellarer.errors import StoreError
from cellarer.ports import ObjectInfo, Store

T = TypeVar("T")


class Fault(Enum):
    """What happens to one operation of a store."""

    CRASH_BEFORE = auto()
    """`PowerCut` without an effect; nothing works afterwards."""
    CRASH_AFTER = auto()
    """`PowerCut` with the effect there."""
    KILL_BEFORE = auto()
    """This process ends by SIGKILL, without an effect; for tests with a process of their own."""
    KILL_AFTER = auto()
    REFUSE = auto()
    """An error that may pass, without an effect."""
    LOSE_REPLY = auto()
    """An error that may pass, with the effect there."""
    FLIP_BIT = auto()
    """A read brings one wrong bit, in its middle."""
    TRUNCATE = auto()
    """A read brings the first half."""
    LIST_STALE = auto()
    """A listing without what was created through this store, with what was deleted."""
    LIST_REORDERED = auto()
    """A listing in the opposite order."""
    LIST_TWICE = auto()
    """A listing with every object twice in a row."""


class Gate:
    """Holds an operation up, without an effect yet, until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def hold(self) -> None:
        """Called by the store: wait until the gate is open."""
        self.reached.set()
        self.opened.wait()


Fate = Fault | Gate
DEADLY = {Fault.CRASH_BEFORE, Fault.CRASH_AFTER}


class PowerCut(BaseException):
    """The program ends here: nothing may catch it, and nothing works after it."""


class Faults:
    """Decides the fate of every operation on the stores that share it.

    `counts` says which operations (by method name) are numbered, from 0; `plan` says what happens
    to the one of a number.
    """

    def __init__(
        self,
        plan: Callable[[int], Fate | None],
        counts: Callable[[str], bool] = lambda method: True,
    ) -> None:
        self._plan, self._counts = plan, counts
        self._lock = threading.Lock()
        self._dead = False
        self.operations = 0

    def next(self, method: str) -> Fate | None:
        """The fate of the operation that begins now."""
        with self._lock:
            if self._dead:
                raise PowerCut
            if not self._counts(method):
                return None
            fate = self._plan(self.operations)
            self.operations += 1
            self._dead = fate in DEADLY
            return fate


class FaultyStore:
    """A store whose operations meet the fates that `Faults` decides."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self._inner, self._faults = inner, faults
        self._created: set[str] = set()
        self._deleted: dict[str, ObjectInfo] = {}

    @property
    def url(self) -> str:
        return self._inner.url

    def create(self, key: str, data: bytes) -> None:
        def act() -> None:
            self._inner.create(key, data)
            self._created.add(key)

        self._do("create", act)

    def read(self, key: str) -> bytes:
        return self._do("read", lambda: self._inner.read(key), damaged)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._do("read_range", lambda: self._inner.read_range(key, offset, length), damaged)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        def spoil(infos: Iterator[ObjectInfo], fate: Fate | None) -> Iterator[ObjectInfo]:
            return self._spoilt(infos, prefix, fate)

        return self._do("list", lambda: self._inner.list(prefix), spoil)

    def delete(self, key: str) -> None:
        def act() -> None:
            held = [info for info in self._inner.list("") if info.key == key]
            self._inner.delete(key)
            self._deleted.update({info.key: info for info in held})

        self._do("delete", act)

    def _spoilt(
        self, infos: Iterator[ObjectInfo], prefix: str, fate: Fate | None
    ) -> Iterator[ObjectInfo]:
        if fate is Fault.LIST_REORDERED:
            return reversed([*infos])
        if fate is Fault.LIST_TWICE:
            return (info for info in infos for _ in range(2))
        if fate is Fault.LIST_STALE:
            seen = {info.key: info for info in infos if info.key not in self._created}
            gone = {k: info for k, info in self._deleted.items() if k.startswith(prefix)}
            return iter(sorted((seen | gone).values(), key=lambda info: info.key))
        return infos

    def _do(
        self,
        method: str,
        act: Callable[[], T],
        spoil: Callable[[T, Fate | None], T] = lambda answer, fate: answer,
    ) -> T:
        fate = self._faults.next(method)
        if isinstance(fate, Gate):
            fate.hold()
        if fate is Fault.CRASH_BEFORE:
            raise PowerCut
        if fate is Fault.KILL_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate is Fault.REFUSE:
            raise StoreError(f"{method} was refused", retryable=True)
        answer = act()
        if fate is Fault.CRASH_AFTER:
            raise PowerCut
        if fate is Fault.KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate is Fault.LOSE_REPLY:
            raise StoreError(f"no reply to {method}", retryable=True)
        return spoil(answer, fate)


def damaged(data: bytes, fate: Fate | None) -> bytes:
    """What a read brings under this fate."""
    middle = len(data) // 2
    if fate is Fault.TRUNCATE:
        return data[:middle]
    if fate is Fault.FLIP_BIT and data:
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return data
