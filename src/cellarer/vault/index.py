"""The index: which chunks are stored, and where.

On the vault it is segments, each the tables of contents of some packs of one session, sealed with
the index key. In memory it is sorted arrays of 24 bytes a chunk and 32 a record, never a dict: four
million chunks and two million records (a terabyte at 256 KiB) fit in 160 MB, and in half as much
again where a snapshot patches streams (`PlacedIds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from cellarer.errors import DamagedData
from cellarer.vault.crypto import seal, unseal
from cellarer.vault.format import ID_BYTES, frame, packs_in, unframe
from cellarer.vault.pack import TableOfContents

SEGMENT_CHUNKS = 1 << 16
"""A writer stores a segment whenever this many new chunks are in closed packs."""

_ID_HALVES = np.dtype([("high", ">u8"), ("low", ">u8")])
_SEGMENT_PURPOSE = "cellarer/1/index"

ABSENT = -1

RECORD_ROW = np.dtype(
    [("id", "V16"), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("session", "<u4")]
)
_UNSETTLED = 0xFFFFFFFF


@dataclass(frozen=True)
class RecordPlace:
    """Where one record lies and who sealed it."""

    id: bytes
    session: str
    pack: str
    offset: int
    length: int


@dataclass(frozen=True, eq=False)
class RecordPlaces(Sequence[RecordPlace]):
    """Places of many records: rows whose packs and sessions are numbers in two lists of names."""

    rows: np.ndarray
    packs: Sequence[str]
    sessions: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> RecordPlace: ...
    @overload
    def __getitem__(self, number: slice) -> RecordPlaces: ...
    def __getitem__(self, number: int | slice) -> RecordPlace | RecordPlaces:
        if isinstance(number, slice):
            return RecordPlaces(self.rows[number], self.packs, self.sessions)
        row = self.rows[number]
        return RecordPlace(
            row["id"].tobytes(),
            self.sessions[int(row["session"])],
            self.packs[int(row["pack"])],
            int(row["offset"]),
            int(row["length"]),
        )


def seal_segment(index_key: bytes, packs: Sequence[tuple[str, TableOfContents]]) -> bytes:
    """An index segment as it is stored: (pack key, table of contents) for each pack."""
    tocs = [toc.to_bytes() for _, toc in packs]
    header: dict[str, object] = {
        "packs": [[key, len(toc)] for (key, _), toc in zip(packs, tocs, strict=True)]
    }
    return seal(index_key, frame(header, *tocs), _SEGMENT_PURPOSE)


def open_segment(index_key: bytes, sealed: bytes) -> Iterator[tuple[str, TableOfContents]]:
    """The packs that a segment speaks of. Raises `DamagedData`."""
    header, arrays = unframe(unseal(index_key, sealed, _SEGMENT_PURPOSE), "an index segment")
    try:
        packs = [(str(key), int(length)) for key, length in header["packs"]]
        packs_in([key for key, _ in packs])
        if any(length < 0 for _, length in packs):
            raise ValueError("a length is negative")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedData("an index segment is broken", detail=str(error)) from error
    start = 0
    for key, length in packs:
        yield key, TableOfContents.from_bytes(bytes(arrays[start : start + length]))
        start += length
    if start != len(arrays):
        raise DamagedData("an index segment is longer than its header says")


class ChunkIds:
    """The ids of a batch of chunks, as two numbers each, sorted by the first of them.

    `order` has the places in the batch in the order of the ids.
    """

    def __init__(self, chunk_ids: bytes) -> None:
        halves = np.frombuffer(chunk_ids, _ID_HALVES)
        high = halves["high"].astype("<u8")
        self.order = np.argsort(high)
        self.high, self.low = high[self.order], halves["low"].astype("<u8")[self.order]

    def __len__(self) -> int:
        return len(self.order)

    def first_occurrences(self) -> np.ndarray:
        """For each chunk, the place in the batch where its id comes first."""
        first = np.arange(len(self))
        if not (self.high[1:] == self.high[:-1]).any():
            return first
        order = np.lexsort((self.order, self.low, self.high))
        high, low, places = self.high[order], self.low[order], self.order[order]
        again = np.zeros(len(self), bool)
        again[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        leaders = np.maximum.accumulate(np.where(again, 0, np.arange(len(self))))
        first[places] = places[leaders]
        return first


class ChunkIndex:
    """Chunk id -> (record number, position in the record).

    Sorted runs, each merged with the one before it when it has grown half as large: additions cost
    little, and a lookup asks a handful of runs at once for a whole batch of ids.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.high) for run in self._runs)

    def add(
        self,
        batch: ChunkIds,
        records: np.ndarray,
        positions: np.ndarray,
        chosen: np.ndarray | None = None,
    ) -> None:
        """Enter chunks, and of each its record's number and its position.

        `chosen` says of each chunk of the batch whether to enter it; None stands for all.
        """
        keep = slice(None) if chosen is None else chosen[batch.order]
        order, high, low = batch.order[keep], batch.high[keep], batch.low[keep]
        if not len(order):
            return
        self._runs.append(
            _Run(high, low, records[order].astype("<u4"), positions[order].astype("<u4"))
        )
        while len(self._runs) > 1 and len(self._runs[-2].high) <= 2 * len(self._runs[-1].high):
            last, one = self._runs.pop(), self._runs.pop()
            self._runs.append(_merged(one, last))

    def find(self, batch: ChunkIds) -> tuple[np.ndarray, np.ndarray]:
        """Record numbers (`ABSENT` where unknown) and positions of a batch of chunks."""
        records = np.full(len(batch), ABSENT, np.int64)
        positions = np.zeros(len(batch), np.int64)
        # Looked for in their order, neighbours meet the same part of a run while it is at hand.
        for run in self._runs:
            # Two different ids that share their first 64 bits hide one another at worst: the
            # hidden chunk is then stored once more, which harms nothing.
            at = np.minimum(np.searchsorted(run.high, batch.high), len(run.high) - 1)
            hit = np.flatnonzero((run.high[at] == batch.high) & (run.low[at] == batch.low))
            if len(hit):
                records[batch.order[hit]] = run.record[at[hit]]
                positions[batch.order[hit]] = run.position[at[hit]]
        return records, positions

    def ids_in(self, records: np.ndarray) -> PlacedIds:
        """The ids of all chunks in records of these numbers."""
        wanted = np.zeros(int(records.max(initial=0)) + 2, bool)
        wanted[records] = True
        wanted[-1] = False  # stands for every number that is larger
        hits = [
            _Run(*(column[wanted[np.minimum(run.record, len(wanted) - 1)]] for column in run))
            for run in self._runs
        ]
        return PlacedIds(hits)


class PlacedIds:
    """Chunks by where they lie: (record number, position in the record) -> id."""

    def __init__(self, runs: Sequence[_Run]) -> None:
        places = [_place(run.record, run.position) for run in runs]
        joined = np.concatenate([np.empty(0, np.uint64), *places])
        order = np.argsort(joined)
        self._places = joined[order]
        self._ids = np.empty(len(order), _ID_HALVES)
        for half in ("high", "low"):
            halves = [getattr(run, half) for run in runs]
            self._ids[half] = np.concatenate([np.empty(0, np.uint64), *halves])[order]

    def at(self, records: np.ndarray, positions: np.ndarray) -> bytes | None:
        """The ids of chunks one after another, None where one of them is not known."""
        places = _place(records, positions)
        if not len(places):
            return b""
        at = np.searchsorted(self._places, places)
        if at.max() >= len(self._places) or (self._places[at] != places).any():
            return None
        return self._ids[at].tobytes()


def _place(records: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return records.astype(np.uint64) << np.uint64(32) | positions.astype(np.uint64)


class _Run(NamedTuple):
    high: np.ndarray
    low: np.ndarray
    record: np.ndarray
    position: np.ndarray


def _merged(one: _Run, other: _Run) -> _Run:
    both = _Run(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))
    # The stable sort takes two sorted runs behind one another as what they are: a merge.
    order = np.argsort(both.high, kind="stable")
    return _Run(*(column[order] for column in both))


class RecordTable:
    """Record number -> place. Numbers are given in the order of entering."""

    def __init__(self) -> None:
        self._rows = np.zeros(1024, RECORD_ROW)
        self._count = 0
        self._packs: list[str] = []
        self._sessions: dict[str, int] = {}

    def __getitem__(self, number: int) -> RecordPlace:
        return self.places(np.array([number]))[0]

    def reserve(self) -> int:
        """A number for a record whose place is not known yet."""
        (number,) = self._numbers(1)
        self._rows[number]["pack"] = _UNSETTLED
        return int(number)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The numbers of settled records with these ids, `ABSENT` where there is none.

        A record is named by the chunks in it, so any of the same id will do.
        """
        settled = np.flatnonzero(self._rows["pack"][: self._count] != _UNSETTLED)
        own = ChunkIds(self._rows["id"][settled].tobytes())
        wanted = np.ascontiguousarray(ids).view(_ID_HALVES)
        if not len(own):
            return np.full(len(wanted), ABSENT, np.int64)
        at = np.minimum(np.searchsorted(own.high, wanted["high"]), len(own) - 1)
        # Of two ids that share their first 64 bits one is not found, which harms nothing.
        hit = (own.high[at] == wanted["high"]) & (own.low[at] == wanted["low"])
        return np.where(hit, settled[own.order[at]], ABSENT)

    def enter(self, pack: str, toc: TableOfContents) -> np.ndarray:
        """The numbers of all records of a stored pack, in its order."""
        numbers = self._numbers(len(toc.records))
        self.settle(numbers, pack, toc)
        return numbers

    def settle(self, numbers: np.ndarray, pack: str, toc: TableOfContents) -> None:
        """Tell where reserved records went: into this pack, in its order."""
        sessions = [self._sessions.setdefault(s, len(self._sessions)) for s in toc.sessions]
        rows = np.empty(len(numbers), RECORD_ROW)
        for field in ("id", "offset", "length"):
            rows[field] = toc.records[field]
        rows["pack"] = len(self._packs)
        rows["session"] = np.array(sessions, "<u4")[toc.records["session"]]
        self._packs.append(pack)
        self._rows[numbers] = rows

    def places(self, numbers: np.ndarray) -> RecordPlaces:
        """The places of these records. Raises `LookupError` for one that has none yet."""
        rows = self._rows[numbers]
        if (rows["pack"] == _UNSETTLED).any():
            raise LookupError("a record has no place yet")
        return RecordPlaces(rows, self._packs, list(self._sessions))

    def _numbers(self, count: int) -> np.ndarray:
        needed = self._count + count
        if needed > len(self._rows):
            grown = np.zeros(max(needed, len(self._rows) * 3 // 2), RECORD_ROW)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        numbers = np.arange(self._count, needed)
        self._count = needed
        return numbers


def enter_pack(index: ChunkIndex, table: RecordTable, pack: str, toc: TableOfContents) -> None:
    """Add a stored pack's records and chunks to the index."""
    if not len(toc.records):
        return
    counts = toc.records["chunks"].astype(np.int64)
    records = np.repeat(table.enter(pack, toc), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    index.add(ChunkIds(toc.chunk_ids), records, np.arange(len(records)) - starts)


def chunk_count(toc: TableOfContents) -> int:
    """How many chunks a pack holds."""
    return len(toc.chunk_ids) // ID_BYTES
