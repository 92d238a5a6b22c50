"""The manifest of a snapshot, in two parts.

*References*: which records of which packs, and for each stream its runs of chunks in them; sealed
with the index key, so retention, collecting and status need no reading right. *Contents*: names,
sizes, modes and sums; a stream in the vault like any other, so only a reader opens it, and
what two snapshots share of it is stored once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellarer.domain.snapshot import Entry
from cellarer.domain.sums import is_sum
from cellarer.errors import DamagedData, SourceFailed
from cellarer.vault import format as layout
from cellarer.vault.chunker import NOWHERE, Cuts
from cellarer.vault.crypto import seal, unseal
from cellarer.vault.format import ID_BYTES, count_in, frame, parse_time, time_text, unframe
from cellarer.vault.index import RECORD_ROW, RecordPlaces
from cellarer.vault.record import LARGEST_PLAINTEXT

RUN_FIELDS = np.dtype([("record", ">u4"), ("first", ">u4"), ("count", ">u4")])
"""`count` chunks of a record, from the `first` on."""

_RECORD_FIELDS = np.dtype(
    [("id", "V16"), ("pack", ">u4"), ("offset", ">u4"), ("length", ">u4"), ("session", ">u4")]
)
_STREAM_FIELDS = np.dtype([("name", "V16"), ("bits", "u1"), ("runs", ">u4")])
LARGEST_CONTENTS = 1 << 30
"""Bytes of the table of all streams; some five million fit."""

LARGEST_MODE = 0o7777

LARGEST_RECORD = LARGEST_PLAINTEXT + 64
"""Bytes of a sealed record: what is not compressed, its header and its tag."""

_REFERENCES_PURPOSE = "cellarer/1/references"


@dataclass(frozen=True)
class StreamReferences:
    """One stream: the keyed hash of its name, how it was cut, its runs, and its length.

    The length is known only where the stream has a finer end; the next snapshot cuts by it.
    """

    name_id: bytes
    cuts: Cuts
    runs: np.ndarray
    length: int = 0


@dataclass(frozen=True)
class References:
    """Everything a snapshot needs of the vault. The last stream holds the contents."""

    records: RecordPlaces
    streams: Sequence[StreamReferences]

    def seal(self, index_key: bytes) -> bytes:
        """The object as it is stored."""
        rows = self.records.rows
        packs, pack_numbers = _used(self.records.packs, rows["pack"])
        sessions, session_numbers = _used(self.records.sessions, rows["session"])
        records = np.empty(len(rows), _RECORD_FIELDS)
        for field in ("id", "offset", "length"):
            records[field] = rows[field]
        records["pack"], records["session"] = pack_numbers, session_numbers
        streams = np.array(
            [(stream.name_id, stream.cuts.bits, len(stream.runs)) for stream in self.streams],
            _STREAM_FIELDS,
        )
        header: dict[str, object] = {
            "finer": [
                [number, stream.cuts.finer_from, stream.length]
                for number, stream in enumerate(self.streams)
                if stream.cuts.finer_from != NOWHERE
            ],
            "packs": packs,
            "records": len(records),
            "sessions": sessions,
            "streams": len(streams),
        }
        runs = (stream.runs.astype(RUN_FIELDS).tobytes() for stream in self.streams)
        data = frame(header, records.tobytes(), streams.tobytes(), *runs)
        return seal(index_key, data, _REFERENCES_PURPOSE)

    @classmethod
    def unseal(cls, index_key: bytes, data: bytes) -> References:
        """Parse a stored object. Raises `DamagedData`."""
        header, arrays = unframe(unseal(index_key, data, _REFERENCES_PURPOSE), "references")
        try:
            return cls(*_parse(header, arrays))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise DamagedData("references are broken", detail=str(error)) from error


def _used(names: Sequence[str], numbers: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The names that the numbers stand for, sorted and once each, and the numbers in that list."""
    distinct, places = np.unique(numbers, return_inverse=True)
    used = [names[int(number)] for number in distinct]
    order = sorted(range(len(used)), key=used.__getitem__)
    rank = np.empty(len(used), "<u4")
    rank[order] = np.arange(len(used))
    return [used[number] for number in order], rank[places]


def record_places(index_key: bytes, data: bytes) -> RecordPlaces:
    """Where the records lie that stored references name. Raises `DamagedData`."""
    header, arrays = unframe(unseal(index_key, data, _REFERENCES_PURPOSE), "references")
    try:
        return _records(header, arrays)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise DamagedData("references are broken", detail=str(error)) from error


def _records(header: dict[str, Any], arrays: memoryview) -> RecordPlaces:
    packs, sessions = layout.packs_in(header["packs"]), layout.sessions_in(header["sessions"])
    end = count_in(header, "records") * _RECORD_FIELDS.itemsize
    if end > len(arrays):
        raise ValueError("they are shorter than their header says")
    rows = np.frombuffer(arrays[:end], _RECORD_FIELDS).astype(RECORD_ROW)
    if len(rows) and (rows["pack"].max() >= len(packs) or rows["session"].max() >= len(sessions)):
        raise ValueError("a record lies in no pack or session")
    if len(rows) and rows["length"].max() > LARGEST_RECORD:
        raise ValueError("a record is longer than a record can be")
    return RecordPlaces(rows, packs, sessions)


def _parse(
    header: dict[str, Any], arrays: memoryview
) -> tuple[RecordPlaces, list[StreamReferences]]:
    records = _records(header, arrays)
    streams_at = count_in(header, "records") * _RECORD_FIELDS.itemsize
    runs_at = streams_at + count_in(header, "streams") * _STREAM_FIELDS.itemsize
    if runs_at > len(arrays):
        raise ValueError("they are shorter than their header says")
    finer = {}
    for number, begin, length in header.get("finer", ()):
        # It may begin behind the end: a stream is cut by the length that it was thought to have.
        if not (0 <= begin < NOWHERE and 0 <= length < NOWHERE):
            raise ValueError("a stream has an impossible finer end")
        finer[int(number)] = (int(begin), int(length))
    runs = np.frombuffer(arrays[runs_at:], RUN_FIELDS)
    streams, start = [], 0
    for number, row in enumerate(np.frombuffer(arrays[streams_at:runs_at], _STREAM_FIELDS)):
        end = start + int(row["runs"])
        finer_from, length = finer.get(number, (NOWHERE, 0))
        cuts = Cuts(int(row["bits"]), finer_from)
        streams.append(StreamReferences(row["name"].tobytes(), cuts, runs[start:end], length))
        start = end
    if start != len(runs) or (len(runs) and int(runs["record"].max()) >= len(records)):
        raise ValueError("runs and records do not match")
    return records, streams


def needed(index_key: bytes, data: bytes) -> tuple[list[str], list[str]]:
    """The packs and the sessions that stored references name. Raises `DamagedData`."""
    header, _ = unframe(unseal(index_key, data, _REFERENCES_PURPOSE), "references")
    try:
        return layout.packs_in(header["packs"]), layout.sessions_in(header["sessions"])
    except (KeyError, ValueError) as error:
        raise DamagedData("references are broken", detail=str(error)) from error


class RunBuilder:
    """Collects the chunks of one stream, in order, as runs: 12 bytes each in memory."""

    def __init__(self) -> None:
        self._batches: list[np.ndarray] = []

    def extend(self, records: np.ndarray, positions: np.ndarray) -> None:
        """The next chunks are at these positions of these records."""
        if not len(records):
            return
        follows = (records[1:] == records[:-1]) & (positions[1:] == positions[:-1] + 1)
        starts = np.flatnonzero(np.concatenate(([True], ~follows)))
        runs = np.empty(len(starts), RUN_FIELDS.newbyteorder("<"))
        runs["record"], runs["first"] = records[starts], positions[starts]
        runs["count"] = np.diff(starts, append=len(records))
        if self._batches:
            last = self._batches[-1][-1]
            if last["record"] == runs[0]["record"] and (
                last["first"] + last["count"] == runs[0]["first"]
            ):
                last["count"] += runs[0]["count"]
                runs = runs[1:]
        if len(runs):
            self._batches.append(runs)

    def runs(self) -> np.ndarray:
        """The runs, their records numbered as they were given."""
        if not self._batches:
            return np.empty(0, RUN_FIELDS.newbyteorder("<"))
        return np.concatenate(self._batches)


def contents_lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The contents as a stream: one JSON line for each entry, in order.

    Raises `SourceFailed` where they become longer than a reader takes.
    """
    size = 0
    for entry in entries:
        line: dict[str, object] = {
            "path": entry.path,
            "kind": entry.kind,
            "size": entry.size_bytes,
            entry.sum.partition(":")[0]: entry.sum.partition(":")[2],
        }
        if entry.mode is not None:
            line["mode"] = entry.mode
        if entry.mtime is not None:
            line["mtime"] = time_text(entry.mtime)
        encoded = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        size += len(encoded)
        if size > LARGEST_CONTENTS:
            raise SourceFailed(
                "a source has more streams than one point can hold",
                hint="back it up in several parts, as sources of their own",
            )
        yield encoded


def parse_contents(data: bytes) -> list[Entry]:
    """The entries of a contents stream. Raises `DamagedData`."""
    try:
        return [_entry(json.loads(line)) for line in data.splitlines()]
    except (
        StopIteration,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:
        raise DamagedData("the contents of a snapshot are broken", detail=str(error)) from error


def _entry(line: dict[str, Any]) -> Entry:
    """One line. Raises one of many errors where it is none: a writer may have put anything."""
    path, kind, size = line["path"], line["kind"], line["size"]
    total = next(f"{name}:{line[name]}" for name in line if is_sum(name))
    mode = line.get("mode")
    path.encode(), kind.encode()
    if type(size) is not int or size < 0:
        raise ValueError(f"{path} has no size")
    if mode is not None and (type(mode) is not int or not 0 <= mode <= LARGEST_MODE):
        raise ValueError(f"{path} has an impossible mode")
    mtime = parse_time(line["mtime"]) if "mtime" in line else None
    return Entry(path, kind, size, total, mode, mtime)


assert _STREAM_FIELDS.itemsize == ID_BYTES + 5
