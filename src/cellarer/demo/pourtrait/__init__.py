"""*Pourtrait*, the sample product: a wine-cellar web app's database, made up at any size."""

from __future__ import annotations

import psycopg
from psycopg import sql

from cellarer.demo.pourtrait.changes import busy, change
from cellarer.demo.pourtrait.generate import generate
from cellarer.ports import Progress

__all__ = ["busy", "change", "make"]


def make(
    server_dsn: str, database: str, size_bytes: int, progress: Progress | None, seed: int = 1
) -> dict[str, int]:
    """Create `database` on the server and make the sample product in it; see `generate`.

    `server_dsn` names any database of that server. Returns the number of rows per table.
    """
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    dsn = psycopg.conninfo.make_conninfo(server_dsn, dbname=database)
    return generate(dsn, size_bytes=size_bytes, seed=seed, progress=progress)
