"""Where receiving begins: `pg_receivewal` goes by the names of files that it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cellarer.domain.wal import History, Kind, Segment, parse_name


def timeline_at(lsn: int, timeline: int, histories: Mapping[int, bytes]) -> int:
    """On which timeline a position lies, in the history of a server that is on `timeline`."""
    if timeline not in histories:
        return timeline
    return History.parse(timeline, histories[timeline].decode()).timeline_at(lsn)


def seed(directory: Path, files: Sequence[str], wanted: Segment, segment_bytes: int) -> None:
    """Leave an empty file that makes the receiver begin with `wanted`, or behind what is there.

    `files` are those of log in the directory, in its order. What is complete there may be shipped
    and removed at any moment, so its successor is named by a file of its own.
    """
    begin = wanted
    if files:
        last = parse_name(files[-1])
        segment = last.of(segment_bytes)
        if segment.number >= wanted.number:
            if last.kind is Kind.PARTIAL:
                return
            begin = segment.following()
    (directory / f"{begin.name(segment_bytes)}.partial").touch(mode=0o600)
