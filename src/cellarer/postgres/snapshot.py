"""A moment of one database, held open for others to read: an exported snapshot and its tables.

A snapshot alone does not hold a table still: `TRUNCATE` and rewriting `ALTER TABLE` change what
every snapshot sees. A table that is emptied between the snapshot and the lock of `pg_dump` would
be dumped empty, without any error. So all tables are locked first, and the snapshot comes after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import psycopg
from psycopg import errors, sql

from cellarer.errors import SourceFailed
from cellarer.postgres.catalogue import (
    Connection,
    Table,
    is_standby,
    list_tables,
    quiet_settings,
    unlogged_relations,
    unreadable_large_objects,
    unreadable_sequences,
)
from cellarer.postgres.complaints import advice

_ATTEMPTS = 10
_PATIENCE_SECONDS = 2.0
"""How long other tables stay locked while one is not free: who waits for them waits as long."""
_LOCKED_AT_ONCE = 500
_NAMED = 10


@dataclass(frozen=True)
class HeldSnapshot:
    """An exported snapshot; it lives as long as the transaction open on `connection`."""

    connection: Connection
    database: str
    id: str
    captured_at: datetime
    tables: tuple[Table, ...]


class LockNotFree(SourceFailed):
    """A migration is in the way. Whatever is locked must be let go before the next attempt."""

    def __init__(self, database: str, detail: str) -> None:
        super().__init__(
            f"tables of database {database} cannot be locked",
            detail=detail,
            hint="Another session holds a strong lock or waits for one, such as a migration: wait"
            " for its end, then run again.",
            retryable=True,
        )


@contextmanager
def failures(message: str) -> Iterator[None]:
    """Turn errors of the database into `SourceFailed` with this message."""
    try:
        yield
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        known = advice(text)
        raise SourceFailed(
            message, detail=text, hint=known.hint, retryable=known.retryable
        ) from error


def hold_snapshot(connection: Connection, lock_timeout_seconds: float) -> HeldSnapshot:
    """Lock every table of the connected database, then export a snapshot of it.

    The connection's transaction stays open. Raises `SourceFailed` where something cannot be read,
    and `LockNotFree` where a lock is not free within the time, or within two seconds.
    """
    database = connection.info.dbname
    with failures(f"cannot take a snapshot of database {database}"):
        for _attempt in range(_ATTEMPTS):
            with connection.transaction():
                quiet_settings(connection)
                tables = list_tables(connection)
                for objection in objections(connection, tables):
                    raise objection
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            quiet_settings(connection)
            try:
                _lock(connection, tables, lock_timeout_seconds)
            except (errors.UndefinedTable, errors.InvalidSchemaName, errors.WrongObjectType):
                connection.execute("ROLLBACK")
                continue
            except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
                raise LockNotFree(database, " ".join(str(error).split())) from error
            # The first query of the transaction fixes what all its later ones see.
            exported = connection.execute(
                "SELECT pg_export_snapshot(), extract(epoch FROM clock_timestamp())::float8"
            ).fetchone()
            assert exported is not None
            if list_tables(connection) == tables:
                captured_at = datetime.fromtimestamp(exported[1], UTC)
                return HeldSnapshot(connection, database, exported[0], captured_at, tables)
            connection.execute("ROLLBACK")
    raise SourceFailed(
        f"tables of database {database} come and go faster than they can be locked",
        detail=f"tried {_ATTEMPTS} times",
        hint="Run again when no migration is at work there.",
        retryable=True,
    )


def objections(connection: Connection, tables: Sequence[Table]) -> Iterator[SourceFailed]:
    """Why a dump of the connected database would fail or lack rows, as far as can be seen."""
    database = connection.info.dbname
    unreadable = [f"{table.schema}.{table.name}" for table in tables if not table.readable]
    unreadable += unreadable_sequences(connection)
    if unreadable:
        yield SourceFailed(
            f"user {connection.info.user} may not read all of database {database}",
            detail=f"permission denied for {_named(unreadable)}",
            hint=f'As superuser: GRANT pg_read_all_data TO "{connection.info.user}".',
        )
    first, count = unreadable_large_objects(connection)
    if count:
        detail = f"permission denied for large object {first}"
        yield SourceFailed(
            f"user {connection.info.user} may not read all of database {database}",
            detail=detail if count == 1 else f"{detail} and {count - 1} more",
            hint=advice(detail).hint,
        )
    filtered = [
        f"{table.schema}.{table.name}"
        for table in tables
        if table.filtered_by_policies and not table.partitioned
    ]
    if filtered:
        yield SourceFailed(
            f"row-level security hides rows of database {database}"
            f" from user {connection.info.user}",
            detail=f"policies filter {_named(filtered)}",
            hint=f'As superuser: ALTER ROLE "{connection.info.user}" BYPASSRLS.',
        )
    # pg_dump would leave their rows out, and say nothing. A point without them would be taken for
    # whole, and proven: the source has no way to say that it holds less than the database.
    unlogged = unlogged_relations(connection) if is_standby(connection) else {}
    if unlogged:
        name, kind = next(iter(unlogged.items()))
        yield SourceFailed(
            f"database {database} has unlogged tables or sequences: a standby lacks their content",
            detail=f"unlogged: {_named(list(unlogged))}",
            hint="Back up from the primary, or give them to the standby, on the primary:"
            f" ALTER {kind} {name} SET LOGGED.",
        )


def _lock(connection: Connection, tables: Iterable[Table], lock_timeout_seconds: float) -> None:
    """Keep all tables from being rewritten or dropped; reading and writing them goes on."""
    connection.execute(
        sql.SQL("SET LOCAL lock_timeout = {}").format(
            round(min(lock_timeout_seconds, _PATIENCE_SECONDS) * 1000)
        )
    )
    waiting = iter(tables)
    while batch := [table.identifier for table in islice(waiting, _LOCKED_AT_ONCE)]:
        names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(name) for name in batch)
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
