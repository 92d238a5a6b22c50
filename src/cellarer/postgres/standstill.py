"""Sees and ends the standstill that a backup's start and a migration make together.

The tables of a database are locked, then `pg_dump` locks them once more, as another session. An
`ALTER TABLE` that comes between the two waits for the first and is waited for by the second, which
PostgreSQL takes for no deadlock: it does not know that the first waits for the second. Meanwhile
every query of such a table waits as well. So whoever begins looks, lets go, and begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from cellarer.postgres.dump import PgDump
from cellarer.postgres.snapshot import HeldSnapshot, LockNotFree, failures

_LOOK_EVERY_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0

Begun = TypeVar("Begun")


def begun(begin: Callable[[ExitStack], Begun], stack: ExitStack, seconds: float) -> Begun:
    """What `begin` returns once no lock is in its way; `stack` ends it then.

    Whatever a futile attempt has put on its own stack is given back before the next one. Raises
    the last `LockNotFree` when the next attempt would start after so many seconds.
    """
    deadline = time.monotonic() + seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        with ExitStack() as attempt:
            try:
                result = begin(attempt)
            except LockNotFree:
                if time.monotonic() + pause_seconds > deadline:
                    raise
            else:
                stack.enter_context(attempt.pop_all())
                return result
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


def await_contents(dumps: Sequence[tuple[HeldSnapshot, PgDump]]) -> None:
    """Wait until every dump has its locks and has read the catalogue, or has ended.

    Raises `LockNotFree` as soon as one waits for a session that waits for the locks of its
    snapshot.
    """
    while waiting := [each for each in dumps if not each[1].output.begun.is_set()]:
        if waiting[0][1].output.begun.wait(_LOOK_EVERY_SECONDS):
            continue
        for held, dump in waiting:
            with failures(f"cannot see what pg_dump of database {held.database} waits for"):
                in_between = _in_between(held, dump.application_name)
            if in_between is not None:
                raise in_between


def _in_between(held: HeldSnapshot, application_name: str) -> LockNotFree | None:
    """The migration that waits for us and is waited for by `pg_dump`, if any."""
    # What a transaction sees of other sessions stays as it first was, unless it is dropped.
    held.connection.execute("SELECT pg_stat_clear_snapshot()")
    query = """
        SELECT m.pid, coalesce(m.query, ''), coalesce(
            (
                SELECT n.nspname || '.' || c.relname
                FROM pg_locks l
                JOIN pg_class c ON c.oid = l.relation
                JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE l.pid = m.pid AND NOT l.granted
                LIMIT 1
            ),
            'a table'
        )
        FROM pg_stat_activity d
        CROSS JOIN LATERAL unnest(pg_blocking_pids(d.pid)) AS b (pid)
        JOIN pg_stat_activity m ON m.pid = b.pid
        WHERE d.application_name = %s AND d.wait_event_type = 'Lock'
            AND pg_backend_pid() = ANY (pg_blocking_pids(b.pid))
        LIMIT 1
    """
    found = held.connection.execute(query, [application_name]).fetchone()
    if found is None:
        return None
    pid, statement, table = found
    return LockNotFree(held.database, f"session {pid} waits for {table} with: {statement}")
