"""Control objects that this host has read and verified before, so that none is fetched twice.

Registers, tombstones and ledger entries are many, small and never change. On a distant store each
costs a request, and each has a signature to compute. So their bytes are kept here, in one file.

What exists is what the replicas list: an object that none lists, or lists with another size, is not
taken from here, and whether its signer may say what it says is judged anew by whoever reads. Only
that the signature holds is believed, and bytes are believed only under a MAC of a key that follows
from the index key. A listing shows names and sizes: bytes of a replica that were changed in place
are not seen here. For that a sample is read from the replicas every time, and all by a scrub. The
file may be lost at any time, and is shared by several processes.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from blake3 import blake3

from cellarer.errors import DamagedData
from cellarer.vault.crypto import Verified, derive
from cellarer.vault.replicas import Replica, ReplicaSet

SAMPLE = 16
"""So many objects, chosen at random, are read from the replicas although they are known. A vault
with no more of a kind is always read whole."""

LARGEST_BYTES = 64 << 10
"""A control object has some hundred bytes; one with a long list in it is not kept."""

_READERS = 16
_BATCH = 64
_WAIT_SECONDS = 2.0
_SCHEMA = (
    "create table if not exists control (name text, size integer, data blob, mac blob, "
    "primary key (name, size)) without rowid"
)
_MAC_BYTES = 16
_PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
}  # fmt: skip
"""In use by another process, not to be written here, or no room: what is in it may be good."""

T = TypeVar("T")


class ControlCache:
    """The file of one vault in `directory`, which is made when something is kept; None for none.

    Trouble with it costs time, and nothing else: what cannot be read is fetched from the replicas.
    """

    def __init__(self, directory: Path | None, vault_id: str, index_key: bytes) -> None:
        self.file = directory / vault_id / "control.sqlite" if directory else None
        self._key = derive(index_key, f"cellarer/1/control-cache/{vault_id}")
        self.made: dict[tuple[str, int], Any] = {}
        """What was made of objects since the vault was opened, by name and size."""

    def load(self, prefix: str) -> dict[tuple[str, int], Verified]:
        """Name and size -> bytes, of all that is kept below a prefix and is whole."""
        if self.file is None or not self.file.exists():
            return {}
        try:
            with closing(self._open(self.file)) as database:
                rows = database.execute(
                    "select name, size, data, mac from control where name >= ? and name < ?",
                    (prefix, prefix + "\uffff"),
                )
                return {
                    (name, size): Verified(data)
                    for name, size, data, mac in rows
                    if len(data) == size and secrets.compare_digest(self._mac(name, data), mac)
                }
        except (OSError, sqlite3.Error, TypeError, AttributeError) as error:
            self._discard_unless_passing(error)
            return {}

    def keep(self, verified: Mapping[str, bytes]) -> None:
        """Remember these, too: name -> bytes that were checked."""
        rows = [
            (name, len(data), bytes(data), self._mac(name, data))
            for name, data in verified.items()
            if len(data) <= LARGEST_BYTES
        ]
        if self.file is None or not rows:
            return
        try:
            with closing(self._open(self.file)) as database, database:
                database.executemany("insert or replace into control values (?, ?, ?, ?)", rows)
        except (OSError, sqlite3.Error) as error:
            self._discard_unless_passing(error)

    def _mac(self, name: str, data: bytes) -> bytes:
        named = name.encode()
        content = len(named).to_bytes(4, "big") + named + data
        return blake3(content, key=self._key).digest(_MAC_BYTES)

    def _open(self, file: Path) -> sqlite3.Connection:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whatever SQLite puts beside it gets the same mode.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(file, timeout=_WAIT_SECONDS)
        try:
            database.execute(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def _discard_unless_passing(self, error: Exception) -> None:
        """Begin anew where the file is no database (any more), after a power cut for one."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        if isinstance(error, OSError) or code & 0xFF in _PASSING or self.file is None:
            return
        with suppress(OSError):
            for suffix in ("", "-journal"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)


class ListedObjects:
    """What the replicas list below a prefix, taken from the cache where it is known.

    `sizes` has for each name the size on each replica that lists it. Use it as a context: what was
    read for the first time is kept at its end.
    """

    def __init__(self, cache: ControlCache, replicas: ReplicaSet, prefix: str) -> None:
        self._cache, self._replicas = cache, replicas
        self.sizes: dict[str, dict[str, int]] = {}
        for replica, found in replicas.listings(prefix).items():
            for name, size in found.items():
                self.sizes.setdefault(name, {})[replica] = size
        self._many = len(self.sizes) > SAMPLE
        unmade = self._many and not all(map(self._is_made, self.sizes))
        self._known = cache.load(prefix) if unmade else {}
        self._afresh = frozenset(_some(self.sizes, SAMPLE))
        self._new: dict[str, bytes] = {}

    def fetch(self, name: str, check: Callable[[bytes], T]) -> T:
        """What `check` makes of an object; see `ReplicaSet.fetch`.

        It must depend on nothing but the bytes, and be the same for all that has this prefix.
        """
        made = self._made(name, set(self.sizes[name].values()), check)
        if made is not None:
            return made
        return self._replicas.fetch(name, lambda data: self._remember(name, data, check))

    def fetch_from(self, replica: Replica, name: str, check: Callable[[bytes], T]) -> T:
        """The same for what one replica holds. Raises `StoreError` or `DamagedData`."""
        made = self._made(name, {self.sizes[name][replica.name]}, check)
        if made is not None:
            return made
        data = self._replicas.ask(replica, lambda store: store.read(name))
        return self._remember(name, data, check)

    def _made(self, name: str, sizes: Iterable[int], check: Callable[[bytes], T]) -> T | None:
        """What is known of an object of one of these sizes, unless it is to be read afresh."""
        for size in sizes:
            if (name, size) in self._cache.made:
                made: T = self._cache.made[name, size]
                return made
            known = None if name in self._afresh else self._known.get((name, size))
            if known is not None:
                with suppress(DamagedData):  # by today's configuration; see the replicas' bytes
                    return self._remember(name, known, check)
        return None

    def _remember(self, name: str, data: bytes, check: Callable[[bytes], T]) -> T:
        made = check(data)
        if self._many:
            self._cache.made[name, len(data)] = made
        if self._many and self._known.get((name, len(data))) != data:
            self._new[name] = data
        return made

    def _is_made(self, name: str) -> bool:
        return any((name, size) in self._cache.made for size in self.sizes[name].values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._cache.keep(self._new)


def read_many(
    names: Iterable[str], read: Callable[[str], T]
) -> tuple[list[T], dict[str, DamagedData]]:
    """What `read` makes of many objects, read at once, in the order of their names; and by name
    the errors of those that no replica has whole."""
    problems: dict[str, DamagedData] = {}

    def attempt(batch: list[str]) -> list[T]:
        found = []
        for name in batch:
            try:
                found.append(read(name))
            except DamagedData as error:
                problems[name] = error
        return found

    ordered = sorted(names)
    # Handing each alone to a thread would cost more than reading one that is known.
    step = max(1, min(_BATCH, len(ordered) // _READERS))
    batches = [ordered[start : start + step] for start in range(0, len(ordered), step)]
    with ThreadPoolExecutor(_READERS) as pool:
        return [value for found in pool.map(attempt, batches) for value in found], problems


def _some(names: Iterable[str], count: int) -> list[str]:
    """So many of the names, by chance."""
    everything = list(names)
    return secrets.SystemRandom().sample(everything, min(count, len(everything)))
