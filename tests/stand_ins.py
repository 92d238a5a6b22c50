"""Stores in memory that fail on demand, and small vaults on them."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import TypeVar

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo, Store, Stream
from cellarer.vault.founding import make, prepare
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import SnapshotWriter

T = TypeVar("T")


class Objects:
    """A store that keeps its objects in a dict, which tests may damage."""

    def __init__(self, name: str = "one", objects: Mapping[str, bytes] | None = None) -> None:
        self.url = f"memory:{name}"
        self.objects = dict(objects or {})
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes) -> None:
        with self._lock:
            if self.objects.setdefault(key, data) != data:
                raise ObjectExists(key)

    def read(self, key: str) -> bytes:
        with self._lock:
            if key not in self.objects:
                raise ObjectMissing(key)
            return self.objects[key]

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        part = self.read(key)[offset : offset + length]
        if len(part) != length:
            raise DamagedData(f"{key} ends early")
        return part

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            found = [ObjectInfo(k, len(v)) for k, v in self.objects.items() if k.startswith(prefix)]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)

    def damage(self, key: str, change: Callable[[bytes], bytes | None]) -> None:
        """Replace an object behind the vault's back; None removes it."""
        changed = change(self.objects[key])
        if changed is None:
            del self.objects[key]
        else:
            self.objects[key] = changed


def flip(bit: int) -> Callable[[bytes], bytes]:
    """A change of this one bit."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    return change


def truncate(length: int) -> Callable[[bytes], bytes]:
    """A cut to this length."""
    return lambda data: data[:length]


class Fault(Enum):
    """What happens to one operation of a store."""

    CRASH_BEFORE = auto()
    CRASH_AFTER = auto()
    LOSE_REPLY = auto()
    REFUSE = auto()


class PowerCut(BaseException):
    """The program ends here: nothing may catch it, and nothing works after it."""


class Faults:
    """Decides the fate of every operation on the stores that share it.

    `counts` says which operations (by method name) are numbered, from 0; `plan` says what happens
    to the one of a number.
    """

    def __init__(
        self,
        plan: Callable[[int], Fault | None],
        counts: Callable[[str], bool] = lambda method: True,
    ) -> None:
        self._plan, self._counts = plan, counts
        self._lock = threading.Lock()
        self._dead = False
        self.operations = 0

    def next(self, method: str) -> Fault | None:
        """The fate of the operation that begins now."""
        with self._lock:
            if self._dead:
                raise PowerCut
            if not self._counts(method):
                return None
            fault = self._plan(self.operations)
            self.operations += 1
            self._dead = fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
            return fault


class FaultyStore:
    """A store whose operations meet the fates that `Faults` decides."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    @property
    def url(self) -> str:
        return self._inner.url

    def create(self, key: str, data: bytes) -> None:
        self._do("create", lambda: self._inner.create(key, data))

    def read(self, key: str) -> bytes:
        return self._do("read", lambda: self._inner.read(key))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._do("read_range", lambda: self._inner.read_range(key, offset, length))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._do("list", lambda: self._inner.list(prefix))

    def delete(self, key: str) -> None:
        self._do("delete", lambda: self._inner.delete(key))

    def _do(self, method: str, act: Callable[[], T]) -> T:
        fault = self._faults.next(method)
        if fault is Fault.CRASH_BEFORE:
            raise PowerCut
        if fault is Fault.REFUSE:
            raise StoreError(f"{method} was refused", retryable=True)
        answer = act()
        if fault is Fault.CRASH_AFTER:
            raise PowerCut
        if fault is Fault.LOSE_REPLY:
            raise StoreError(f"no reply to {method}", retryable=True)
        return answer


def ticking() -> Callable[[], datetime]:
    """A clock that moves on by a second whenever it is read."""
    start = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    seconds = itertools.count()
    return lambda: start + timedelta(seconds=next(seconds))


@dataclass
class Founded:
    """A vault on stores in memory, with its keys and a clock."""

    stores: dict[str, Objects]
    write_quorum: int
    write_key: WriteKey
    identity: Identity
    now: Callable[[], datetime]
    collect_key: CollectKey | None = None

    def replicas(
        self, wrap: Callable[[str, Objects], Store] = lambda name, store: store
    ) -> ReplicaSet:
        """Its replicas; `wrap` may put something around each store."""
        wrapped = [Replica(name, wrap(name, store)) for name, store in self.stores.items()]
        return ReplicaSet(wrapped, self.write_quorum)

    def open(self, replicas: ReplicaSet | None = None) -> Vault:
        """With both keys."""
        return Vault.open(replicas or self.replicas(), self.write_key, self.identity)

    def alone(self, name: str) -> Founded:
        """The same vault where only one replica is left."""
        return replace(self, stores={name: self.stores[name]}, write_quorum=1)

    def copy(self) -> Founded:
        """The same vault on copies of the stores."""
        stores = {name: Objects(name, store.objects) for name, store in self.stores.items()}
        return replace(self, stores=stores)

    def backup(
        self, contents: Mapping[str, bytes], vault: Vault | None = None, source: str = "db"
    ) -> Commit:
        """One snapshot of these streams."""
        writer = SnapshotWriter(vault or self.open(), source, "test", self.now)
        try:
            for path, data in contents.items():
                writer.add(Stream(path, "test", blocks(data), len(data)))
            return writer.commit()
        finally:
            writer.abandon()


def found(replicas: int = 1, write_quorum: int = 1, identity: Identity | None = None) -> Founded:
    """A new vault; its replicas are called a, b, c."""
    stores = {name: Objects(name) for name in "abc"[:replicas]}
    identity, now = identity or Identity.generate(), ticking()
    replica_set = ReplicaSet([Replica(n, s) for n, s in stores.items()], write_quorum)
    made = prepare(identity, now())
    make(replica_set, made, identity)
    return Founded(stores, write_quorum, made.write_key, identity, now, made.collect_key)


def restored(vault: Vault, commit: Commit) -> dict[str, bytes]:
    """Everything that a snapshot holds."""
    reader = SnapshotReader(vault, commit)
    return {entry.path: b"".join(reader.read(entry.path)) for entry in reader.entries()}


def all_restored(vault: Vault) -> dict[str, dict[str, bytes]]:
    """Everything that all snapshots hold, by their ids."""
    return {commit.session: restored(vault, commit) for commit in vault.commits()}


def blocks(data: bytes, block_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The data in pieces, as a source gives it."""
    return (data[at : at + block_bytes] for at in range(0, len(data), block_bytes))


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return random.Random(seed).randbytes(length)
