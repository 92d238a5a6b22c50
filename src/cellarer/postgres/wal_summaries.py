"""Which blocks of relations a server has written since a moment, by its WAL summaries (17 on).

A summary tells of each relation which blocks the log of some span touched, and from which block on
it was cut off or made anew. What follows from that for a file holds for the main fork alone:
visibility maps change with no block of theirs in the log, free space maps with no log at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import sql

from cellarer.domain.wal import lsn_text, parse_lsn
from cellarer.postgres.base_files import Locator
from cellarer.postgres.catalogue import Connection

_PATIENCE_SECONDS = 35.0
"""A summariser that gets no further for so long is not waited for. An idle one sleeps for 30."""

_LONGEST_SECONDS = 120.0

MOST_BLOCKS = 1 << 21
"""Where more was written (16 GB) all is read: to know each block takes 16 bytes."""

_MAIN_FORK = 0
_OIDS = ("tablespace", "database", "relation")
_ROW = np.dtype(
    [
        *(("fields", ">i2"), ("l1", ">i4"), ("tablespace", ">i8"), ("l2", ">i4")),
        *(("database", ">i8"), ("l3", ">i4"), ("relation", ">i8"), ("l4", ">i4")),
        *(("block", ">i8"), ("l5", ">i4"), ("limit", "u1")),
    ]
)
"""A row of five columns as COPY gives it in binary, none of them null."""

_LENGTHS = {"fields": 5, "l1": 8, "l2": 8, "l3": 8, "l4": 8, "l5": 1}
_COPY_HEADER_BYTES, _COPY_TRAILER_BYTES = 19, 2
_PART_BYTES = _ROW.itemsize << 14


@dataclass(frozen=True, order=True)
class Span:
    """A part of one timeline's log, from one position up to another."""

    timeline: int
    start: int
    end: int


class ChangedBlocks:
    """The blocks of main forks that were touched in a span, told row by row."""

    def __init__(self) -> None:
        self._made: set[tuple[int, int]] = set()
        self._limits: dict[tuple[int, ...], int] = {}
        self._parts: list[np.ndarray] = []
        self._slices: dict[tuple[int, ...], slice] = {}
        self._blocks = np.empty(0, np.uint32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Some rows of `_ROW`."""
        self._count += len(rows)
        whole = rows["relation"] == 0
        self._made |= {(int(r["tablespace"]), int(r["database"])) for r in rows[whole]}
        for row in rows[~whole & (rows["limit"] != 0)]:
            key = tuple(int(row[name]) for name in _OIDS)
            self._limits[key] = min(self._limits.get(key, int(row["block"])), int(row["block"]))
        touched = rows[rows["limit"] == 0]
        columns = [touched[name].astype(np.uint32) for name in (*_OIDS, "block")]
        self._parts.append(np.stack(columns))

    def settle(self) -> None:
        """All rows were added: from now on it can be asked."""
        told = np.concatenate([np.empty((4, 0), np.uint32), *self._parts], axis=1)
        self._parts = []
        told = told[:, np.lexsort(told[::-1])]
        self._blocks, relations = told[3], told[:3]
        differs = np.ones(len(self._blocks), bool)
        differs[1:] = (relations[:, 1:] != relations[:, :-1]).any(axis=0)
        starts = np.flatnonzero(differs)
        ends = np.append(starts, len(self._blocks))[1:]
        self._slices = {
            tuple(relations[:, start].tolist()): slice(start, end)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        }

    def of(self, relation: Locator) -> tuple[np.ndarray, int | None] | None:
        """The blocks that were touched, and the one from which on all others count as well.

        None where the whole database was made anew.
        """
        if (relation.tablespace, relation.database) in self._made:
            return None
        key = (relation.tablespace, relation.database, relation.relation)
        blocks = self._blocks[self._slices.get(key, slice(0))].astype(np.int64)
        return blocks, self._limits.get(key)


def blocks_changed(connection: Connection, span: Span) -> ChangedBlocks | None:
    """What was touched in a span of the log; None where its summaries do not tell all of it.

    Waits for the summariser as long as it gets on.
    """
    changed = ChangedBlocks()
    try:
        summaries = _summaries(connection, span)
        for summary in summaries or ():
            for rows in _contents(connection, summary):
                changed.add(rows)
                if len(changed) > MOST_BLOCKS:
                    return None
    except (psycopg.Error, ValueError):
        return None  # whatever is wrong with them, they only save work
    if summaries is None:
        return None
    changed.settle()
    return changed


def _summaries(connection: Connection, span: Span) -> Sequence[Span] | None:
    """The summaries that cover a span together, None where there are none."""
    seen, pause = None, 0.01
    end = time.monotonic() + _LONGEST_SECONDS
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        found = _available(connection, span)
        reached = _reached(found, span.start)
        if reached >= span.end:
            return found
        if reached < max((summary.end for summary in found), default=0):
            return None  # one in the middle is gone
        state = connection.execute(
            "SELECT summarizer_pid, summarized_lsn::text, pending_lsn::text"
            " FROM pg_get_wal_summarizer_state()"
        ).fetchone()
        now = time.monotonic()
        if state is None or state[0] is None:
            return None
        if state != seen:
            seen, patience = state, now + _PATIENCE_SECONDS
        if now > min(patience, end):
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _available(connection: Connection, span: Span) -> list[Span]:
    """The summaries that tell of any of a span, by their start."""
    rows = connection.execute(
        "SELECT start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()"
        " WHERE tli = %s AND end_lsn > %s::pg_lsn AND start_lsn < %s::pg_lsn",
        [span.timeline, lsn_text(span.start), lsn_text(span.end)],
    ).fetchall()
    return sorted(Span(span.timeline, parse_lsn(start), parse_lsn(end)) for start, end in rows)


def _reached(summaries: Sequence[Span], start: int) -> int:
    """How far summaries, sorted by their start, tell of the log from a position on."""
    reached = start
    for summary in summaries:
        if summary.start > reached:
            break
        reached = max(reached, summary.end)
    return reached


def _contents(connection: Connection, summary: Span) -> Iterator[np.ndarray]:
    """The rows of one summary, some at a time. Raises `ValueError` where they are others."""
    query = sql.SQL(
        "COPY (SELECT reltablespace::int8, reldatabase::int8, relfilenode::int8,"
        " relblocknumber::int8, is_limit_block"
        " FROM pg_wal_summary_contents({}, {}::pg_lsn, {}::pg_lsn)"
        " WHERE relforknumber = {}) TO STDOUT (FORMAT binary)"
    ).format(summary.timeline, lsn_text(summary.start), lsn_text(summary.end), _MAIN_FORK)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        waiting = bytearray()
        for part in copy:
            waiting += part
            if len(waiting) >= _COPY_HEADER_BYTES + _PART_BYTES:
                yield _rows(bytes(waiting[_COPY_HEADER_BYTES : _COPY_HEADER_BYTES + _PART_BYTES]))
                # What stands for the header of the next part is thrown away with it.
                del waiting[:_PART_BYTES]
        yield _rows(bytes(waiting[_COPY_HEADER_BYTES:-_COPY_TRAILER_BYTES]))


def _rows(data: bytes) -> np.ndarray:
    rows = np.frombuffer(data, _ROW)
    if any((rows[name] != length).any() for name, length in _LENGTHS.items()):
        raise ValueError("the server's rows are of another form")
    return rows
