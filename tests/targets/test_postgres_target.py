"""A restored database is what was dumped, and nothing is overwritten or ignored on the way."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from psycopg import sql

from cellarer.errors import DamagedData, TargetFailed, UsageError
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets.checks import checks
from cellarer.targets.postgres import PostgresTarget
from targets.asking import execute, query, relations, restore
from targets.conftest import CELLAR, drop
from targets.recorded_points import Listener, MemoryPoint, capture, dumped_by

MakeDatabase = Callable[..., str]


def test_a_database_under_another_name(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    listener = Listener()
    target = PostgresTarget(cluster.dsn(goal), 2)
    target.prepare(overwrite=False)
    result = target.restore(point, (), listener)
    data = [e for e in point.entries() if e.kind in ("table", "large-objects")]
    assert result.restored_bytes == listener.read_bytes == sum(e.size_bytes for e in data)
    assert result.recovered_to == json.loads(point.streams["server.json"][1])["captured_at"]
    # What was restored, dumped again and compared under the point's name.
    with connect(cluster.dsn("postgres")) as connection:
        drop(cluster, name)
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        connection.execute(rename.format(sql.Identifier(goal), sql.Identifier(name)))
    assert [c for c in checks(cluster, point, Listener()) if not c.passed] == []


def test_rows_come_back_in_their_order(cluster: Cluster, make_database: MakeDatabase) -> None:
    """Rows of many sizes leave gaps in pages, which later rows must not fill.

    Otherwise a proof could not compare sums, and would have to read every table twice more.
    """
    script = (
        "CREATE TABLE widths (id integer, word text); ALTER TABLE widths ALTER word SET STORAGE"
        " PLAIN; INSERT INTO widths SELECT n, repeat('x', n * 7919 % 5000)"
        ' FROM generate_series(1, 3000) n; CREATE SCHEMA "S s";'
        'CREATE TABLE "S s"."a ""b"" (c)" AS SELECT * FROM widths;'
    )
    name = make_database(cluster, script)
    point = capture(cluster, name)
    restore(cluster.dsn(name), point, overwrite=True)
    found = [c for c in checks(cluster, point, Listener()) if c.name.startswith("content ")]
    assert len(found) == 2
    assert [c for c in found if c.found != c.expected] == []


def test_several_databases_keep_their_names(cluster: Cluster, make_database: MakeDatabase) -> None:
    names = [make_database(cluster), make_database(cluster, "CREATE TABLE one (id integer)")]
    point = capture(cluster, *names)
    for name in names:
        drop(cluster, name)
    restore(cluster.dsn("postgres"), point)
    assert [c for c in checks(cluster, point, Listener()) if not c.passed] == []


def test_a_dsn_without_database_keeps_the_name(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    drop(cluster, name)
    restore(cluster.dsn("").replace("@/?", "@?"), point)
    assert query(cluster, name, "SELECT count(*) FROM wines") == [(500,)]


def test_what_a_database_is_itself(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    role = f"owner_{secrets.token_hex(5)}"
    name = make_database(
        cluster, f"CREATE ROLE {role}", options="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    execute(
        cluster,
        name,
        f"ALTER DATABASE {name} OWNER TO {role};"
        f"ALTER DATABASE {name} CONNECTION LIMIT 7;"
        f"ALTER DATABASE {name} SET search_path TO 'a b', public;"
        f"ALTER DATABASE {name} SET my.setting TO 'it''s, odd';"
        f"COMMENT ON DATABASE {name} IS 'it''s mine';"
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
        f"GRANT CREATE ON DATABASE {name} TO {role} WITH GRANT OPTION;",
    )
    about = (
        "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datconnlimit,"
        " datacl::text, (SELECT array_agg(s ORDER BY s) FROM pg_db_role_setting,"
        "  unnest(setconfig) s WHERE setdatabase = d.oid), shobj_description(oid, 'pg_database')"
        " FROM pg_database d WHERE datname = current_database()"
    )
    expected = query(cluster, name, about)
    restore(cluster.dsn(goal), capture(cluster, name))
    assert query(cluster, goal, about) == expected
    drop(cluster, name)
    drop(cluster, goal)
    execute(cluster, "postgres", f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("CREATE TABLE t (id integer)", "table public.t"),
        ("CREATE VIEW v AS SELECT 1 AS one", "view public.v"),
        ("CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'", "function public.f"),
        ("CREATE TYPE e AS ENUM ('a')", "type public.e"),
        ("CREATE DOMAIN d AS integer", "type public.d"),
        ("CREATE SCHEMA s", "schema s"),
        ("SELECT lo_create(4711)", "large object 4711"),
    ],
)
def test_content_is_not_overwritten(
    cluster: Cluster, make_database: MakeDatabase, content: str, named: str
) -> None:
    name = make_database(cluster, content)
    point = capture(cluster, make_database(cluster, "SELECT 1"))
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(name), point)
    assert named in caught.value.detail
    assert "--overwrite" in caught.value.hint


def test_content_is_seen_before_any_database_is_touched(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    names = [make_database(cluster), make_database(cluster, "CREATE TABLE one (id integer)")]
    point = capture(cluster, *names)
    drop(cluster, names[0])
    with pytest.raises(TargetFailed, match="is not empty"):
        restore(cluster.dsn("postgres"), point)
    present = query(cluster, "postgres", "SELECT datname FROM pg_database")
    assert (names[0],) not in present


def test_an_empty_database_is_used_as_it_is(cluster: Cluster, make_database: MakeDatabase) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, "CREATE EXTENSION IF NOT EXISTS plpgsql", options="ENCODING UTF8")
    oid = query(cluster, goal, "SELECT oid FROM pg_database WHERE datname = current_database()")
    restore(cluster.dsn(goal), point)
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]
    same = query(cluster, goal, "SELECT oid FROM pg_database WHERE datname = current_database()")
    assert same == oid


def test_overwriting_drops_what_is_there_even_with_sessions_in_it(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, "CREATE TABLE old (id integer)")
    busy = connect(cluster.dsn(goal))
    busy.execute("BEGIN; INSERT INTO old VALUES (1)")
    restore(cluster.dsn(goal), point, overwrite=True)
    busy.close()
    assert "old" not in relations(cluster, goal)
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]


def test_an_error_of_pg_restore_is_never_success(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    kind, toc = point.streams[f"{name}/toc"]
    # In the section after the data: the index calls a function that is not there.
    broken = toc.replace(b"(lower(note))", b"(loser(note))")
    assert broken != toc
    point = MemoryPoint(point.streams | {f"{name}/toc": (kind, broken)})
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(goal), point)
    assert "INDEX wines_by_note" in caught.value.detail
    assert "loser" in caught.value.detail


def test_rows_that_break_a_constraint_are_an_error(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    path = f"{name}/data/public/growers"
    kind, rows = point.streams[path]
    point = MemoryPoint(point.streams | {path: (kind, rows.replace(b"9\testate", b"8\testate"))})
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(goal), point)
    # Lines of parallel workers may mingle, so which of the errors is named first is not certain.
    assert "growers" in caught.value.detail


def test_damaged_rows_are_rolled_back(cluster: Cluster, make_database: MakeDatabase) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    point.damage(f"{name}/data/public/wines")
    goal = make_database(cluster, "SELECT 1")
    with pytest.raises(DamagedData):
        restore(cluster.dsn(goal), point)
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(0,)]


def test_a_database_has_its_name_only_when_it_is_whole(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    point.damage(f"{name}/data/public/wines")
    with pytest.raises(DamagedData):
        restore(cluster.dsn(goal), point)
    present = query(cluster, "postgres", "SELECT datname FROM pg_database")
    assert [one for one in present if str(one[0]).startswith(goal)] == []


class EndlessPoint(MemoryPoint):
    """One table has no end, another one is damaged."""

    end = 20_000
    rows_read = 0

    def read(self, path: str) -> Iterator[bytes]:
        if path.endswith("/endless"):
            for _ in range(self.end):
                self.rows_read += 1000
                yield b"\0\2\0\0\0" + b"1\n" + (b"\0\2\0\0\0" + b"2\n") * 999
        else:
            yield from super().read(path)


def test_one_worker_that_fails_stops_the_others(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    script = "CREATE TABLE endless (id integer); CREATE TABLE short (id integer);"
    name = make_database(cluster, script + "INSERT INTO short SELECT generate_series(1, 9)")
    point = EndlessPoint(capture(cluster, name).streams)
    point.damage(f"{name}/data/public/short")
    with pytest.raises(DamagedData):
        restore(cluster.dsn(goal), point)
    assert 0 < point.rows_read < 1000 * point.end / 2


def test_a_stream_that_is_missing_is_seen_before_anything_is_made(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    streams = capture(cluster, name).streams
    del streams[f"{name}/data/public/wines"]
    with pytest.raises(DamagedData, match="not whole"):
        restore(cluster.dsn(goal), MemoryPoint(streams))
    assert (goal,) not in query(cluster, "postgres", "SELECT datname FROM pg_database")


def test_an_older_dump_into_a_newer_server(
    postgres15: Cluster, postgres18: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(postgres15, make_database(postgres15))
    goal = make_database(postgres18, "SELECT 1")
    restore(postgres18.dsn(goal), point)
    assert query(postgres18, goal, "SELECT count(*) FROM wines") == [(500,)]


def test_an_old_server_dumped_by_newer_programs_goes_back_into_it(
    postgres15: Cluster, postgres18: Cluster, make_database: MakeDatabase
) -> None:
    """The newer pg_restore sets a timeout that the old server does not know; that is no error."""
    name = make_database(postgres15)
    point = dumped_by(postgres18.installation, postgres15, name)
    goal = make_database(postgres15, "SELECT 1")
    restore(postgres15.dsn(goal), point)
    assert query(postgres15, goal, "SELECT count(*) FROM wines") == [(500,)]


def test_a_newer_dump_is_refused_by_an_older_server(
    postgres15: Cluster, postgres18: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(postgres18, make_database(postgres18))
    goal = make_database(postgres15, "SELECT 1")
    with pytest.raises(TargetFailed, match="older than the source") as caught:
        restore(postgres15.dsn(goal), point)
    assert "18" in caught.value.hint


def test_a_tablespace_that_the_target_lacks_is_said(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster, "CREATE TABLE t (id integer)")
    place = f"place_{secrets.token_hex(4)}"
    directory = cluster.directory / place
    # Made by the server, so that it belongs to the user that runs it.
    execute(cluster, name, f"COPY (SELECT 1) TO PROGRAM 'mkdir {directory}'")
    execute(cluster, name, f"CREATE TABLESPACE {place} LOCATION '{directory}'")
    execute(cluster, name, f"ALTER TABLE t SET TABLESPACE {place}")
    point = capture(cluster, name)
    execute(cluster, name, "ALTER TABLE t SET TABLESPACE pg_default")
    execute(cluster, name, f"DROP TABLESPACE {place}")
    listener = restore(cluster.dsn(goal), point)
    assert any(place in note for note in listener.notes)
    assert "t" in relations(cluster, goal)


def test_a_server_that_does_not_answer(cluster: Cluster, goal: str) -> None:
    dsn = cluster.dsn(goal).replace(quote(str(cluster.socket_directory), safe=""), "%2Fnowhere")
    with pytest.raises(TargetFailed, match="cannot connect"):
        PostgresTarget(dsn, 2).prepare(overwrite=False)


def test_a_point_of_files_is_refused(cluster: Cluster, goal: str) -> None:
    point = MemoryPoint({"a.txt": ("file", b"text")})
    with pytest.raises(UsageError, match="no PostgreSQL database"):
        restore(cluster.dsn(goal), point)


def without_locale(point: MemoryPoint) -> MemoryPoint:
    """The same point, as if its database had a locale that no server has."""
    kind, document = point.streams["server.json"]
    server = json.loads(document)
    server["databases"][0] |= {"collate": "xx_XX.UTF-8", "ctype": "xx_XX.UTF-8"}
    return MemoryPoint(point.streams | {"server.json": (kind, json.dumps(server).encode())})


def test_a_locale_that_the_server_lacks(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    point = without_locale(capture(cluster, make_database(cluster)))
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(goal), point)
    assert "xx_XX" in caught.value.detail
    assert "Install the locale" in caught.value.hint
    # A throw-away server makes do with another one, and says so.
    listener = Listener()
    PostgresTarget(cluster.dsn(goal), 2, throw_away=True).restore(point, (), listener)
    assert any("xx_XX" in note for note in listener.notes)
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]


@pytest.fixture
def two_users(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """A role that may make roles and databases, and one that owns what is restored."""
    admin, owner = f"admin_{secrets.token_hex(5)}", f"owner_{secrets.token_hex(5)}"
    execute(cluster, "postgres", f"CREATE ROLE {admin} LOGIN CREATEROLE CREATEDB")
    execute(cluster, "postgres", f"CREATE ROLE {owner} LOGIN CREATEDB")
    yield admin, owner
    execute(cluster, "postgres", f"DROP ROLE IF EXISTS {owner}")
    execute(cluster, "postgres", f"DROP ROLE {admin}")


def test_an_ordinary_user_restores_what_other_ordinary_users_own(
    cluster: Cluster, make_database: MakeDatabase, goal: str, two_users: tuple[str, str]
) -> None:
    admin, owner = two_users
    name = make_database(cluster, "SELECT 1", options=f"OWNER {owner}")
    script = CELLAR.split("SELECT lo_from_bytea")[0]
    with connect(cluster.dsn(name).replace("postgres@", f"{owner}@")) as connection:
        connection.execute(script.encode())
    point = capture(cluster, name)
    drop(cluster, name)
    execute(cluster, "postgres", f"DROP ROLE {owner}")
    restore(cluster.dsn(goal).replace("postgres@", f"{admin}@"), point)
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE oid > 16384"
    assert query(cluster, goal, owners) == [(owner,)]
    drop(cluster, goal)


def test_an_ordinary_user_cannot_restore_what_a_superuser_owns(
    cluster: Cluster, make_database: MakeDatabase, goal: str, two_users: tuple[str, str]
) -> None:
    point = capture(cluster, make_database(cluster))
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(goal).replace("postgres@", f"{two_users[0]}@"), point)
    assert "superuser" in caught.value.hint
