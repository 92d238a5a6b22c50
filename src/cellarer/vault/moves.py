"""Where records went that were copied into other packs, and which of their places counts.

References name the pack in which a record lay when they were written, and are never changed. A
repack leaves a table of moves: the same bytes lie there as well. A place is a pack, an offset and
a length, and a pack is named by its bytes, so no table can put other bytes in a record's stead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from cellarer.errors import DamagedData
from cellarer.vault.crypto import seal, unseal
from cellarer.vault.format import count_in, frame, packs_in, unframe
from cellarer.vault.index import RecordPlaces
from cellarer.vault.rounds import home

PLACE = np.dtype([("pack", "<u4"), ("offset", "<u4"), ("length", "<u4")])
NOWHERE = 0xFFFFFFFF
"""Instead of a pack's number: there is no such place."""

_MOVE_FIELDS = np.dtype(
    [("pack", ">u4"), ("offset", ">u4"), ("length", ">u4"), ("to", ">u4"), ("at", ">u4")]
)
_PURPOSE = "cellarer/1/moves"


class PackNames:
    """Names of packs, and the numbers that stand for them in arrays."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """The number of each name; new ones are entered."""
        return np.array([self.number(name) for name in names], "<u4")

    def number(self, name: str) -> int:
        """The number of a name; a new one is entered."""
        found = self._numbers.setdefault(name, len(self.names))
        if found == len(self.names):
            self.names.append(name)
        return found


@dataclass(frozen=True, eq=False)
class MoveTable:
    """What one repack moved: rows whose packs are numbers in a list of names."""

    packs: Sequence[str]
    rows: np.ndarray

    @classmethod
    def of(
        cls, packs: Sequence[str], old: np.ndarray, new_packs: np.ndarray, new_offsets: np.ndarray
    ) -> MoveTable:
        """From the old places, and the pack and offset where each record lies as well now.

        Packs are numbers in `packs`; those that are used, once each, make the table.
        """
        rows = np.empty(len(old), _MOVE_FIELDS)
        for field in PLACE.names or ():
            rows[field] = old[field]
        rows["to"], rows["at"] = new_packs, new_offsets
        used, numbers = np.unique([rows["pack"], rows["to"]], return_inverse=True)
        rows["pack"], rows["to"] = numbers.reshape(2, -1)
        return cls([packs[number] for number in used.tolist()], rows)

    @property
    def sources(self) -> set[str]:
        """The packs that records were copied from."""
        return {self.packs[number] for number in np.unique(self.rows["pack"]).tolist()}

    @property
    def targets(self) -> set[str]:
        """The packs that they were copied to."""
        return {self.packs[number] for number in np.unique(self.rows["to"]).tolist()}

    def seal(self, index_key: bytes) -> bytes:
        """The object as it is stored."""
        header: dict[str, object] = {"moves": len(self.rows), "packs": list(self.packs)}
        return seal(index_key, frame(header, self.rows.tobytes()), _PURPOSE)

    @classmethod
    def unseal(cls, index_key: bytes, data: bytes) -> MoveTable:
        """Parse a stored object. Raises `DamagedData`."""
        header, arrays = unframe(unseal(index_key, data, _PURPOSE), "a table of moves")
        try:
            packs = packs_in(header["packs"])
            rows = np.frombuffer(arrays, _MOVE_FIELDS)
            if len(rows) != count_in(header, "moves"):
                raise ValueError("it has another length than it says")
            if len(rows) and max(rows["pack"].max(), rows["to"].max()) >= len(packs):
                raise ValueError("a record lies in no pack")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedData("a table of moves is broken", detail=str(error)) from error
        return cls(packs, rows)


@dataclass(frozen=True, eq=False)
class Traced:
    """All places of some records: `columns[0]` as they were named, the others where they went.

    The pack is `NOWHERE` where a record has no such place. `used` are the tables that say so.
    """

    columns: Sequence[np.ndarray]
    used: frozenset[str]

    def homes(
        self, packs: PackNames, stored: AbstractSet[str], avoided: AbstractSet[str] = frozenset()
    ) -> np.ndarray:
        """The place of each record that counts, by `rounds.home`; the latest is asked first."""
        latest_first = [*self.columns][::-1]
        count = len(latest_first[0])
        kinds = np.zeros(count, np.int64)
        for column in latest_first:
            _, kinds = np.unique(kinds << 32 | column["pack"], return_inverse=True)
        _, examples = np.unique(kinds, return_index=True)
        chosen = np.array(
            [self._choose(latest_first, row, packs, stored, avoided) for row in examples.tolist()],
            np.int64,
        )
        homes = _nowhere(count)
        if count:
            which = chosen[kinds]
            for number, column in enumerate(latest_first):
                homes[which == number] = column[which == number]
        return homes

    @staticmethod
    def _choose(
        columns: Sequence[np.ndarray],
        row: int,
        packs: PackNames,
        stored: AbstractSet[str],
        avoided: AbstractSet[str],
    ) -> int:
        numbers = [int(column[row]["pack"]) for column in columns]
        names = {packs.names[n]: at for at, n in reversed([*enumerate(numbers)]) if n != NOWHERE}
        ordered = [packs.names[number] for number in numbers if number != NOWHERE]
        found = home(ordered, stored, avoided)
        return -1 if found is None else names[found]


class Moves:
    """Several tables of moves as one, sorted: 24 bytes a move.

    `tables` come in the order of their sessions; where two moved the same record, the later counts.
    """

    def __init__(self, packs: PackNames, tables: Iterable[tuple[str, MoveTable]]) -> None:
        self.packs = packs
        self._tables: list[str] = []
        rows, origins = [np.empty(0, _MOVE_FIELDS.newbyteorder("<"))], [np.empty(0, "<u4")]
        for name, table in tables:
            own = table.rows.astype(_MOVE_FIELDS.newbyteorder("<"))
            numbers = packs.numbers(table.packs)
            if len(own):
                own["pack"], own["to"] = numbers[own["pack"]], numbers[own["to"]]
            rows.append(own)
            origins.append(np.full(len(own), len(self._tables), "<u4"))
            self._tables.append(name)
        joined, origin = np.concatenate(rows), np.concatenate(origins)
        keys = place_keys(joined)
        order = np.argsort(keys, kind="stable")
        self._keys, self._rows, self._origins = keys[order], joined[order], origin[order]

    def trace(self, places: np.ndarray) -> Traced:
        """All places of the records that are known by these."""
        columns, used = [places.astype(PLACE)], set[str]()
        at = 0
        while at < len(columns):
            for onward, origins in self._onward(columns[at]):
                for earlier in columns:
                    onward["pack"][earlier == onward] = NOWHERE
                there = onward["pack"] != NOWHERE
                if there.any():
                    columns.append(onward)
                    used |= {self._tables[n] for n in np.unique(origins[there]).tolist()}
            at += 1
        return Traced(columns, frozenset(used))

    def _onward(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where the records at these places were moved to, and by which tables; once or more."""
        keys = place_keys(places)
        start = np.searchsorted(self._keys, keys, "left")
        end = np.searchsorted(self._keys, keys, "right")
        for number in range(int((end - start).max(initial=0))):
            hit = np.flatnonzero((start + number < end) & (places["pack"] != NOWHERE))
            rows = start[hit] + number
            same = self._rows[rows]["length"] == places["length"][hit]
            hit, rows = hit[same], rows[same]
            onward = _nowhere(len(places))
            found = self._rows[rows]
            onward["pack"][hit], onward["offset"][hit] = found["to"], found["at"]
            onward["length"][hit] = found["length"]
            origins = np.zeros(len(places), "<u4")
            origins[hit] = self._origins[rows]
            yield onward, origins


def as_places(packs: PackNames, records: RecordPlaces) -> np.ndarray:
    """The places of records, with numbers of `packs`."""
    places: np.ndarray = np.empty(len(records), PLACE)
    for field in PLACE.names or ():
        places[field] = records.rows[field]
    if len(places):
        places["pack"] = packs.numbers(records.packs)[places["pack"]]
    return places


def _nowhere(count: int) -> np.ndarray:
    places = np.zeros(count, PLACE)
    places["pack"] = NOWHERE
    return places


def place_keys(places: np.ndarray) -> np.ndarray:
    """What sorts places by pack and offset."""
    high, low = places["pack"].astype("<u8"), places["offset"].astype("<u8")
    keys: np.ndarray = high << np.uint64(32) | low
    return keys


def distinct(*places: np.ndarray) -> np.ndarray:
    """Every place once, sorted by pack, offset and length."""
    joined = np.concatenate(places)
    order = np.lexsort((joined["length"], place_keys(joined)))
    ordered = joined[order]
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]
