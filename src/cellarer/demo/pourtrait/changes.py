"""Changes to the sample product: a measured share of all rows, or what a day of use brings.

Deterministic: the same changes with the same seed to the same product give the same content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from psycopg import sql

from cellarer.demo.pourtrait.generate import (
    BLOCK_ROWS,
    Connectable,
    Connection,
    as_text,
    connected,
    copy_command,
)
from cellarer.demo.pourtrait.rows import (
    CONSUMPTION,
    NOTES,
    NULL,
    TABLES,
    TASTE_PROFILES,
    USERS,
    WINES,
    Rows,
    Table,
    Writer,
    copy_text,
)

Spread = Literal["evenly", "newest"]

_SENTENCES = 20_000
# New rows have other dice numbers than edited ones, or both would say the same.
_NEW = 1 << 32


def change(
    connection_or_dsn: Connectable, *, fraction: float, spread: Spread, seed: int
) -> dict[str, int]:
    """Change `fraction` of the rows of each table, in one transaction.

    `spread` says where: "evenly" updates them over the whole table; "newest" updates half of them
    among the newest tenth and appends as many. Returns how many rows each table had changed.
    """
    counts = {}
    with connected(connection_or_dsn) as connection, connection.transaction():
        editor = _Editor(connection, seed)
        for table in TABLES:
            share = fraction / 2 if spread == "newest" else fraction
            updated = editor.choose(table, share, spread)
            editor.update(table)
            appended = updated if spread == "newest" else 0
            editor.append(table, appended)
            counts[table.name] = updated + appended
    return counts


def busy(connection_or_dsn: Connectable, *, day: int = 1) -> int:
    """What a busy day brings: bottles bought, bottles drunk, notes written; 1 to 2 % of the rows.

    In one transaction. Returns the number of rows added or changed. Another `day` brings others.
    """
    with connected(connection_or_dsn) as connection, connection.transaction():
        editor = _Editor(connection, day)
        drunk = editor.choose(WINES, 0.01, "evenly")
        emptied = connection.execute(
            "UPDATE wines SET quantity = quantity - 1, updated_at = updated_at + interval '1 day'"
            " FROM chosen WHERE wines.id = chosen.id AND quantity > 0"
        ).rowcount
        editor.append(CONSUMPTION, drunk)
        editor.append(NOTES, drunk // 2)
        bought = editor.choose(WINES, 0.01, "newest")
        editor.append(WINES, bought)
    return bought + emptied + drunk + drunk // 2


class _Editor:
    """Edits within one transaction. The rows of the last choice lie in a temporary table."""

    def __init__(self, connection: Connection, seed: int) -> None:
        self._connection = connection
        self._seed = seed
        # With the number of rows in it, a repeated change writes new rows under new keys.
        total = sum(self._count(table) for table in TABLES)
        self._writer = Writer(f"{seed} of {total}", _SENTENCES)

    def choose(self, table: Table, fraction: float, spread: Spread) -> int:
        """Choose this share of a table's rows, evenly spaced in time; returns how many."""
        total = self._count(table)
        wanted = min(round(total * fraction), total)
        within = total if spread == "evenly" else min(total, max(total // 10, wanted))
        self._connection.execute("DROP TABLE IF EXISTS chosen")
        # Of any `within` rows in a row exactly `wanted` pass: their multiples of `wanted` go round
        # the ring of `within` numbers `wanted` times.
        self._connection.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE chosen ON COMMIT DROP AS"
                " SELECT row_number() OVER (ORDER BY place) - 1 AS position, id, user_id, wine_id"
                " FROM (SELECT id, {user_id} AS user_id, {wine_id} AS wine_id,"
                "   row_number() OVER (ORDER BY created_at, id) - 1 AS place FROM {table}) numbered"
                " WHERE place >= {first}"
                " AND ((place - {first} + {seed}) % {within}) * {wanted} % {within} < {wanted}"
            ).format(
                user_id=sql.SQL("NULL::uuid" if table is USERS else "user_id"),
                wine_id=_wine_column(table),
                table=sql.Identifier(table.name),
                first=total - within,
                seed=self._seed,
                within=max(within, 1),
                wanted=wanted,
            )
        )
        return wanted

    def update(self, table: Table) -> None:
        """Write the chosen rows anew, in the columns that people edit."""
        assignments = [
            sql.SQL("{0} = edited.{0}").format(sql.Identifier(name)) for name in table.changing
        ]
        command = sql.SQL("UPDATE {0} SET {1} FROM edited WHERE {0}.id = edited.id").format(
            sql.Identifier(table.name), sql.SQL(", ").join(assignments)
        )
        for rows in self._blocks(table, self._count_chosen(), new=False):
            self._write(table, rows, command)

    def append(self, table: Table, count: int) -> None:
        """Add `count` rows, owned as the first of the chosen ones are."""
        names = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        command = sql.SQL("INSERT INTO {0} ({1}) SELECT {1} FROM edited").format(
            sql.Identifier(table.name), names
        )
        for rows in self._blocks(table, count, new=True):
            self._write(table, rows, command)

    def _blocks(self, table: Table, count: int, *, new: bool) -> Iterator[Rows]:
        query = (
            "SELECT id::text, user_id::text, wine_id::text FROM chosen"
            " WHERE position >= %s AND position < %s ORDER BY position"
        )
        latest = self._latest(table)
        for first in range(0, count, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, count)
            positions = np.arange(first, last, dtype=np.uint64)
            numbers = positions + np.uint64(_NEW if new else 0)
            ids, users, wines = (
                [value or NULL for value in column]
                for column in zip(
                    *self._connection.execute(query, [first, last]).fetchall(), strict=True
                )
            )
            if new:
                ids = self._writer.dice.uuids(table.name, numbers)
            if new and table is TASTE_PROFILES:
                # One each for the people who joined; everybody else has one.
                users = self._writer.dice.uuids(USERS.name, numbers)
            moments = as_text(latest + (positions + np.uint64(1)).astype("timedelta64[s]"))
            yield Rows(numbers, ids, users, wines, moments, moments)

    def _write(self, table: Table, rows: Rows, command: sql.Composed) -> None:
        self._connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE edited AS SELECT {} FROM {} WITH NO DATA").format(
                sql.SQL(", ").join(map(sql.Identifier, table.columns)), sql.Identifier(table.name)
            )
        )
        with (
            self._connection.cursor() as cursor,
            cursor.copy(copy_command("edited", table.columns)) as copy,
        ):
            copy.write(copy_text(table.write(self._writer, rows)))
        self._connection.execute(command)
        self._connection.execute("DROP TABLE edited")

    def _latest(self, table: Table) -> np.datetime64:
        query = sql.SQL("SELECT extract(epoch FROM max(created_at))::bigint FROM {}")
        return np.datetime64(self._number(query.format(sql.Identifier(table.name))), "s")

    def _count(self, table: Table) -> int:
        return self._number(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.name)))

    def _count_chosen(self) -> int:
        return self._number(sql.SQL("SELECT count(*) FROM chosen"))

    def _number(self, query: sql.SQL | sql.Composed) -> int:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


def _wine_column(table: Table) -> sql.SQL:
    if table is WINES:
        return sql.SQL("id")
    return sql.SQL("wine_id" if "wine_id" in table.columns else "NULL::uuid")
