"""The source `postgres_dump`, against real servers of 15 and 18: what a capture holds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from cellarer.errors import SourceFailed
from cellarer.postgres import catalogue, snapshot
from cellarer.postgres.archive import parse_toc, rows, table_path
from cellarer.postgres.catalogue import Connection, Table
from cellarer.postgres.cluster import Cluster
from cellarer.sources.postgres_dump import PostgresDumpSource

NASTY = Path(__file__).parent.parent / "postgres" / "nasty.sql"

# So that pg_dump waits for its reader.
MORE_THAN_A_PIPE = "CREATE TABLE t AS SELECT repeat('x', 999) FROM generate_series(1, 20000)"

Streams = dict[str, tuple[str, bytes]]


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def captured(dsn: str, *databases: str) -> Streams:
    with PostgresDumpSource("db", dsn, databases).capture() as streams:
        return {stream.path: (stream.kind, b"".join(stream.blocks)) for stream in streams}


def copied(streams: Streams, dsn: str, table: str) -> bytes:
    return b"".join(rows([streams[table_path(name_of(dsn), "public", table)][1]]))


def counted(streams: Streams, dsn: str) -> dict[str, int]:
    found = json.loads(streams[f"{name_of(dsn)}/tables.json"][1])
    return {f"{table['schema']}.{table['name']}": table["rows"] for table in found["tables"]}


@pytest.fixture
def another(cluster: Cluster, database: str) -> Iterator[str]:
    """A second database of the same cluster."""
    name = f"{name_of(database)}_another"
    run(cluster.dsn("postgres"), f"CREATE DATABASE {name} TEMPLATE template0")
    yield cluster.dsn(name)
    run(cluster.dsn("postgres"), f"DROP DATABASE {name} WITH (FORCE)")


# ----------------------------------------------------------------------------- what a capture holds


def test_streams_of_a_nasty_database(cluster: Cluster, database: str) -> None:
    run(database, NASTY.read_text())
    name = name_of(database)
    streams = captured(database)
    paths = list(streams)
    assert paths[:3] == ["roles.sql", "server.json", f"{name}/toc"]
    assert paths[-1] == f"{name}/tables.json"
    assert 'CREATE ROLE "nasty owner"' in streams["roles.sql"][1].decode()
    kinds = {kind for kind, _content in streams.values()}
    assert kinds == {"sql", "json", "archive-toc", "table", "large-objects"}
    toc = parse_toc(streams[f"{name}/toc"][1])
    assert toc.pg_dump_version.startswith(f"{cluster.installation.major}.")
    # Every table's stream has as many rows as were counted, and none is missing on either side.
    told = json.loads(streams[f"{name}/tables.json"][1])
    expected = {table_path(name, one["schema"], one["name"]): one["rows"] for one in told["tables"]}
    found = {
        path: b"".join(rows([content])).count(b"\n")
        for path, (kind, content) in streams.items()
        if kind == "table"
    }
    assert found == expected
    assert expected[table_path(name, "public", "animals")] == 2  # not the three with its child
    assert expected[table_path(name, "public", "no_columns")] == 3
    assert table_path(name, "public", "measurements") not in expected
    keys = {one["name"]: one["primary_key"] for one in told["tables"]}
    assert keys["measurements_2023"] == ["id", "taken"]
    assert keys["including"] == ["id"]
    assert keys['table with "quotes", a.dot, a/slash, 100% and\na newline'] == [
        "select",
        "Ünïcödé 表 😀",
    ]
    assert told["database"] == name
    assert told["warnings"] == []
    objects = b"".join(content for kind, content in streams.values() if kind == "large-objects")
    assert bytes.fromhex("0001000000ff0a00") * 1000 in objects
    assert b"small" in objects


def test_server_facts(cluster: Cluster, database: str) -> None:
    name = name_of(database)
    run(
        database,
        f"COMMENT ON DATABASE {name} IS 'for a test'",
        f"ALTER DATABASE {name} SET work_mem = '7MB'",
        f"ALTER DATABASE {name} CONNECTION LIMIT 33",
        f"GRANT CREATE ON DATABASE {name} TO pg_monitor",
    )
    facts = json.loads(captured(database)["server.json"][1])
    assert facts["server_version"].startswith(f"{cluster.installation.major}.")
    assert facts["server_version_num"] // 10000 == cluster.installation.major
    assert facts["pg_dump_version"] == cluster.installation.version
    assert facts["role_passwords"] is True
    assert facts["captured_at"].endswith("Z")
    assert facts["settings"]["fsync"] == "off"
    (found,) = facts["databases"]
    acl = found.pop("acl")
    assert any(item.startswith("pg_monitor=C") for item in acl)
    assert found == {
        "name": name,
        "owner": "postgres",
        "encoding": "UTF8",
        "collate": "C.UTF-8",
        "ctype": "C.UTF-8",
        "locale_provider": "libc",
        "icu_locale": None,
        "tablespace": "pg_default",
        "connection_limit": 33,
        "settings": ["work_mem=7MB"],
        "comment": "for a test",
        "extensions": {"plpgsql": "1.0"},
    }


def test_databases_are_those_of_the_config(cluster: Cluster, database: str, another: str) -> None:
    names = [name_of(database), name_of(another)]
    run(database, "CREATE TABLE here (id integer)")
    run(another, "CREATE TABLE there (id integer)")
    tocs = {
        "the dsn's own": ((), [names[0]]),
        "another one": ((names[1],), [names[1]]),
        "both, in this order": ((names[1], names[0], names[1]), [names[1], names[0]]),
    }
    for databases, expected in tocs.values():
        found = [path for path in captured(database, *databases) if path.endswith("/toc")]
        assert found == [f"{name}/toc" for name in expected]
    without_name = database.replace(f"/{names[0]}?", "/?")
    everything = captured(without_name, "*")
    assert {f"{name}/toc" for name in (*names, "postgres")} <= set(everything)
    assert not any(path.startswith("template") for path in everything)
    assert json.loads(everything["server.json"][1])["databases"][0]["name"] == "postgres"


def test_data_of_extensions_is_the_users_part_only(database: str) -> None:
    run(
        database,
        "CREATE TABLE configured (id integer); INSERT INTO configured VALUES (1), (2), (3)",
        "CREATE TABLE internal (id integer); INSERT INTO internal VALUES (1)",
        "ALTER EXTENSION plpgsql ADD TABLE configured",
        "ALTER EXTENSION plpgsql ADD TABLE internal",
        "SET allow_system_table_mods = on",
        "UPDATE pg_extension SET extconfig = ARRAY['configured'::regclass::oid],"
        " extcondition = ARRAY['WHERE id > 1'] WHERE extname = 'plpgsql'",
    )
    streams = captured(database)
    assert counted(streams, database) == {"public.configured": 2}
    assert copied(streams, database, "configured") == b"2\n3\n"


# ------------------------------------------------------------------------------------- one moment


def test_a_capture_is_one_moment(database: str) -> None:
    run(
        database,
        "CREATE TABLE savings (id integer, amount integer);"
        "CREATE TABLE spending (id integer, amount integer);"
        "INSERT INTO savings SELECT n, 100 FROM generate_series(1, 500) AS n;"
        "INSERT INTO spending SELECT n, 100 FROM generate_series(1, 500) AS n",
    )
    stop, moved = threading.Event(), threading.Event()

    def transfer() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            while not stop.is_set():
                with connection.transaction():
                    connection.execute("UPDATE savings SET amount = amount - 1 WHERE id > 0")
                    connection.execute("UPDATE spending SET amount = amount + 1 WHERE id > 0")
                    connection.execute("INSERT INTO savings VALUES (0, 7), (0, -7)")
                moved.set()

    with ThreadPoolExecutor() as pool:
        working = pool.submit(transfer)
        try:
            assert moved.wait(30)
            streams: Streams = {}
            with PostgresDumpSource("db", database).capture() as found:
                for stream in found:
                    # Between any two streams, the writer commits at least once.
                    moved.clear()
                    assert moved.wait(30)
                    streams[stream.path] = stream.kind, b"".join(stream.blocks)
        finally:
            stop.set()
        working.result()
    total, counts = 0, counted(streams, database)
    for table in ("savings", "spending"):
        lines = copied(streams, database, table).splitlines()
        total += sum(int(line.split(b"\t")[1]) for line in lines)
        assert counts[f"public.{table}"] == len(lines)
    assert total == 100_000


def test_tables_cannot_be_emptied_once_the_capture_began(database: str) -> None:
    run(database, "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)")
    with PostgresDumpSource("db", database).capture() as streams:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '50ms'")
            with pytest.raises(errors.LockNotAvailable):
                connection.execute("TRUNCATE t")
        found = {stream.path: (stream.kind, b"".join(stream.blocks)) for stream in streams}
    assert copied(found, database, "t") == b"1\n"


def test_a_waiting_migration_does_not_hold_up_what_it_waits_for(
    database: str, another: str
) -> None:
    """It queues behind the capture's locks; nothing of the capture may then queue behind it."""
    for dsn in (database, another):
        run(dsn, "CREATE TABLE t (id integer); INSERT INTO t VALUES (1), (2)")
        # More than is read ahead, or pg_dump would end and give its locks back at once.
        run(dsn, "CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
    source = PostgresDumpSource(
        "db", database, [name_of(database), name_of(another)], lock_timeout_seconds=20
    )
    with ThreadPoolExecutor() as pool, psycopg.connect(another, autocommit=True) as watcher:
        with source.capture() as streams:
            locks = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND {}"
            until(watcher, locks.format("mode = 'AccessShareLock' AND granted"), 2)
            migration = pool.submit(run, another, "ALTER TABLE t ADD COLUMN word text")
            until(watcher, locks.format("NOT granted"), 1)
            found = {stream.path: (stream.kind, b"".join(stream.blocks)) for stream in streams}
            assert not migration.done()
        migration.result(30)
    assert copied(found, another, "t") == b"1\n2\n"
    assert counted(found, another) == {"public.big": 20_000, "public.t": 2}


def until(connection: psycopg.Connection[Any], query: str, count: int) -> None:
    """Ask until the answer is at least `count`; the test's own time limit ends it otherwise."""
    while connection.execute(query).fetchone()[0] < count:  # type: ignore[index]
        connection.execute("SELECT pg_sleep(0.01)")


@pytest.mark.parametrize("change", ["DROP TABLE t0", "CREATE TABLE t2 ()", "DROP SCHEMA s CASCADE"])
def test_tables_that_come_and_go_before_the_lock(
    database: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run(database, "CREATE TABLE t0 (); CREATE TABLE t1 (); CREATE SCHEMA s; CREATE TABLE s.t ()")
    waiting = [change]

    def list_tables(connection: Connection) -> tuple[Table, ...]:
        found = catalogue.list_tables(connection)
        if waiting:
            run(database, waiting.pop())
        return found

    monkeypatch.setattr(snapshot, "list_tables", list_tables)
    expected = {"public.t0": 0, "public.t1": 0, "s.t": 0}
    match change.split():
        case ["DROP", "TABLE", *_]:
            del expected["public.t0"]
        case ["CREATE", *_]:
            expected["public.t2"] = 0
        case _:
            del expected["s.t"]
    assert counted(captured(database), database) == expected


def test_tables_that_never_stop_coming(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()

    def list_tables(connection: Connection) -> tuple[Table, ...]:
        found = catalogue.list_tables(connection)
        run(database, f"CREATE TABLE t{next(numbers)} ()")
        return found

    monkeypatch.setattr(snapshot, "list_tables", list_tables)
    with pytest.raises(SourceFailed, match="come and go") as caught:
        captured(database)
    assert caught.value.retryable


# ------------------------------------------------------------------------ secrets and leftovers


def children() -> list[int]:
    """The process ids of the `pg_dump`s that this process runs."""
    tasks = Path("/proc/self/task").iterdir()
    pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/exe").readlink().name == "pg_dump"]


def test_the_password_is_in_no_argument(cluster: Cluster, database: str) -> None:
    run(database, MORE_THAN_A_PIPE)
    dsn = database.replace("postgres@", "postgres:hush%2Fhush@")
    with PostgresDumpSource("db", dsn).capture() as streams:
        roles = next(iter(streams))
        assert roles.path == "roles.sql"
        assert b"hush" not in b"".join(roles.blocks)
        (pid,) = children()
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert f"dbname={name_of(database)}" in command
        assert "hush" not in command
        assert b"PGPASSWORD=hush/hush\0" in Path(f"/proc/{pid}/environ").read_bytes()
        for stream in streams:
            assert b"hush" not in b"".join(stream.blocks)


class ConsumerError(Exception):
    """What goes wrong outside the source."""


def leave(source: PostgresDumpSource, where: str) -> None:
    with source.capture() as streams:
        assert children()
        if where == "at once":
            return
        for stream in streams:
            if stream.kind == "table":
                next(stream.blocks)
                break
            assert b"".join(stream.blocks)
        if where == "by an exception":
            raise ConsumerError("of the consumer")
        if where == "without reading a stream to its end":
            next(iter(streams))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("at once", "left before its last stream"),
        ("in a table", "left before its last stream"),
        ("without reading a stream to its end", "was not read to its end"),
        ("by an exception", "of the consumer"),
    ],
)
def test_nothing_stays_behind_a_capture_that_is_left(
    cluster: Cluster, database: str, where: str, expected: str
) -> None:
    run(database, MORE_THAN_A_PIPE)
    with pytest.raises((SourceFailed, ConsumerError), match=expected):
        leave(PostgresDumpSource("db", database), where)
    assert not children()
    assert not [name for name in threading.enumerate() if name.name.startswith("count-rows")]
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        query = sql.SQL(
            "SELECT (count(*) = 0)::int FROM pg_stat_activity WHERE datname = {}"
        ).format(name_of(database))
        until(connection, query.as_string(connection), 1)


def test_a_large_table_is_expected_at_its_size_in_the_dump(database: str) -> None:
    """Numbers and dates take much more room as text, nulls and headers of rows much less."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "CREATE TABLE dense AS SELECT n::float8 * 1e100 / 3 AS a, n::float8 * 1e-99 / 7 AS b,"
            " now() + n * interval '1 ms' AS c FROM generate_series(1, 30000) n"
        )
        connection.execute(
            "ALTER TABLE dense ADD d text GENERATED ALWAYS AS (repeat(a::text, 4)) STORED"
        )
        connection.execute("CREATE TABLE sparse AS SELECT 1::int2 FROM generate_series(1, 400000)")
        connection.execute("CREATE TABLE small AS SELECT 1")
        connection.execute("SELECT lo_from_bytea(0, sha512('')) FROM generate_series(1, 3000)")
    with PostgresDumpSource("database", database, ()).capture() as streams:
        expected, found, read_bytes = {}, {}, 0
        for stream in streams:
            size_bytes = sum(map(len, stream.blocks))
            read_bytes += size_bytes
            if stream.kind == "table":
                assert stream.grows_at_end
                table = stream.path.rpartition("/")[2]
                expected[table] = stream.size_hint_bytes or 0
                found[table] = size_bytes
    for table in ("dense", "sparse"):
        assert found[table] > 0
        assert 0.95 < expected[table] / found[table] < 1.05
    assert expected["small"] == 8192
    assert 0.9 < (streams.expected_bytes or 0) / read_bytes < 1.1
