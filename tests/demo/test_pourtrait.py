"""The sample product: the same for the same seed, of the size asked for, and sound."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
import zstandard
from psycopg import sql

from cellarer.demo import pourtrait
from cellarer.demo.pourtrait.__main__ import main
from cellarer.demo.pourtrait.generate import generate, schema
from cellarer.demo.pourtrait.rows import TABLES
from cellarer.errors import TargetFailed
from cellarer.postgres.cluster import Cluster

SMALL = 5_000_000
NAMES = [table.name for table in TABLES]


def _one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _copied(dsn: str, table: str) -> bytes:
    """A table's COPY text in the order of its keys."""
    query = sql.SQL("COPY (SELECT * FROM {} ORDER BY id) TO STDOUT").format(sql.Identifier(table))
    with psycopg.connect(dsn) as connection, connection.cursor().copy(query) as copy:
        return b"".join(bytes(block) for block in copy)


def _digests(dsn: str) -> dict[str, str]:
    return {name: hashlib.sha256(_copied(dsn, name)).hexdigest() for name in NAMES}


def _rows(dsn: str, table: str) -> dict[bytes, bytes]:
    """Each row's text by its key, oldest row first."""
    query = sql.SQL("COPY (SELECT * FROM {} ORDER BY created_at, id) TO STDOUT").format(
        sql.Identifier(table)
    )
    with psycopg.connect(dsn) as connection, connection.cursor().copy(query) as copy:
        lines = b"".join(bytes(block) for block in copy).splitlines()
    return {line.split(b"\t", 1)[0]: line for line in lines}


def _empty(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


def _orphans(dsn: str) -> dict[str, int]:
    """For each foreign key of the catalogue, how many rows refer to nothing."""
    with psycopg.connect(dsn) as connection:
        keys = connection.execute(
            """
            SELECT conname, conrelid::regclass::text, attname, confrelid::regclass::text
            FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
            WHERE contype = 'f'
            """
        ).fetchall()
        found = {}
        for name, table, column, parent in keys:
            query = sql.SQL(
                "SELECT count(*) FROM {0} WHERE {1} IS NOT NULL AND NOT EXISTS"
                " (SELECT FROM {2} WHERE {2}.id = {0}.{1})"
            ).format(*map(sql.Identifier, (table, column, parent)))
            row = connection.execute(query).fetchone()
            assert row is not None
            found[str(name)] = int(row[0])
    return found


class _Recorder:
    """Remembers what a progress was told."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0
        self.ended = False

    def begin(self, title: str, total_bytes: int | None) -> None:
        self.total = total_bytes

    def advance(self, read_bytes: int) -> None:
        assert read_bytes > 0
        self.done += read_bytes

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def end(self) -> None:
        self.ended = True

    def abandon(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("size_bytes", [SMALL, 20_000_000])
def test_it_has_the_size_asked_for(database: str, size_bytes: int) -> None:
    empty = _one(database, "SELECT pg_database_size(current_database())")
    progress = _Recorder()
    counts = generate(database, size_bytes=size_bytes, progress=progress)
    full = _one(database, "SELECT pg_database_size(current_database())")
    assert isinstance(empty, int)
    assert isinstance(full, int)
    assert full - empty == pytest.approx(size_bytes, rel=0.15)
    assert counts == {name: _one(database, f"SELECT count(*) FROM {name}") for name in NAMES}
    assert progress.ended
    assert progress.done == progress.total


def test_the_same_seed_makes_the_same_content(database: str) -> None:
    generate(database, size_bytes=SMALL, seed=3)
    first = _digests(database)
    _empty(database)
    generate(database, size_bytes=SMALL, seed=3)
    assert _digests(database) == first
    _empty(database)
    generate(database, size_bytes=SMALL, seed=4)
    other = _digests(database)
    assert all(other[name] != first[name] for name in NAMES)


def test_every_server_version_gets_the_same_content(
    postgres15: Cluster, postgres18: Cluster
) -> None:
    found = []
    for cluster in (postgres15, postgres18):
        pourtrait.make(cluster.dsn("postgres"), "same product", SMALL, None, seed=5)
        try:
            pourtrait.change(cluster.dsn("same product"), fraction=0.1, spread="newest", seed=2)
            found.append(_digests(cluster.dsn("same product")))
        finally:
            with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
                connection.execute('DROP DATABASE "same product" WITH (FORCE)')
    assert found[0] == found[1]


def test_it_compresses_like_the_data_of_a_product(database: str) -> None:
    generate(database, size_bytes=20_000_000)
    text = b"".join(_copied(database, name) for name in NAMES)
    ratio = len(text) / len(zstandard.ZstdCompressor(level=3).compress(text))
    assert 4 <= ratio <= 6


def test_every_reference_leads_somewhere(database: str) -> None:
    generate(database, size_bytes=SMALL)
    pourtrait.change(database, fraction=0.05, spread="newest", seed=1)
    pourtrait.busy(database)
    orphans = _orphans(database)
    assert len(orphans) == 8
    assert set(orphans.values()) == {0}
    mixed = "notes n JOIN wines w ON w.id = n.wine_id WHERE w.user_id <> n.user_id"
    assert _one(database, f"SELECT count(*) FROM {mixed}") == 0, "notes on other people's wines"
    early = "notes n JOIN wines w ON w.id = n.wine_id WHERE w.created_at > n.created_at + '1 week'"
    assert _one(database, f"SELECT count(*) FROM {early}") == 0, "notes on wines not yet there"


@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
def test_changes_spread_evenly(database: str, fraction: float) -> None:
    generate(database, size_bytes=SMALL)
    before = {name: _rows(database, name) for name in NAMES}
    counts = pourtrait.change(database, fraction=fraction, spread="evenly", seed=7)
    for name in NAMES:
        after = _rows(database, name)
        assert after.keys() == before[name].keys()
        changed = [
            place for place, key in enumerate(before[name]) if after[key] != before[name][key]
        ]
        # By chance an edit may say what was there before.
        assert len(changed) <= counts[name] == round(len(after) * fraction)
        assert len(changed) >= counts[name] * 0.99
        gaps = [later - earlier for earlier, later in pairwise(changed)]
        assert all(gap <= 2 / fraction + 1 for gap in gaps)


def test_changes_among_the_newest(database: str) -> None:
    generate(database, size_bytes=SMALL)
    before = {name: _rows(database, name) for name in NAMES}
    counts = pourtrait.change(database, fraction=0.04, spread="newest", seed=7)
    for name in NAMES:
        after = _rows(database, name)
        total = len(before[name])
        changed = [
            place for place, key in enumerate(before[name]) if after[key] != before[name][key]
        ]
        assert len(changed) == round(total * 0.04 / 2)
        assert min(changed) >= total - total // 10
        appended = list(after)[total:]
        assert set(after) == set(before[name]) | set(appended)
        assert len(appended) == len(changed)
        assert counts[name] == len(changed) + len(appended)


def test_the_same_change_again_gives_other_new_rows(database: str) -> None:
    generate(database, size_bytes=SMALL)
    first = pourtrait.change(database, fraction=0.02, spread="newest", seed=7)
    again = pourtrait.change(database, fraction=0.02, spread="newest", seed=7)
    assert sum(again.values()) >= sum(first.values())


def test_a_busy_day_brings_one_to_two_percent(database: str) -> None:
    generate(database, size_bytes=SMALL)
    before = {name: _rows(database, name) for name in NAMES}
    reported = pourtrait.busy(database)
    first = _digests(database)
    after = {name: _rows(database, name) for name in NAMES}
    total = sum(map(len, before.values()))
    changed = sum(
        before[name].get(key) != row for name in NAMES for key, row in after[name].items()
    )
    assert changed == reported
    assert 0.01 <= changed / total <= 0.02
    for name in ("wines", "consumption_history", "notes"):
        assert len(after[name]) > len(before[name])
    pourtrait.busy(database)
    pourtrait.busy(database, day=2)
    _empty(database)
    generate(database, size_bytes=SMALL)
    pourtrait.busy(database)
    assert _digests(database) == first


def test_it_is_made_in_the_transaction_of_the_caller(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as connection,
        connection.transaction(force_rollback=True),
    ):
        counts = generate(connection, size_bytes=SMALL)
        found = connection.execute("SELECT count(*) FROM wines").fetchone()
        assert found == (counts["wines"],)
    assert _one(database, "SELECT count(*) FROM pg_class WHERE relname = 'wines'") == 0


def test_it_does_not_write_over_another(database: str) -> None:
    generate(database, size_bytes=SMALL)
    before = _digests(database)
    with pytest.raises(TargetFailed, match="already"):
        generate(database, size_bytes=SMALL, seed=2)
    assert _digests(database) == before


def test_the_policies_and_grants_hold(database: str) -> None:
    generate(database, size_bytes=SMALL)
    user = _one(database, "SELECT user_id FROM wines ORDER BY id LIMIT 1")
    own = _one(database, f"SELECT count(*) FROM wines WHERE user_id = '{user}'")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET ROLE app_user")
        assert connection.execute("SELECT count(*) FROM wines").fetchone() == (0,)
        connection.execute(f"SET app.user_id = '{user}'")
        assert connection.execute("SELECT count(*) FROM wines").fetchone() == (own,)
        connection.execute("SET ROLE app_readonly")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM notes")


def test_the_derived_parts_follow_the_tables(database: str) -> None:
    generate(database, size_bytes=SMALL)
    assert _one(database, "SELECT (SELECT count(*) FROM wines) = sum(wines) FROM cellar_statistics")
    assert _one(database, "SELECT count(*) > 0 FROM wines WHERE search @@ 'monteverde'")
    assert _one(database, "SELECT max(number) = count(*) FROM notes")
    assert _one(database, "SELECT count(*) > 0 FROM ready_to_drink")
    touch = "UPDATE wines SET quantity = 1 WHERE id = (SELECT min(id::text)::uuid FROM wines)"
    assert _one(database, f"{touch} RETURNING updated_at = now()")


def test_the_schema_runs_as_a_whole(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(schema())
    assert _one(database, "SELECT count(*) FROM wines") == 0


def test_the_example_shows_the_schema() -> None:
    example = Path(__file__).parents[2] / "examples" / "pourtrait" / "schema.sql"
    assert example.read_text(encoding="utf-8") == schema()


def test_the_command_makes_it_anywhere(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", database, "--size", "5MB", "--seed", "2"]) == 0
    assert f"{_one(database, 'SELECT count(*) FROM wines'):,}  wines" in capsys.readouterr().out
    assert main(["--dsn", database, "--size", "5MB"]) == 1
    assert "Name an empty database." in capsys.readouterr().err
    assert main(["--dsn", f"{database}&user=nobody_here", "--size", "5MB"]) == 1
    assert "nobody_here" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--dsn", database, "--size", "huge"])
    assert caught.value.code == 2
