"""How many rows a restored database has, and how many the source counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cellarer.ports import PointReader
from cellarer.postgres.archive import tables_path
from cellarer.postgres.catalogue import Table, count_rows, list_tables, quiet_settings
from cellarer.postgres.contents import read_json
from cellarer.targets.database import connect


@dataclass(frozen=True)
class CountedTable:
    """A table as tables.json has it."""

    schema: str
    name: str
    rows: int
    primary_key: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def counted_at_source(reader: PointReader, database: str) -> list[CountedTable]:
    """The tables of a database of the point, with the rows that the source counted."""
    document = read_json(reader, tables_path(database))
    return [
        CountedTable(one["schema"], one["name"], one["rows"], tuple(one["primary_key"]))
        for one in document["tables"]
    ]


def counted_now(dsn: str) -> tuple[Sequence[Table], Mapping[tuple[str, str], int]]:
    """The tables of the database of `dsn`, and the rows of each, by schema and name.

    Tables that its user may not read whole are not counted. Raises `psycopg.Error`.
    """
    with connect(dsn) as connection, connection.transaction():
        quiet_settings(connection)
        tables = list_tables(connection)
        able = [table for table in tables if table.readable and not table.filtered_by_policies]
        counts = count_rows(connection, able)
    return tables, {(t.schema, t.name): n for t, n in zip(able, counts, strict=True)}


def shortfalls(reader: PointReader, database: str, dsn: str) -> Iterator[str]:
    """What the database of `dsn` lacks of a whole database of the point, in words."""
    tables, rows = counted_now(dsn)
    present = {(table.schema, table.name) for table in tables}
    for one in counted_at_source(reader, database):
        where = (one.schema, one.name)
        if where not in present:
            yield f"table {one} is missing"
        elif rows.get(where, one.rows) != one.rows:
            yield f"table {one} has {rows[where]} rows instead of {one.rows}"
