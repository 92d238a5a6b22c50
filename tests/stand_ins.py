"""Stores in memory that a test may damage, and small vaults on them."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing
from cellarer.ports import ObjectInfo, Store, Stream
from cellarer.vault.founding import make, prepare
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import SnapshotWriter
from faulty import Fault as Fault  # noqa: PLC0414 - tests take it from here
from faulty import Faults as Faults  # noqa: PLC0414 - tests take it from here
from faulty import FaultyStore as FaultyStore  # noqa: PLC0414 - tests take it from here
from faulty import PowerCut as PowerCut  # noqa: PLC0414 - tests take it from here


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


def ticking() -> Callable[[], datetime]:
    """A clock that moves on by a second whenever it is read."""
    start = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    seconds = itertools.count()
    return lambda: start + timedelta(seconds=next(seconds))


class Days:
    """A clock that moves when a test says so, and by a second whenever it is read."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment

    def next(self) -> None:
        """A day passes."""
        self.moment += timedelta(days=1)


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
    make(replica_set, made)
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
