"""What each replica must hold for the restore points that it shows, without reading content.

Packs are known by 32 bytes each and compared shard by shard, so that a vault of two million of
them takes 64 MB a replica.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cellarer.errors import DamagedData
from cellarer.vault import format as layout
from cellarer.vault.configuration import epochs
from cellarer.vault.departed import Departed
from cellarer.vault.envelopes import ADMIN, VAULT, parse_name, superseded
from cellarer.vault.format import check_content_name
from cellarer.vault.index import RecordPlaces
from cellarer.vault.ledger import entries
from cellarer.vault.log_inventory import must_be_there
from cellarer.vault.log_keys import log_keys
from cellarer.vault.manifest import needed, record_places
from cellarer.vault.replicas import Replica
from cellarer.vault.vault import Commit, Vault

CONTENT = (layout.PACKS_PREFIX, layout.META_PREFIX)
"""Prefixes of what is named by its SHA-256."""

_CONTROL = (
    layout.CONFIG_PREFIX,
    layout.KEYS_PREFIX,
    layout.SESSIONS_PREFIX,
    layout.SNAPSHOTS_PREFIX,
    layout.INDEX_PREFIX,
    layout.WAL_PREFIX,
    layout.LEDGER_PREFIX,
)
_DEBTS = (layout.WAL_PREFIX, layout.LEDGER_PREFIX)
"""Written where a replica answers; `sync` brings them to the others."""

_NAME = re.compile(r"(packs/|meta/)([0-9a-f]{2})/(\2[0-9a-f]{62})")
_BATCH = 32
_MERGED_AT = 1 << 18
_META_SEGMENTS_FROM = 100_000


class NameSet:
    """SHA-256 names: 32 bytes each in a sorted array, and some that are to be merged into it."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, "S32")
        self._new: list[np.ndarray] = []
        self._pending = 0

    def add(self, digests: np.ndarray) -> None:
        """Enter some digests."""
        if len(self._sorted):
            at = np.minimum(np.searchsorted(self._sorted, digests), len(self._sorted) - 1)
            digests = digests[self._sorted[at] != digests]
        self._new.append(digests)
        self._pending += len(digests)
        if self._pending > _MERGED_AT:
            self._merge()

    def shard(self, first: int) -> set[str]:
        """The names, in hex, whose first byte this is."""
        self._merge()
        bounds = [bytes([first]), *([bytes([first + 1])] if first < 255 else [])]
        start, *ends = np.searchsorted(self._sorted, np.array(bounds, "S32")).tolist()
        end = ends[0] if ends else len(self._sorted)
        # numpy drops zeros at the end
        return {digest.ljust(32, b"\0").hex() for digest in self._sorted[start:end].tolist()}

    def _merge(self) -> None:
        if self._new:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._new]))
            self._new, self._pending = [], 0


@dataclass(frozen=True)
class _Needed:
    commit: Commit
    content: dict[str, np.ndarray]
    sessions: Sequence[str]
    references_bytes: int


@dataclass
class Expected:
    """What one replica must hold: control objects by their keys, the others by prefix."""

    control: set[str] = field(default_factory=set)
    content: dict[str, NameSet] = field(default_factory=lambda: {p: NameSet() for p in CONTENT})


@dataclass(frozen=True)
class Listed:
    """What a replica lists, compared with what it must hold.

    `missing` is not there. `suspect` has another size than it can have, or than elsewhere: reading
    it tells. `owed` counts what may never have come there: points that the replica was not shown to
    have, and ledger entries and files of write-ahead log that another replica has.
    """

    objects: int
    bytes: int
    missing: set[str]
    suspect: set[str]
    owed: int


class Inventory:
    """Made once for all replicas; `compare` lists one of them.

    Raises `VaultUnreachable` where no replica answers.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.history = vault.commits(forgotten=True)
        """The commits of all points, in their order, those that were given up as well."""
        self.commits = [commit for commit in self.history if not commit.forgotten]
        self._references: dict[str, int] = {}
        self._listings = {prefix: vault.replicas.listings(prefix) for prefix in _CONTROL}
        self._sizes: dict[str, int] = {}
        self._differing = self._differences()
        held = {r.name: sessions_of(self.history, r.name) for r in vault.replicas.replicas}
        self._departed = Departed(vault)
        self._held = held
        self._log = self._log_objects()
        self._expected = {name: self._foundation() for name in held}
        for name, sessions in held.items():
            self._expected[name].control.update(map(layout.snapshot_key, sessions))
        self._add_points(held)

    def compare(self, replica: Replica) -> Listed:
        """List a replica. Raises `StoreError`."""
        expected = self._expected[replica.name]
        control: set[str] = set()
        count = total = 0
        missing: set[str] = set()
        suspect: set[str] = set()
        watched: set[str] = set()
        unseen = {(prefix, first) for prefix in CONTENT for first in range(256)}
        infos = self._vault.replicas.ask(replica, lambda store: store.list(""))
        for group, members in itertools.groupby(infos, lambda info: _shard(info.key)):
            sizes = {info.key: info.size_bytes for info in members}
            count, total = count + len(sizes), total + sum(sizes.values())
            if group is None:
                control |= sizes.keys()
                continue
            unseen.discard(group)
            watched |= sizes.keys() & self._departed.watched
            wanted = _keys(expected, *group)
            missing |= wanted - sizes.keys()
            suspect |= {key for key in wanted & sizes.keys() if not self._can_be(key, sizes[key])}
        for group in unseen:
            missing |= _keys(expected, *group)
        if missing and self._departed.watched:
            missing = self._departed.lost(replica.name, missing, watched, self._points(replica))
        missing |= expected.control - control
        suspect |= self._differing & control
        debts = {key for key in missing if key.startswith(_DEBTS) and key in self._sizes}
        behind = {commit.session for commit in self.commits} - self._held[replica.name]
        return Listed(count, total, missing - debts, suspect, len(debts) + len(behind))

    def _points(self, replica: Replica) -> Iterator[RecordPlaces]:
        """Where the references of the points of a replica say that records lie."""
        for commit in self.commits:
            if commit.session in self._held[replica.name]:
                key = str(commit.body["references"])
                yield from self._vault.gather([key], self._records)

    def _records(self, key: str) -> RecordPlaces:
        def check(data: bytes) -> RecordPlaces:
            return record_places(self._vault.index_key, check_content_name(key, data))

        return self._vault.replicas.fetch(key, check)

    def _can_be(self, key: str, size_bytes: int) -> bool:
        """Whether an object that a point needs can be so long; packs have few possible sizes."""
        if key in self._references:
            return self._references[key] in (0, size_bytes)
        return layout.padded_length(size_bytes) == size_bytes

    def _differences(self) -> set[str]:
        differing = set()
        for found in self._listings.values():
            for listing in found.values():
                for key, size in listing.items():
                    if self._sizes.setdefault(key, size) != size:
                        differing.add(key)
        return differing

    def _everywhere(self, prefix: str) -> set[str]:
        return {key for listing in self._listings[prefix].values() for key in listing}

    def _foundation(self) -> Expected:
        """What every replica must hold whatever points it shows."""
        names = epochs(self._vault.replicas)
        keys = self._current_envelopes()
        return Expected(
            self._log
            | {
                layout.FORMAT_KEY,
                layout.RESCUE_KEY,
                *self._everywhere(layout.CONFIG_PREFIX),
                *(layout.config_key(epoch) for epoch in range(len(names))),
                *(key for key, name in keys.items() if name == VAULT or name.startswith(ADMIN)),
                *self._everywhere(layout.LEDGER_PREFIX),
            }
        )

    def _log_objects(self) -> set[str]:
        """The write-ahead log, and the keys that open it; what was deleted everywhere included."""
        told = entries(self._vault)
        found = must_be_there(self._everywhere(layout.WAL_PREFIX), told)
        envelopes = self._current_envelopes()
        for session, key in log_keys(self._vault).items() if found else ():
            found.add(layout.session_key(session))
            own = {name for name, of in envelopes.items() if of == session}
            found |= own or {key.envelope[0]}
        return found

    def _current_envelopes(self) -> dict[str, str]:
        """Envelopes that no later one has taken the place of, and what each is for."""
        found = self._everywhere(layout.KEYS_PREFIX)
        found -= superseded(found, len(epochs(self._vault.replicas)) - 1)
        return {key: parsed[0] for key in found if (parsed := parse_name(key))}

    def _add_points(self, held: Mapping[str, set[str]]) -> None:
        envelopes: dict[str, list[str]] = {}
        for key, name in self._current_envelopes().items():
            envelopes.setdefault(name, []).append(key)
        segments: dict[str, list[str]] = {}
        for key in self._everywhere(layout.INDEX_PREFIX):
            segments.setdefault(key.split("/")[1], []).append(key)
        for start in range(0, len(self.commits), _BATCH):
            batch = {c.session: c for c in self.commits[start : start + _BATCH]}
            for session, commit in batch.items():
                references = str(commit.body["references"])
                self._references[references] = 0
                for name in (name for name, sessions in held.items() if session in sessions):
                    expected = self._expected[name]
                    prefix, digests = next(iter(by_prefix([references]).items()))
                    expected.content[prefix].add(digests)
                    expected.control.update(_without_gaps(session, segments.get(session, ())))
            for need in self._vault.gather(batch, lambda s, batch=batch: self._read(batch[s])):  # type: ignore[misc]
                self._references[str(need.commit.body["references"])] = need.references_bytes
                for name in (n for n, sessions in held.items() if need.commit.session in sessions):
                    self._add(self._expected[name], need, envelopes)

    def _add(self, expected: Expected, need: _Needed, envelopes: Mapping[str, list[str]]) -> None:
        for prefix, digests in need.content.items():
            expected.content[prefix].add(digests)
        for session in need.sessions:
            expected.control.add(layout.session_key(session))
            expected.control.update(envelopes.get(session, [layout.envelope_key(session)]))

    def _read(self, commit: Commit) -> _Needed:
        key = str(commit.body["references"])

        def check(data: bytes) -> _Needed:
            packs, sessions = needed(self._vault.index_key, check_content_name(key, data))
            return _Needed(commit, by_prefix(packs), sessions, len(data))

        return self._vault.replicas.fetch(key, check)


def sessions_of(commits: Sequence[Commit], replica: str) -> set[str]:
    """The points that a replica shows, and those that it must have had.

    Who writes a snapshot to a replica saw there all those before. One that is not there, and none
    after it either, is not lost: the replica is behind.
    """
    held, linked = set(), set()
    for commit in reversed(commits):
        if replica in commit.replicas or commit.sha256 in linked:
            linked.add(commit.previous)
            if not commit.forgotten and replica not in commit.absent:
                held.add(commit.session)
    return held


def by_prefix(names: Iterable[str]) -> dict[str, np.ndarray]:
    """Names of packs and meta objects as digests. Raises `DamagedData` for other names."""
    digests: dict[str, list[bytes]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise DamagedData(f"references name {name!r}, which is no pack")
        digests.setdefault(match[1], []).append(bytes.fromhex(match[3]))
    return {prefix: np.array(found, "S32") for prefix, found in digests.items()}


def _without_gaps(session: str, keys: Iterable[str]) -> set[str]:
    """Segments of a session, and those that must have been before them: numbers have no gaps."""
    numbers = [int(key.split("/")[2]) for key in keys if key.split("/")[2].isdecimal()]
    found = set()
    for start in (0, _META_SEGMENTS_FROM):
        own = [n for n in numbers if start <= n < start + _META_SEGMENTS_FROM]
        found |= {layout.index_key(session, n) for n in range(start, max(own, default=-1) + 1)}
    return found


def _shard(key: str) -> tuple[str, int] | None:
    match = _NAME.fullmatch(key)
    return (match[1], int(match[2], 16)) if match else None


def _keys(expected: Expected, prefix: str, first: int) -> set[str]:
    return {layout.object_key(prefix, name) for name in expected.content[prefix].shard(first)}
