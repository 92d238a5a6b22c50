"""What the restore points of a vault need, added up from their references."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cellarer.errors import CellarerError, DamagedData, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.index import RecordPlaces
from cellarer.vault.manifest import record_places
from cellarer.vault.moved import load_moves
from cellarer.vault.moves import (
    NOWHERE,
    PLACE,
    Moves,
    MoveTable,
    PackNames,
    Traced,
    as_places,
    distinct,
)
from cellarer.vault.registers import Outcome, Repack, read_outcomes
from cellarer.vault.replicas import ReplicaSet, unreachable
from cellarer.vault.rounds import follows
from cellarer.vault.tombstones import tombstones
from cellarer.vault.vault import Commit, Vault

_MERGED_AT = 1 << 20
_READERS = 16
_READ_AT_ONCE = 256
"""References of points: what was read waits for nobody to add it up."""


@dataclass(frozen=True, eq=False)
class Needed:
    """What has to stay on one replica: names in `packs/` and `meta/`, and the places of records."""

    objects: frozenset[str]
    places: np.ndarray


class Needs:
    """Grows with every `refresh`; what was needed once stays needed for as long as this lives.

    `without` are points that count as forgotten already: for showing what would go. With `shown_by`
    only the points count that this replica shows.
    """

    def __init__(
        self, vault: Vault, without: Collection[str] = (), *, shown_by: str | None = None
    ) -> None:
        self._vault, self._shown_by = vault, shown_by
        self._without = frozenset(without)
        self._references: set[str] = set()
        self._places = _Places()
        self._points: set[str] = set()
        self._tables: dict[str, MoveTable] = {}
        self.packs = PackNames()
        """The names that the numbers in places stand for."""
        self.repacks: dict[str, Repack] = {}
        """Session -> what was repacked there."""
        self.forgotten: set[str] = set()
        """Sessions that were committed and then given up."""
        self.sessions: set[str] = set()
        """Those whose keys the points need: their own, and of those whose packs they share."""
        self.unknown: set[str] = set()
        """Points whose references could not be read, where `refresh` was to go on without them."""

    @property
    def points(self) -> AbstractSet[str]:
        """The restore points that were added up."""
        return self._points

    def refresh(self) -> None:
        """Read the registers again, and the references of restore points that are new.

        Raises `VaultUnreachable` unless every replica answers, and `DamagedData` where a register,
        a tombstone or references cannot be read: what a point needs that nobody can read is not
        known, so nothing may be deleted.
        """
        require_all(self._vault.replicas)
        given_up = tombstones(self._vault) | self._without
        outcomes = read_outcomes(self._vault)
        require_all(self._vault.replicas)
        refuse_unreadable(self._vault)
        new = list(self._new_in(outcomes, given_up))
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(new), _READ_AT_ONCE):
                some = new[start : start + _READ_AT_ONCE]
                for commit, records in zip(some, pool.map(self._needed_by, some), strict=True):
                    self._take(commit, records)

    def estimate(self) -> None:
        """The same as far as it can be known now: good for keeping, never for deleting.

        Raises `VaultUnreachable` where no replica answers.
        """
        given_up = tombstones(self._vault) | self._without
        for commit in self._new_in(read_outcomes(self._vault), given_up):
            try:
                self._take(commit, self._needed_by(commit))
            except (DamagedData, VaultUnreachable):
                self.unknown.add(commit.session)
        for repack in list(self.repacks.values()):
            try:
                self._table(repack.moves)
            except (DamagedData, VaultUnreachable):
                del self.repacks[repack.session]  # it was collected, or what it led to is unknown

    def _new_in(self, outcomes: Iterable[Outcome], given_up: AbstractSet[str]) -> Iterator[Commit]:
        """The points whose needs are not known yet; the others are noted."""
        for outcome in outcomes:
            if isinstance(outcome, Repack):
                self.repacks[outcome.session] = outcome
            elif outcome.session in given_up:
                self.forgotten.add(outcome.session)
            elif outcome.session not in self._points and self._shown_by in (
                None,
                *outcome.replicas,
            ):
                yield outcome

    def on(
        self, replica: str, stored: AbstractSet[str], avoided: AbstractSet[str] = frozenset()
    ) -> Needed:
        """What has to stay on a replica, of which this is `stored`. Raises as `refresh`."""
        here, coming = [], set[str]()
        for repack in self.repacks.values():
            if follows(replica in repack.replicas, repack.moves, stored):
                here.append(repack.moves)
            elif repack.moves in stored and replica not in repack.absent:
                # Its register will come; until then nothing here is known to lie there.
                coming |= {repack.moves, *self._table(repack.moves).targets}
        traced, unread = self._traced(here)
        homes = traced.homes(self.packs, stored, avoided)
        _refuse_doubt(homes, unread)
        homes = distinct(homes[homes["pack"] != NOWHERE])
        packs = {self.packs.names[n] for n in np.unique(homes["pack"]).tolist()}
        kept = (self._references | coming | traced.used) & stored
        return Needed(frozenset(packs | kept), homes)

    def robbed(self, replica: str, stored: AbstractSet[str], going: AbstractSet[str]) -> str | None:
        """An object of `going` without which some point cannot be read any more on a replica.

        None where all that it can read of them, it can read without. Raises as `refresh`.
        """
        for references in self._references & stored & going:
            return references
        before, after = (self._homes(replica, left) for left in (stored, stored - going))
        lost = before["pack"][(before["pack"] != NOWHERE) & (after["pack"] == NOWHERE)]
        return self.packs.names[int(lost[0])] if len(lost) else None

    def _homes(self, replica: str, stored: AbstractSet[str]) -> np.ndarray:
        here = [
            repack.moves
            for repack in self.repacks.values()
            if follows(replica in repack.replicas, repack.moves, stored)
        ]
        traced, unread = self._traced(here)
        homes = traced.homes(self.packs, stored)
        _refuse_doubt(homes, unread)
        return homes

    def _traced(self, names: Sequence[str]) -> tuple[Traced, DamagedData | None]:
        """Where the records that points need were moved to, and why some table is not followed."""

        def attempt(name: str) -> MoveTable | DamagedData:
            try:
                return self._table(name)
            except DamagedData as error:
                return error

        with ThreadPoolExecutor(_READERS) as pool:
            found = dict(zip(names, pool.map(attempt, names), strict=True))
        read = [(name, table) for name, table in found.items() if isinstance(table, MoveTable)]
        unread = [error for error in found.values() if isinstance(error, DamagedData)]
        moves = Moves(self.packs, read)
        return moves.trace(self._places.all()), unread[0] if unread else None

    def _table(self, name: str) -> MoveTable:
        table = self._tables.get(name)
        if table is None:
            try:
                table = load_moves(self._vault, name)
            except DamagedData as error:
                raise DamagedData(
                    f"{name}, which tells where records were moved to, cannot be read, so nothing "
                    "is deleted",
                    detail=str(error),
                    hint="bring it back with `cellarer scrub --repair`; if no replica has it "
                    "whole, `cellarer scrub --deep` names the points that need it",
                ) from error
            self._tables[name] = table
        return table

    def _needed_by(self, commit: Commit) -> RecordPlaces:
        key = str(commit.body["references"])

        def check(data: bytes) -> RecordPlaces:
            return record_places(self._vault.index_key, layout.check_content_name(key, data))

        try:
            records = self._vault.replicas.fetch(key, check)
        except DamagedData as error:
            raise DamagedData(
                f"the references of {commit.session} cannot be read, so nothing is deleted",
                detail=str(error),
                hint="bring them back from another replica with `cellarer sync`",
            ) from error
        return records

    def _take(self, commit: Commit, records: RecordPlaces) -> None:
        self._places.add(as_places(self.packs, records))
        self._references.add(str(commit.body["references"]))
        self.sessions.update((commit.session, *records.sessions))
        self._points.add(commit.session)


def _refuse_doubt(homes: np.ndarray, unread: DamagedData | None) -> None:
    """Raise `unread`, of a table of moves, where a record lies nowhere that is known without it.

    Where every record has another place, nothing needs what only that table leads to.
    """
    if unread is not None and (homes["pack"] == NOWHERE).any():
        raise unread


class _Places:
    """Distinct places of records, 12 bytes each, and some that are to be merged into them."""

    def __init__(self) -> None:
        self._merged = np.empty(0, PLACE)
        self._new: list[np.ndarray] = []
        self._pending = 0

    def add(self, places: np.ndarray) -> None:
        self._new.append(places)
        self._pending += len(places)
        if self._pending > max(_MERGED_AT, len(self._merged)):
            self.all()

    def all(self) -> np.ndarray:
        if self._new:
            self._merged = distinct(self._merged, *self._new)
            self._new, self._pending = [], 0
        return self._merged


def require_all(replicas: ReplicaSet) -> None:
    """Raise `VaultUnreachable` unless every replica answers and holds the vault.

    On the one that is away may lie a hold, a proof, or a point that needs what seems to be needed
    by nobody. One without the marker is a disk that is not mounted, or new.
    """
    answers = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    away = {name: a for name, a in answers.items() if isinstance(a, CellarerError)}
    away |= replicas.unlisted
    if away:
        error = unreachable("not every replica answers, so nothing is forgotten or deleted", away)
        raise VaultUnreachable(
            error.message,
            detail=error.detail,
            hint="bring it back and run `cellarer sync`, or take it out of [[vault.replicas]]",
            retryable=True,
        )


def refuse_unreadable(vault: Vault) -> None:
    """Raise `DamagedData` where some control object of the vault could not be read anywhere."""
    if vault.unreadable:
        key, error = min(vault.unreadable.items())
        raise DamagedData(
            f"{len(vault.unreadable)} objects of the vault cannot be read, so nothing is forgotten "
            "or deleted",
            detail=f"{key}: {error}",
            hint="bring them back from another replica with `cellarer sync`, or an older copy; "
            "docs/guides/retention.md has what to do where they are lost for good",
        )
