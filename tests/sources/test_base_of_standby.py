"""The source `postgres_dump` on a hot standby, which lacks the rows of unlogged tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cellarer.errors import SourceFailed
from cellarer.postgres.basebackup import BackupFacts
from cellarer.postgres.cluster import Cluster, sandbox_cluster
from cellarer.sources.postgres_base import PostgresBaseSource, Way
from cellarer.sources.postgres_dump import PostgresDumpSource
from server_copies import standby_of

Pair = tuple[str, str]


@pytest.fixture
def pair(cluster: Cluster, tmp_path: Path) -> Iterator[Pair]:
    """The dsn of a primary and of a standby that replays its changes."""
    settings = {
        "wal_level": "replica",
        "max_wal_senders": "4",
        "synchronous_commit": "on",
        "full_page_writes": "on",
    }
    with sandbox_cluster(cluster.installation, tmp_path, settings=settings) as primary:
        with psycopg.connect(primary.dsn("postgres"), autocommit=True) as connection:
            connection.execute("CREATE TABLE wines AS SELECT generate_series(1, 9) AS id")
        standby = standby_of(primary, tmp_path / "standby")
        try:
            standby.start()
            yield primary.dsn("postgres"), standby.dsn("postgres")
        finally:
            standby.remove()


def change(pair: Pair, *statements: str) -> None:
    """Change the primary, and wait until the standby has replayed it."""
    primary, standby = pair
    with psycopg.connect(primary, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        position = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert position is not None
    with psycopg.connect(standby, autocommit=True) as connection:
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s, pg_sleep(0.01)"
        while not connection.execute(replayed, position).fetchone()[0]:  # type: ignore[index]
            pass


def capture(dsn: str) -> dict[str, bytes]:
    with PostgresDumpSource("db", dsn).capture() as streams:
        return {stream.path: b"".join(stream.blocks) for stream in streams}


def test_a_standby_is_backed_up_whole(pair: Pair) -> None:
    streams = capture(pair[1])
    assert b"9\n" in streams["postgres/data/public/wines"]
    assert json.loads(streams["postgres/tables.json"])["tables"][0]["rows"] == 9


@pytest.mark.parametrize(
    ("made", "logged"),
    [
        ("CREATE UNLOGGED TABLE sessions (id integer)", "ALTER TABLE public.sessions SET LOGGED"),
        ("CREATE UNLOGGED SEQUENCE visits", "ALTER SEQUENCE public.visits SET LOGGED"),
    ],
)
def test_rows_that_a_standby_lacks_are_never_left_out(pair: Pair, made: str, logged: str) -> None:
    primary, standby = pair
    change(pair, made)
    with pytest.raises(SourceFailed, match="unlogged tables") as caught:
        capture(standby)
    assert logged.split()[2] in caught.value.detail
    assert "primary" in caught.value.hint
    assert logged in caught.value.hint
    found = {one.id: one for one in PostgresDumpSource("db", standby).examine()}
    assert found["source-unreadable"].message == str(caught.value)
    capture(primary)
    change(pair, logged)
    capture(standby)


@pytest.mark.parametrize("way", ["direct", "replication"])
def test_a_base_backup_of_a_standby(pair: Pair, tmp_path: Path, way: Way) -> None:
    change(pair, "INSERT INTO wines VALUES (10)", "CHECKPOINT")
    each = PostgresBaseSource("cluster", pair[1], tmp_path / "state", way=way)
    with each.capture() as streams:
        found = {stream.path: b"".join(stream.blocks) for stream in streams}
    told = BackupFacts.parse(found["backup.json"])
    assert told.standby
    assert told.read == way
    assert any(path.startswith("wal/") for path in found)
    assert [f.message for f in each.examine() if f.id == "source-standby"]
