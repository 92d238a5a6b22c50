"""Telling packs that their records have left from packs that are lost.

References go on naming the packs in which records lay once. After a repack these are gone, and
what must be there instead is the new pack, and the table that leads there.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import numpy as np

from cellarer.errors import DamagedData, VaultUnreachable
from cellarer.vault.index import RecordPlaces
from cellarer.vault.moved import load_moves
from cellarer.vault.moves import NOWHERE, Moves, MoveTable, PackNames, as_places
from cellarer.vault.vault import Vault


class Departed:
    """The repacks of a vault. `watched` are the packs and tables that may take another's place."""

    def __init__(self, vault: Vault) -> None:
        self._repacks = vault.repacks()
        self._tables: dict[str, MoveTable] = {}
        self.watched: set[str] = set()
        for repack in self._repacks:
            try:
                table = load_moves(vault, repack.moves)
            except (DamagedData, VaultUnreachable):
                # It was collected; if it is lost, so is what it led to, for who has its register. A
                # replica that is away may have it, and nothing is said of that one.
                continue
            self._tables[repack.moves] = table
            self.watched |= {repack.moves, *table.targets}

    def lost(
        self,
        replica: str,
        missing: AbstractSet[str],
        held: AbstractSet[str],
        points: Iterable[RecordPlaces],
    ) -> set[str]:
        """What is missing on a replica in truth, where references name what is `missing`.

        `held` is what it lists of `watched`. Where a record lies nowhere, its latest pack is lost.
        """
        packs = PackNames()
        counting = [r.moves for r in self._repacks if replica in r.replicas]
        moves = Moves(packs, ((n, self._tables[n]) for n in counting if n in self._tables))
        named: set[str] = set()
        lost: set[str] = set()
        for records in points:
            named |= {*records.packs} & missing
            places = as_places(packs, records)
            gone = np.array([name in missing for name in records.packs])
            if not gone.any():
                continue
            traced = moves.trace(places[gone[records.rows["pack"]]])
            lost |= traced.used - held
            homes = traced.homes(packs, held)
            for place in np.flatnonzero(homes["pack"] == NOWHERE).tolist():
                numbers = [int(column[place]["pack"]) for column in traced.columns]
                lost.add(packs.names[[n for n in numbers if n != NOWHERE][-1]])
        return {*missing - named, *lost}

    def behind(self, records: RecordPlaces) -> set[str]:
        """The packs and tables, besides those that it names, in which a point's records may lie."""
        packs = PackNames()
        traced = Moves(packs, self._tables.items()).trace(as_places(packs, records))
        found = set(traced.used)
        for column in traced.columns[1:]:
            numbers = np.unique(column["pack"][column["pack"] != NOWHERE])
            found |= {packs.names[number] for number in numbers.tolist()}
        return found
