"""A backup that begins while migrations alter its tables, against servers of 15 and 18."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from cellarer.errors import SourceFailed
from cellarer.postgres.dump import PgDump
from cellarer.sources import postgres_dump
from cellarer.sources.postgres_dump import PostgresDumpSource


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def table_of_contents(dsn: str, lock_timeout_seconds: float) -> bytes:
    """That of a whole capture."""
    source = PostgresDumpSource("db", dsn, lock_timeout_seconds=lock_timeout_seconds)
    with source.capture() as streams:
        captured = {stream.kind: b"".join(stream.blocks) for stream in streams}
    return captured["archive-toc"]


def waiting(dsn: str, table: str) -> None:
    """Return once somebody waits for a lock on this table."""
    query = "SELECT count(*) FROM pg_locks WHERE relation = %s::regclass AND NOT granted"
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(query, [table]).fetchone() == (0,):
            connection.execute("SELECT pg_sleep(0.01)")


class Migrations:
    """Starts one between the locks of the snapshot and those of `pg_dump`, so many times."""

    def __init__(self, dsn: str, times: int, pool: ThreadPoolExecutor) -> None:
        self.begun: list[Future[None]] = []
        self._dsn, self._times, self._pool = dsn, times, pool

    def start(self, *arguments: Any) -> PgDump:
        if len(self.begun) < self._times and all(one.done() for one in self.begun):
            column = f"column{len(self.begun)}"
            # Without the mending it would wait for the end of a capture that waits for it.
            patient = "SET lock_timeout = '30s'"
            alter = f"ALTER TABLE t ADD COLUMN {column} text"
            self.begun.append(self._pool.submit(run, self._dsn, patient, alter))
            waiting(self._dsn, "t")
        return PgDump(*arguments)


def test_a_migration_that_comes_between_the_locks_goes_first(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)")
    with ThreadPoolExecutor() as pool:
        migrations = Migrations(database, 3, pool)
        monkeypatch.setattr(postgres_dump, "PgDump", migrations.start)
        contents = table_of_contents(database, 300)
        assert len(migrations.begun) == 3
        for migration in migrations.begun:
            migration.result()
    assert b"column2" in contents


def test_migrations_without_end_are_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(database, "CREATE TABLE t (id integer)")
    with ThreadPoolExecutor() as pool:
        migrations = Migrations(database, 1000, pool)
        monkeypatch.setattr(postgres_dump, "PgDump", migrations.start)
        with pytest.raises(SourceFailed) as caught:
            table_of_contents(database, 1)
        assert len(migrations.begun) > 1
        for migration in migrations.begun:
            migration.result()
    assert "waits for public.t with: ALTER TABLE t ADD COLUMN" in caught.value.detail
    assert "migration" in caught.value.hint
    assert caught.value.retryable


def test_waiting_for_one_lock_does_not_hold_up_the_others(database: str) -> None:
    run(database, "CREATE TABLE a (id integer); CREATE TABLE b (id integer)")
    with psycopg.connect(database) as migration, ThreadPoolExecutor() as pool:
        migration.execute("LOCK TABLE b IN ACCESS EXCLUSIVE MODE")
        capturing = pool.submit(table_of_contents, database, 300)
        waiting(database, "b")
        run(database, "SET lock_timeout = '30s'", "ALTER TABLE a ADD COLUMN word text")
        assert not capturing.done()
        migration.rollback()
        assert b"word" in capturing.result()
