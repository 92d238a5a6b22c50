"""What tests do to servers in one line."""

from __future__ import annotations

from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets.postgres import PostgresTarget
from targets.recorded_points import Listener, MemoryPoint


def restore(dsn: str, point: MemoryPoint, *only: str, overwrite: bool = False) -> Listener:
    listener = Listener()
    target = PostgresTarget(dsn, 2)
    target.prepare(overwrite)
    target.restore(point, only, listener)
    return listener


def query(cluster: Cluster, database: str, text: str) -> list[tuple[object, ...]]:
    with connect(cluster.dsn(database)) as connection:
        return connection.execute(text.encode()).fetchall()


def execute(cluster: Cluster, database: str, text: str) -> None:
    with connect(cluster.dsn(database)) as connection:
        connection.execute(text.encode())


def relations(cluster: Cluster, database: str) -> set[str]:
    rows = query(
        cluster,
        database,
        "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text NOT LIKE 'pg_%'"
        " AND relnamespace::regnamespace::text <> 'information_schema'",
    )
    return {str(name) for (name,) in rows}
