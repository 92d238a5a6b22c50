"""Looks for orphans along every foreign key that a restored database's catalogue knows.

The server checks a foreign key when it is made. Here each is checked again, because rows may come
in while triggers are off, and because a proof should not rest on one mechanism.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

from cellarer.domain.snapshot import Check
from cellarer.postgres.catalogue import Connection

_NAMED = 5
_NONE = "0 orphans"

# Partitions share the foreign key of their parent, on which all rows are seen.
_FOREIGN_KEYS = """
SELECT c.conname::text, fs.nspname::text, ft.relname::text, ft.relkind = 'r',
    ps.nspname::text, pt.relname::text, pt.relkind = 'r',
    c.confmatchtype = 'f', c.convalidated, to_jsonb(c) @> '{"conperiod": true}',
    pg_get_constraintdef(c.oid),
    ARRAY(
        SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k (number, n)
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number ORDER BY k.n
    ),
    ARRAY(
        SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY k (number, n)
        JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number ORDER BY k.n
    ),
    ARRAY(
        SELECT s.nspname::text FROM unnest(c.conpfeqop) WITH ORDINALITY k (operator, n)
        JOIN pg_operator o ON o.oid = k.operator
        JOIN pg_namespace s ON s.oid = o.oprnamespace ORDER BY k.n
    ),
    ARRAY(
        SELECT o.oprname::text FROM unnest(c.conpfeqop) WITH ORDINALITY k (operator, n)
        JOIN pg_operator o ON o.oid = k.operator ORDER BY k.n
    )
FROM pg_constraint c
JOIN pg_class ft ON ft.oid = c.conrelid JOIN pg_namespace fs ON fs.oid = ft.relnamespace
JOIN pg_class pt ON pt.oid = c.confrelid JOIN pg_namespace ps ON ps.oid = pt.relnamespace
WHERE c.contype = 'f' AND c.conparentid = 0
ORDER BY 2, 3, 1
"""


@dataclass(frozen=True)
class _ForeignKey:
    name: str
    schema: str
    table: str
    table_alone: bool
    referenced_schema: str
    referenced_table: str
    referenced_alone: bool
    match_full: bool
    validated: bool
    of_periods: bool
    definition: str
    columns: list[str]
    referenced_columns: list[str]
    operator_schemas: list[str]
    operators: list[str]

    @property
    def orphans(self) -> sql.Composed:
        """FROM and WHERE of the rows that refer to nothing.

        As the server does it: tables without their inheritance children, partitioned ones with
        all partitions; a key with a null refers to nothing on purpose, unless MATCH FULL wants all
        of its columns null or none.
        """
        columns = [sql.Identifier("f", column) for column in self.columns]
        present = sql.SQL(" OR " if self.match_full else " AND ").join(
            sql.SQL("{} IS NOT NULL").format(column) for column in columns
        )
        equal = sql.SQL(" AND ").join(
            sql.SQL("{} OPERATOR({}.{}) {}").format(
                sql.Identifier("p", referenced), sql.Identifier(schema), sql.SQL(operator), column
            )
            for referenced, schema, operator, column in zip(
                self.referenced_columns,
                self.operator_schemas,
                self.operators,  # made of punctuation only, by the rules of CREATE OPERATOR
                columns,
                strict=True,
            )
        )
        return sql.SQL(
            "FROM {}{} f WHERE ({}) AND NOT EXISTS (SELECT FROM {}{} p WHERE {})"
        ).format(
            sql.SQL("ONLY " if self.table_alone else ""),
            sql.Identifier(self.schema, self.table),
            present,
            sql.SQL("ONLY " if self.referenced_alone else ""),
            sql.Identifier(self.referenced_schema, self.referenced_table),
            equal,
        )


def check_foreign_keys(connection: Connection, database: str) -> Iterator[Check]:
    """One check per foreign key, named `foreign key DATABASE.SCHEMA.TABLE.CONSTRAINT`.

    `connection` is in autocommit mode and sees every row.
    """
    for row in connection.execute(_FOREIGN_KEYS).fetchall():
        key = _ForeignKey(*row)
        name = f"foreign key {database}.{key.schema}.{key.table}.{key.name}"
        found = _periods(connection, key) if key.of_periods else _orphans(connection, key)
        if found != _NONE and not key.validated:
            # Its rows were never checked at the source, so orphans belong to what was backed up.
            found += ", which the source allows: the constraint is not validated"
            yield Check(name, True, _NONE, found)
        else:
            yield Check(name, found == _NONE, _NONE, found)


def _orphans(connection: Connection, key: _ForeignKey) -> str:
    row = connection.execute(sql.SQL("SELECT count(*) {}").format(key.orphans)).fetchone()
    assert row is not None
    if row[0] == 0:
        return _NONE
    columns = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier("f", column)) for column in key.columns
    )
    sample = sql.SQL("SELECT DISTINCT {} {} ORDER BY {} LIMIT {}").format(
        columns, key.orphans, columns, sql.Literal(_NAMED)
    )
    shown = [
        ", ".join(f"{column}={value}" for column, value in zip(key.columns, values, strict=True))
        for values in connection.execute(sample)
    ]
    referenced = f"{key.referenced_schema}.{key.referenced_table}"
    noun = "1 orphan" if row[0] == 1 else f"{row[0]} orphans"
    return f"{noun}: {'; '.join(shown)} not in {referenced}"


def _periods(connection: Connection, key: _ForeignKey) -> str:
    """A key over periods is met by several rows together; let the server check it anew."""
    statement = sql.SQL("ALTER TABLE {} ADD {}").format(
        sql.Identifier(key.schema, key.table),
        sql.SQL(key.definition),  # the server's own words
    )
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.errors.ForeignKeyViolation as error:
        return f"orphans: {error.diag.message_detail}"
    return _NONE
