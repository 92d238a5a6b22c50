"""Which blocks of relations a server has written since a moment, by its WAL summaries (17 on).

A summary tells of each relation which blocks the log of some span touched, and from which block on
it was cut off or made anew. What follows from that for a file holds for the main fork alone:
visibility maps change with no block of theirs in the log, free space maps with no log at all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import sql

from cellarer.domain.wal import lsn_text, parse_lsn
from cellarer.postgres.base_files import Locator
from cellarer.postgres.catalogue import Connection

_PATIENCE_SECONDS = 10.0
"""A summariser that gets no further for so long is not waited for."""

_LONGEST_SECONDS = 120.0

MOST_BLOCKS = 1 << 22
"""Where more was written (32 GB) all is read: to know each block would take too much memory."""

_MAIN_FORK = 0
_ROW = np.dtype(
    [
        *(("fields", ">i2"), ("l1", ">i4"), ("tablespace", ">i8"), ("l2", ">i4")),
        *(("database", ">i8"), ("l3", ">i4"), ("relation", ">i8"), ("l4", ">i4")),
        *(("block", ">i8"), ("l5", ">i4"), ("limit", "u1")),
    ]
)
"""A row of five columns as COPY gives it in binary, none of them null."""

_COPY_HEADER_BYTES, _COPY_TRAILER_BYTES = 19, 2


@dataclass(frozen=True, order=True)
class Span:
    """A part of one timeline's log, from one position up to another."""

    timeline: int
    start: int
    end: int


class ChangedBlocks:
    """The blocks that were touched in a span: rows of `_ROW`, all of the main fork."""

    def __init__(self, rows: np.ndarray) -> None:
        whole = rows["relation"] == 0
        keys = ("tablespace", "database", "relation")
        self._made = {(int(r["tablespace"]), int(r["database"])) for r in rows[whole]}
        self._limits: dict[tuple[int, ...], int] = {}
        for row in rows[~whole & (rows["limit"] != 0)]:
            key = tuple(int(row[name]) for name in keys)
            self._limits[key] = min(self._limits.get(key, int(row["block"])), int(row["block"]))
        touched = rows[rows["limit"] == 0]
        order = np.lexsort(tuple(touched[name] for name in ("block", *reversed(keys))))
        self._blocks = touched["block"][order].astype(np.int64)
        relations = np.stack([touched[name][order].astype(np.int64) for name in keys], axis=1)
        starts = np.flatnonzero((np.diff(relations, axis=0, prepend=-1) != 0).any(axis=1))
        ends = np.append(starts, len(order))[1:]
        self._slices = {
            tuple(relations[start].tolist()): slice(start, end)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        }

    def of(self, relation: Locator) -> tuple[np.ndarray, int | None] | None:
        """The blocks that were touched, and the one from which on all others count as well.

        None where the whole database was made anew.
        """
        if (relation.tablespace, relation.database) in self._made:
            return None
        key = (relation.tablespace, relation.database, relation.relation)
        return self._blocks[self._slices.get(key, slice(0))], self._limits.get(key)


def blocks_changed(connection: Connection, span: Span) -> ChangedBlocks | None:
    """What was touched in a span of the log; None where its summaries do not tell all of it.

    Waits for the summariser as long as it gets on.
    """
    try:
        summaries = _summaries(connection, span)
        if summaries is None:
            return None
        parts, count = [np.empty(0, _ROW)], 0
        for summary in summaries:
            parts.append(_contents(connection, summary, MOST_BLOCKS - count))
            count += len(parts[-1])
            if count >= MOST_BLOCKS:
                return None
    except psycopg.Error:
        return None  # whatever is wrong with them, they only save work
    return ChangedBlocks(np.concatenate(parts))


def _summaries(connection: Connection, span: Span) -> Sequence[Span] | None:
    """The summaries that cover a span together, None where there are none."""
    seen, patience, pause = "", _PATIENCE_SECONDS, 0.01
    ends_at = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < ends_at:
        rows = connection.execute(
            "SELECT start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()"
            " WHERE tli = %s AND end_lsn > %s::pg_lsn AND start_lsn < %s::pg_lsn",
            [span.timeline, lsn_text(span.start), lsn_text(span.end)],
        ).fetchall()
        found = sorted(Span(span.timeline, parse_lsn(a), parse_lsn(z)) for a, z in rows)
        reached = _reached(found, span.start)
        if reached >= span.end:
            return found
        if reached < max((summary.end for summary in found), default=0):
            return None  # one in the middle is gone
        state = connection.execute(
            "SELECT summarizer_pid, summarized_lsn::text || pending_lsn::text"
            " FROM pg_get_wal_summarizer_state()"
        ).fetchone()
        if state is None or state[0] is None or patience <= 0:
            return None
        patience = patience - pause if state[1] == seen else _PATIENCE_SECONDS
        seen = state[1]
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    return None


def _reached(summaries: Sequence[Span], start: int) -> int:
    """How far summaries, sorted by their start, tell of the log from a position on."""
    reached = start
    for summary in summaries:
        if summary.start > reached:
            break
        reached = max(reached, summary.end)
    return reached


def _contents(connection: Connection, summary: Span, most: int) -> np.ndarray:
    """The rows of one summary, at most so many."""
    query = sql.SQL(
        "COPY (SELECT reltablespace::int8, reldatabase::int8, relfilenode::int8,"
        " relblocknumber::int8, is_limit_block"
        " FROM pg_wal_summary_contents({}, {}::pg_lsn, {}::pg_lsn)"
        " WHERE relforknumber = {} LIMIT {}) TO STDOUT (FORMAT binary)"
    ).format(summary.timeline, lsn_text(summary.start), lsn_text(summary.end), _MAIN_FORK, most)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        data = b"".join(copy)
    return np.frombuffer(data[_COPY_HEADER_BYTES:-_COPY_TRAILER_BYTES], _ROW)
