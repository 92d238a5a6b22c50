"""Gives the planner its statistics, or the first queries after a disaster would crawl."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import sql

from cellarer.errors import TargetFailed
from cellarer.targets.database import connect

# Partitions are analysed with the table that they belong to. The largest come first, so that no
# connection is left with a large one when the others have nothing to do.
_TABLES = """
SELECT n.nspname::text, c.relname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
ORDER BY c.relkind = 'p' DESC, pg_table_size(c.oid) DESC
"""


def gather_statistics(dsn: str, jobs: int) -> None:
    """ANALYZE every table of the database of `dsn`, in `jobs` connections at once.

    Tables that the user may not analyse are left to the server. Raises `TargetFailed`.
    """
    with connect(dsn) as connection:
        waiting = deque(connection.execute(_TABLES).fetchall())

    def work() -> None:
        with connect(dsn) as connection:
            while True:
                try:
                    name = waiting.popleft()
                except IndexError:
                    return
                connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(*name)))

    try:
        with ThreadPoolExecutor(jobs) as pool:
            for future in [pool.submit(work) for _ in range(jobs)]:
                future.result()
    except psycopg.Error as error:
        raise TargetFailed(
            "the restored tables cannot be analysed", detail=" ".join(str(error).split())
        ) from None
