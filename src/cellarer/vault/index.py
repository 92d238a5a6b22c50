"""The index: which chunks are stored, and where.

On the vault it is segments, each the tables of contents of some packs of one session, sealed with
the index key. In memory it is sorted arrays of 24 bytes a chunk, never a dict: eight million chunks
(a terabyte at 128 KiB) fit in 200 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cellarer.errors import DamagedData
from cellarer.vault.crypto import seal, unseal
from cellarer.vault.format import ID_BYTES, frame, unframe
from cellarer.vault.pack import TableOfContents

SEGMENT_CHUNKS = 1 << 16
"""A writer stores a segment whenever this many new chunks are in closed packs."""

_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("record", "<u4"), ("position", "<u4")])
_ID_HALVES = np.dtype([("high", ">u8"), ("low", ">u8")])
_SEGMENT_PURPOSE = "cellarer/1/index"

ABSENT = -1


@dataclass(frozen=True)
class RecordPlace:
    """Where one record lies and who sealed it."""

    id: bytes
    session: str
    pack: str
    offset: int
    length: int


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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedData("an index segment is broken", detail=str(error)) from error
    start = 0
    for key, length in packs:
        yield key, TableOfContents.from_bytes(bytes(arrays[start : start + length]))
        start += length
    if start != len(arrays):
        raise DamagedData("an index segment is longer than its header says")


class ChunkIndex:
    """Chunk id -> (record number, position in the record).

    Sorted runs, each merged with the one before it when it has grown as large: additions cost
    little, and a lookup asks a handful of runs at once for a whole batch of ids.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, chunk_ids: bytes, records: np.ndarray, positions: np.ndarray) -> None:
        """Enter chunks: concatenated ids, and per chunk its record's number and its position."""
        if not chunk_ids:
            return
        halves = np.frombuffer(chunk_ids, _ID_HALVES)
        run = np.empty(len(halves), _ENTRY)
        run["high"], run["low"] = halves["high"], halves["low"]
        run["record"], run["position"] = records, positions
        run.sort(order="high")
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate((self._runs[-2], self._runs[-1]))
            merged.sort(order="high", kind="stable")
            self._runs[-2:] = [merged]

    def find(self, chunk_ids: bytes) -> tuple[list[int], list[int]]:
        """For a batch of concatenated ids: record numbers (`ABSENT` where unknown), positions."""
        halves = np.frombuffer(chunk_ids, _ID_HALVES)
        high, low = halves["high"].astype("<u8"), halves["low"].astype("<u8")
        records = np.full(len(halves), ABSENT, np.int64)
        positions = np.zeros(len(halves), np.int64)
        for run in self._runs:
            # Two different ids that share their first 64 bits hide one another at worst: the
            # hidden chunk is then stored once more, which harms nothing.
            at = np.minimum(np.searchsorted(run["high"], high), len(run) - 1)
            hit = (run["high"][at] == high) & (run["low"][at] == low)
            records[hit] = run["record"][at[hit]]
            positions[hit] = run["position"][at[hit]]
        return records.tolist(), positions.tolist()


class RecordTable:
    """Record number -> place. Numbers are given in the order of entering."""

    def __init__(self) -> None:
        self._places: list[RecordPlace | None] = []

    def reserve(self) -> int:
        """A number for a record whose place is not known yet."""
        self._places.append(None)
        return len(self._places) - 1

    def enter(self, place: RecordPlace) -> int:
        """A number for a record that is stored."""
        self._places.append(place)
        return len(self._places) - 1

    def settle(self, number: int, place: RecordPlace) -> None:
        """Tell where a reserved record went."""
        self._places[number] = place

    def __getitem__(self, number: int) -> RecordPlace:
        place = self._places[number]
        if place is None:
            raise LookupError(f"record {number} has no place yet")
        return place


def enter_pack(index: ChunkIndex, table: RecordTable, pack: str, toc: TableOfContents) -> None:
    """Add a stored pack's records and chunks to the index."""
    numbers = [
        table.enter(
            RecordPlace(
                row["id"].tobytes(),
                toc.sessions[int(row["session"])],
                pack,
                int(row["offset"]),
                int(row["length"]),
            )
        )
        for row in toc.records
    ]
    counts = toc.records["chunks"].astype(np.int64)
    if not len(counts):
        return
    records = np.repeat(np.array(numbers, "<u4"), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    index.add(toc.chunk_ids, records, np.arange(len(records)) - starts)


def chunk_count(toc: TableOfContents) -> int:
    """How many chunks a pack holds."""
    return len(toc.chunk_ids) // ID_BYTES
