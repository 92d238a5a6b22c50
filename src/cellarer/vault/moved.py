"""Tables of moves as they lie in a vault: which of them count, and what they say of a point."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from cellarer.errors import DamagedData, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.index import RecordPlace, RecordPlaces
from cellarer.vault.moves import NOWHERE, PLACE, Moves, MoveTable, PackNames, as_places
from cellarer.vault.rounds import follows
from cellarer.vault.vault import Vault

_READERS = 16


def load_moves(vault: Vault, name: str) -> MoveTable:
    """A table of moves, checked against the name of its object. Raises `DamagedData`."""

    def check(data: bytes) -> MoveTable:
        return MoveTable.unseal(vault.index_key, layout.check_content_name(name, data))

    return vault.replicas.fetch(name, check)


def tables_on(vault: Vault, replica: str, stored: AbstractSet[str]) -> list[tuple[str, MoveTable]]:
    """The tables that count on a replica of which this is `stored`, in their order."""
    names = [
        repack.moves
        for repack in vault.repacks()
        if follows(replica in repack.replicas, repack.moves, stored)
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(zip(names, pool.map(partial(load_moves, vault), names), strict=True))


def lie_among(
    records: RecordPlaces, held: AbstractSet[str], tables: Iterable[tuple[str, MoveTable]]
) -> bool:
    """Whether each record lies in a pack that is held, if not where it was, where it was put."""
    if held >= {*records.packs}:
        return True
    packs = PackNames()
    homes = Moves(packs, tables).trace(as_places(packs, records)).homes(packs, held)
    return bool((homes["pack"] != NOWHERE).all())


class MovedRecords:
    """Where the records of a point lie after repacks; read only when one is not where it was."""

    def __init__(self, vault: Vault, wanted: RecordPlaces) -> None:
        self._vault = vault
        self._packs = PackNames()
        self._places = as_places(self._packs, wanted)
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._moves: Moves | None = None
        self._wanted: Mapping[str, int] = {}

    def places(self, place: RecordPlace) -> list[RecordPlace]:
        """Where else a record lies, as far as is known here; the latest first."""
        moves = self._moves
        if moves is None:
            return []
        with self._lock:
            number = self._packs.number(place.pack)
        start = np.array([(number, place.offset, place.length)], PLACE)
        names = self._packs.names
        return [
            replace(place, pack=names[int(column[0]["pack"])], offset=int(column[0]["offset"]))
            for column in reversed(moves.trace(start).columns[1:])
        ]

    def wanted(self, pack: str) -> int:
        """How many bytes of the point were moved to this pack."""
        return self._wanted.get(pack, 0)

    def refresh(self) -> None:
        """Look for repacks that were not known here. Raises `VaultUnreachable`."""
        with self._lock:
            listings = self._vault.replicas.listings(layout.SNAPSHOTS_PREFIX).values()
            ended = {key for found in listings for key in found}
            if ended == self._seen:
                return
            names = [repack.moves for repack in self._vault.repacks()]
            with ThreadPoolExecutor(_READERS) as pool:
                found = zip(names, pool.map(self._table, names), strict=True)
                known = [(name, table) for name, table in found if table is not None]
            self._moves, self._seen = Moves(self._packs, known), ended
            wanted = np.zeros(len(self._packs.names), np.int64)
            for column in self._moves.trace(self._places).columns[1:]:
                moved = column[column["pack"] != NOWHERE]
                np.add.at(wanted, moved["pack"], moved["length"])
            self._wanted = dict(zip(self._packs.names, wanted.tolist(), strict=True))

    def _table(self, name: str) -> MoveTable | None:
        """None for one that was collected, as no point needs it. If this one does, that is told of
        the record that is not found."""
        try:
            return load_moves(self._vault, name)
        except (DamagedData, VaultUnreachable):
            return None
