"""What a host that stores write-ahead log keeps of it: which log key it uses, and what it stored.

A small file without secrets. It may be lost: then the next WAL is sealed to a new log key, and what
was stored before is no longer told, but is there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cellarer import places
from cellarer.domain.continuity import with_number
from cellarer.errors import CellarerError
from cellarer.vault import format as layout

RUNS_KEPT = 32
"""Runs of segments in a row for one timeline; of more the oldest are told no more."""


@dataclass(frozen=True)
class LogState:
    """`session` is that of the log key. `runs` and `flushed` go by timeline.

    `told` is when the ledger last heard of it, of `told_timelines`; `news` whether something was
    stored since.
    """

    session: str = ""
    segment_bytes: int = 0
    runs: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    flushed: Mapping[int, int] = field(default_factory=dict)
    told: datetime | None = None
    told_timelines: AbstractSet[int] = frozenset()
    news: bool = False

    def with_segment(self, timeline: int, number: int, segment_bytes: int) -> LogState:
        """After a whole segment was stored."""
        runs = with_number(self.runs.get(timeline, ()), number)[-RUNS_KEPT:]
        return replace(
            self.with_flushed(timeline, (number + 1) * segment_bytes),
            segment_bytes=segment_bytes,
            runs={**self.runs, timeline: tuple(runs)},
        )

    def with_flushed(self, timeline: int, lsn: int) -> LogState:
        """After WAL was stored up to a position."""
        reached = max(lsn, self.flushed.get(timeline, 0))
        return replace(self, flushed={**self.flushed, timeline: reached}, news=True)


class StateFile:
    """The file of one cluster in `directory`, which is made when something is kept."""

    def __init__(self, directory: Path, vault: str, system: str) -> None:
        self.file = directory / vault / f"wal-{system}.json"

    def load(self) -> LogState:
        """What was kept; nothing where there is nothing, or nothing readable."""
        try:
            return _parse(json.loads(self.file.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return LogState()

    def change(self, change: Callable[[LogState], LogState]) -> None:
        """Keep what `change` makes of what is kept. Raises `CellarerError` where that fails.

        No other process changes it meanwhile.
        """
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.file.with_suffix(".lock")
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                places.keep(self.file, json.dumps(_written(change(self.load()))))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CellarerError(
                "what was stored of the write-ahead log cannot be kept in mind on this host",
                detail=f"{self.file}: {error}",
                hint=f"make {self.file.parent} writable, and see that its disk is not full",
            ) from error


def _written(state: LogState) -> dict[str, Any]:
    return {
        "flushed": {str(timeline): lsn for timeline, lsn in state.flushed.items()},
        "news": state.news,
        "runs": {str(timeline): runs for timeline, runs in state.runs.items()},
        "segment_bytes": state.segment_bytes,
        "session": state.session,
        "told": state.told and layout.time_text(state.told),
        "told_timelines": sorted(state.told_timelines),
    }


def _parse(value: dict[str, Any]) -> LogState:
    told = value["told"]
    return LogState(
        session=str(value["session"]),
        segment_bytes=int(value["segment_bytes"]),
        runs={
            int(timeline): tuple((int(first), int(last)) for first, last in runs)
            for timeline, runs in value["runs"].items()
        },
        flushed={int(timeline): int(lsn) for timeline, lsn in value["flushed"].items()},
        told=layout.parse_time(told) if told else None,
        told_timelines=frozenset(map(int, value["told_timelines"])),
        news=bool(value["news"]),
    )
