"""What is in each table, asked of a server by SQL alone: no code of the backup is involved."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

_TABLES = """
    select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname not in ('pg_catalog', 'information_schema')
    order by 1, 2
"""
_STATE = """
    select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text from {} t
"""


@dataclass(frozen=True)
class TableState:
    """Rows of a table and a sum over the hashes of their text, whatever their order."""

    rows: int
    fingerprint: str


def table_states(dsn: str) -> tuple[dict[str, TableState], int]:
    """Table name -> state, and the size of the database in bytes."""
    states = {}
    with psycopg.connect(dsn) as connection:
        for schema, name in connection.execute(_TABLES).fetchall():
            query = sql.SQL(_STATE).format(sql.Identifier(schema, name))
            row = connection.execute(query).fetchone()
            assert row is not None
            states[f"{schema}.{name}"] = TableState(*row)
        size = connection.execute("select pg_database_size(current_database())").fetchone()
    assert size is not None
    return states, int(size[0])


def lost_rows(before: dict[str, TableState], after: dict[str, TableState]) -> int:
    """How many rows are missing; a table whose content differs counts at least one."""
    lost = 0
    for name, state in before.items():
        found = after.get(name, TableState(0, "absent"))
        if found != state:
            lost += max(state.rows - found.rows, 1)
    return lost
