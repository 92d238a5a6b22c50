"""The manifest of a snapshot, in two parts.

*References*: which records of which packs, and for each stream its runs of chunks in them; sealed
with the index key, so retention, collecting and status need no reading right. *Contents*: names,
sizes, modes and SHA-256 sums; a stream in the vault like any other, so only a reader opens it, and
what two snapshots share of it is stored once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.vault.crypto import seal, unseal
from cellarer.vault.format import ID_BYTES, frame, parse_time, time_text, unframe
from cellarer.vault.index import RecordPlace

RUN_FIELDS = np.dtype([("record", ">u4"), ("first", ">u4"), ("count", ">u4")])
"""`count` chunks of a record, from the `first` on."""

_RECORD_FIELDS = np.dtype(
    [("id", "V16"), ("pack", ">u4"), ("offset", ">u4"), ("length", ">u4"), ("session", ">u4")]
)
_STREAM_FIELDS = np.dtype([("name", "V16"), ("bits", "u1"), ("runs", ">u4")])
_REFERENCES_PURPOSE = "cellarer/1/references"


@dataclass(frozen=True)
class StreamReferences:
    """One stream: the keyed hash of its name, its chunk size (log2) and its runs."""

    name_id: bytes
    bits: int
    runs: np.ndarray


@dataclass(frozen=True)
class References:
    """Everything a snapshot needs of the vault. The last stream holds the contents."""

    records: Sequence[RecordPlace]
    streams: Sequence[StreamReferences]

    def seal(self, index_key: bytes) -> bytes:
        """The object as it is stored."""
        packs = sorted({place.pack for place in self.records})
        sessions = sorted({place.session for place in self.records})
        pack_number = {pack: n for n, pack in enumerate(packs)}
        session_number = {session: n for n, session in enumerate(sessions)}
        records = np.array(
            [
                (p.id, pack_number[p.pack], p.offset, p.length, session_number[p.session])
                for p in self.records
            ],
            _RECORD_FIELDS,
        )
        streams = np.array(
            [(stream.name_id, stream.bits, len(stream.runs)) for stream in self.streams],
            _STREAM_FIELDS,
        )
        header: dict[str, object] = {
            "packs": packs,
            "records": len(records),
            "sessions": sessions,
            "streams": len(streams),
        }
        runs = (stream.runs.tobytes() for stream in self.streams)
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


def _parse(
    header: dict[str, Any], arrays: memoryview
) -> tuple[list[RecordPlace], list[StreamReferences]]:
    packs, sessions = header["packs"], header["sessions"]
    streams_at = int(header["records"]) * _RECORD_FIELDS.itemsize
    runs_at = streams_at + int(header["streams"]) * _STREAM_FIELDS.itemsize
    places = [
        RecordPlace(
            row["id"].tobytes(),
            sessions[int(row["session"])],
            packs[int(row["pack"])],
            int(row["offset"]),
            int(row["length"]),
        )
        for row in np.frombuffer(arrays[:streams_at], _RECORD_FIELDS)
    ]
    runs = np.frombuffer(arrays[runs_at:], RUN_FIELDS)
    streams, start = [], 0
    for row in np.frombuffer(arrays[streams_at:runs_at], _STREAM_FIELDS):
        end = start + int(row["runs"])
        streams.append(StreamReferences(row["name"].tobytes(), int(row["bits"]), runs[start:end]))
        start = end
    if start != len(runs) or (len(runs) and int(runs["record"].max()) >= len(places)):
        raise ValueError("runs and records do not match")
    return places, streams


def needed(index_key: bytes, data: bytes) -> tuple[list[str], list[str]]:
    """The packs and the sessions that stored references name. Raises `DamagedData`."""
    header, _ = unframe(unseal(index_key, data, _REFERENCES_PURPOSE), "references")
    try:
        return list(map(str, header["packs"])), list(map(str, header["sessions"]))
    except (KeyError, TypeError) as error:
        raise DamagedData("references are broken", detail=str(error)) from error


class RunBuilder:
    """Collects the chunks of one stream, in order, as runs."""

    def __init__(self) -> None:
        self._runs: list[list[int]] = []

    def append(self, record: int, position: int) -> None:
        """The next chunk is at this position of this record."""
        if self._runs:
            last = self._runs[-1]
            if last[0] == record and last[1] + last[2] == position:
                last[2] += 1
                return
        self._runs.append([record, position, 1])

    def records(self) -> Iterator[int]:
        """The record numbers of all runs."""
        return (run[0] for run in self._runs)

    def runs(self, renumbered: dict[int, int]) -> np.ndarray:
        """The runs as an array, with records numbered as in the references."""
        rows = [(renumbered[record], first, count) for record, first, count in self._runs]
        return np.array(rows, RUN_FIELDS)


def contents_lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The contents as a stream: one JSON line for each entry, in order."""
    for entry in entries:
        line: dict[str, object] = {
            "path": entry.path,
            "kind": entry.kind,
            "size": entry.size_bytes,
            "sha256": entry.sha256,
        }
        if entry.mode is not None:
            line["mode"] = entry.mode
        if entry.mtime is not None:
            line["mtime"] = time_text(entry.mtime)
        yield json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def parse_contents(data: bytes) -> list[Entry]:
    """The entries of a contents stream. Raises `DamagedData`."""
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        return [
            Entry(
                path=line["path"],
                kind=line["kind"],
                size_bytes=line["size"],
                sha256=line["sha256"],
                mode=line.get("mode"),
                mtime=parse_time(line["mtime"]) if "mtime" in line else None,
            )
            for line in lines
        ]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedData("the contents of a snapshot are broken", detail=str(error)) from error


assert _STREAM_FIELDS.itemsize == ID_BYTES + 5
