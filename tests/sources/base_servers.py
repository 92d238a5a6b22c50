"""Servers for base backups, and what a source says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cellarer.domain.snapshot import Entry
from cellarer.ports import Stream
from cellarer.postgres.account import service_account
from cellarer.postgres.basebackup import BackupFacts
from cellarer.postgres.cluster import Cluster
from cellarer.sources.postgres_base import PostgresBaseSource, Way

PAGE = 8192
WAYS: tuple[Way, ...] = ("direct", "replication")


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of each version in turn, with checksums and with a tablespace."""
    options = {"autovacuum": "off", "max_wal_size": "1GB", "fsync": "off"}
    made = Cluster.create(cluster.installation, tmp_path / "c", settings=options)
    account = service_account()
    program = cluster.installation.program("pg_checksums")
    if cluster.installation.major < 18:
        answer = account.run([program, "--enable", "-D", made.data_directory], made.directory)
        assert answer.returncode == 0, answer.stdout
    made.start()
    try:
        space = made.directory / "space"
        space.mkdir(mode=0o700)
        account.own(space)
        run(
            made,
            f"CREATE TABLESPACE apart LOCATION '{space}'",
            "CREATE TABLE rows AS SELECT n, md5(n::text) AS m FROM generate_series(1, 40000) n",
            "CREATE TABLE moved TABLESPACE apart AS SELECT * FROM rows",
            "CREATE UNLOGGED TABLE visits AS SELECT * FROM rows",
        )
        yield made
    finally:
        made.remove()


def run(
    cluster: Cluster, *statements: str, user: str = "postgres", database: str = "postgres"
) -> None:
    dsn = psycopg.conninfo.make_conninfo(cluster.dsn(database), user=user)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def ask(cluster: Cluster, query: str) -> str:
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def source(
    cluster: Cluster, tmp_path: Path, way: Way = "direct", **more: object
) -> PostgresBaseSource:
    dsn = psycopg.conninfo.make_conninfo(
        cluster.dsn("postgres"), user=str(more.pop("user", "postgres"))
    )
    return PostgresBaseSource("cluster", dsn, tmp_path / "state", way=way, **more)  # type: ignore[arg-type]


def captured(each: PostgresBaseSource) -> dict[str, tuple[Stream, bytes | None]]:
    """Every stream with its content; None where it was left unread as the source allows."""
    with each.capture() as streams:
        return {s.path: (s, None if s.unchanged else b"".join(s.blocks)) for s in streams}


def facts(found: dict[str, tuple[Stream, bytes | None]]) -> BackupFacts:
    return BackupFacts.parse(found["backup.json"][1] or b"")


def remembered(
    each: PostgresBaseSource, point: str = "p"
) -> dict[str, tuple[Stream, bytes | None]]:
    """A capture that was committed."""
    found = captured(each)
    each.remember(
        point,
        [
            Entry(path, s.kind, s.unchanged.size_bytes, s.unchanged.sum, s.mode)
            if s.unchanged
            else Entry(path, s.kind, len(content or b""), f"sum of {path}", s.mode)
            for path, (s, content) in found.items()
        ],
    )
    return found


def relation(cluster: Cluster, table: str) -> str:
    return f"data/{ask(cluster, f'''SELECT pg_relation_filepath('{table}')''')}"
