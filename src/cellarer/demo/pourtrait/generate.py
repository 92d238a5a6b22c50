"""Makes the sample product at any size, the same content for the same seed and size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from cellarer.demo.pourtrait.dice import Numbers
from cellarer.demo.pourtrait.rows import (
    TABLES,
    USERS,
    WINES,
    Rows,
    Table,
    Writer,
    copy_text,
)
from cellarer.errors import TargetFailed
from cellarer.ports import Progress

Connection = psycopg.Connection[tuple[Any, ...]]
Connectable = str | Connection
Moments = NDArray[np.datetime64]

BLOCK_ROWS = 2_000
FIRST_MOMENT = np.datetime64("2019-03-01T08:00:00", "s")
LAST_MOMENT = np.datetime64("2025-09-30T22:00:00", "s")
_AFTER_LOAD = "-- After the load:"
# What the schema's empty tables and indexes take, measured.
_EMPTY_BYTES = 1_100_000


@dataclass(frozen=True)
class _Plan:
    """How many rows each table gets, and who owns what: a function of the seed alone."""

    writer: Writer
    users: int

    def count(self, table: Table) -> int:
        return table.rows_per_user * self.users

    def rows(self, table: Table, first: int, last: int) -> Rows:
        """The rows `first` to `last` - 1 of a table, oldest first."""
        numbers = np.arange(first, last, dtype=np.uint64)
        wines = np.empty(0, dtype=np.uint64)
        if table is USERS:
            owners = wines
        elif table.rows_per_user == 1:
            owners = numbers
        elif table is WINES:
            owners = self._owners(numbers)
        else:
            wines = self._earlier(WINES, table, numbers)
            owners = self._owners(wines)
        dice = self.writer.dice
        created = self._created(table, numbers)
        edited = created + dice.below(40 * 86_400, f"{table.name}.edited", numbers).astype(
            "timedelta64[s]"
        )
        return Rows(
            numbers,
            dice.uuids(table.name, numbers),
            dice.uuids(USERS.name, owners),
            dice.uuids(WINES.name, wines),
            as_text(created),
            as_text(np.minimum(edited, LAST_MOMENT)),
        )

    def _owners(self, wines: Numbers) -> Numbers:
        return self._earlier(USERS, WINES, wines)

    def _earlier(self, parent: Table, table: Table, numbers: Numbers) -> Numbers:
        """For each row of `table` a row of `parent` that was there at the time."""
        there = numbers * np.uint64(parent.rows_per_user) // np.uint64(table.rows_per_user)
        return self.writer.dice.below(there + np.uint64(1), f"{table.name}.{parent.name}", numbers)

    def _created(self, table: Table, numbers: Numbers) -> Moments:
        step = int((LAST_MOMENT - FIRST_MOMENT).astype(int)) / self.count(table)
        jitter = self.writer.dice.below(1000, f"{table.name}.created", numbers) / 1000
        return FIRST_MOMENT + ((numbers + jitter) * step).astype("timedelta64[s]")


def generate(
    connection_or_dsn: Connectable,
    *,
    size_bytes: int,
    seed: int = 1,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Make the sample product in an empty database; returns the number of rows per table.

    `size_bytes`, from 5 MB to a few GB, is what it adds to `pg_database_size` (an empty database
    has 8 MB), within 15 %. The content depends on `seed` and `size_bytes` alone. All in one
    transaction. Raises `TargetFailed` where the tables are there already.
    """
    users = max(1, round((size_bytes - _EMPTY_BYTES) / _bytes_per_user()))
    # Larger products have seen more words, so that no small window holds most sentences.
    sentence_count = min(150_000, 10_000 + 20 * users)
    plan = _Plan(Writer(seed, sentence_count), users)
    before, _, after = schema().partition(_AFTER_LOAD)
    with connected(connection_or_dsn) as connection:
        with connection.transaction():
            _create(connection, before)
            if progress is not None:
                progress.begin("making the sample product", users * _bytes_per_user())
            for table in TABLES:
                _load(connection, plan, table, progress)
            connection.execute(f"-- {after}")
        _settle(connection)
    if progress is not None:
        progress.end()
    return {table.name: plan.count(table) for table in TABLES}


def schema() -> str:
    """The sample product's schema as SQL."""
    return resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")


@contextmanager
def connected(connection_or_dsn: Connectable) -> Iterator[Connection]:
    """The connection given, or one of its own in autocommit mode."""
    if isinstance(connection_or_dsn, str):
        with psycopg.connect(connection_or_dsn, autocommit=True) as connection:
            yield connection
    else:
        yield connection_or_dsn


def copy_command(table: str, columns: tuple[str, ...], options: str = "") -> sql.Composed:
    """`COPY table (columns) FROM STDIN`, for text as `copy_text` writes it."""
    return sql.SQL("COPY {} ({}) FROM STDIN {}").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(options)
    )


def as_text(moments: Moments) -> list[str]:
    """Moments in UTC as PostgreSQL reads them."""
    texts: list[str] = np.datetime_as_string(moments, unit="s", timezone="UTC").tolist()
    return texts


def _create(connection: Connection, statements: str) -> None:
    try:
        connection.execute(statements)
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject) as error:
        raise TargetFailed(
            "the sample product is in this database already",
            detail=str(error).strip(),
            hint="Name an empty database.",
        ) from error


def _load(
    connection: Connection,
    plan: _Plan,
    table: Table,
    progress: Progress | None,
) -> None:
    total = plan.count(table)
    # The table is new in this transaction, so its rows may count as old at once (FREEZE) and no
    # later reader has to write them again.
    command = copy_command(table.name, table.columns, "(FREEZE)")
    with connection.cursor() as cursor, cursor.copy(command) as copy:
        for first in range(0, total, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, total)
            copy.write(copy_text(table.write(plan.writer, plan.rows(table, first, last))))
            if progress is not None:
                progress.advance((last - first) * table.row_bytes)


def _settle(connection: Connection) -> None:
    """Gather statistics; where possible also give back the empty pages at the tables' ends.

    From version 16 on, COPY extends a table by up to half a megabyte at a time. VACUUM is not
    allowed inside somebody's transaction.
    """
    idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    command = "VACUUM (ANALYZE) {}" if idle and connection.autocommit else "ANALYZE {}"
    for table in TABLES:
        connection.execute(sql.SQL(command).format(sql.Identifier(table.name)))


def _bytes_per_user() -> int:
    return sum(table.rows_per_user * table.row_bytes for table in TABLES)
