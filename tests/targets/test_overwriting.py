"""Overwriting replaces a database by a whole one in one moment, or leaves it as it was."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from multiprocessing import get_context

import psycopg
import pytest

from cellarer.errors import CellarerError, DamagedData, TargetFailed
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets import staging
from cellarer.targets.database import DatabaseMaker
from cellarer.targets.postgres import PostgresTarget
from cellarer.targets.staging import MARK, Stage, beside, sweep
from targets.asking import execute, query, relations, restore
from targets.conftest import drop
from targets.recorded_points import MemoryPoint, capture

MakeDatabase = Callable[..., str]
OLD = "CREATE TABLE precious (id integer); INSERT INTO precious VALUES (1), (2)"
STATE = (
    "SELECT d.oid, datdba, datconnlimit, datallowconn, datacl, (SELECT array_agg(id) FROM precious)"
    " FROM pg_database d WHERE datname = current_database()"
)


def databases(cluster: Cluster) -> set[str]:
    return {str(name) for (name,) in query(cluster, "postgres", "SELECT datname FROM pg_database")}


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    """Whatever a test does, the server has the same databases afterwards."""
    before = databases(cluster)
    yield
    left = {name for name in databases(cluster) - before if "_cellarer_" in name}
    for name in left:
        drop(cluster, name)
    assert left == set()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DeadlyPoint(MemoryPoint):
    """Reading one of its streams kills the process."""

    def __init__(self, point: MemoryPoint, deadly: str) -> None:
        super().__init__(point.streams)
        self.deadly = deadly

    def read(self, path: str) -> Iterator[bytes]:
        blocks = super().read(path)
        if path.endswith(self.deadly):
            yield next(blocks)
            die()
        yield from blocks


def killed_reading(stream: str, dsn: str, point: MemoryPoint) -> None:
    restore(dsn, DeadlyPoint(point, stream), overwrite=True)


def killed_in_the_swap(dsn: str, point: MemoryPoint) -> None:
    rename = staging._rename

    def and_die(
        link: Connection, staged: Sequence[staging._Staged], asides: Mapping[str, str]
    ) -> None:
        rename(link, staged, asides)
        die()

    staging._rename = and_die
    restore(dsn, point, overwrite=True)


def killed_after_the_swap(dsn: str, point: MemoryPoint) -> None:
    staging._drop = lambda *_: die()
    restore(dsn, point, overwrite=True)


BEFORE: dict[str, Callable[[str, MemoryPoint], None]] = {
    "while rows are loaded": partial(killed_reading, "data/public/wines"),
    "when all is loaded": partial(killed_reading, "tables.json"),
    "before the swap counts": killed_in_the_swap,
}


def run_until_killed(work: Callable[[str, MemoryPoint], None], *arguments: object) -> None:
    process = get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("moment", BEFORE)
def test_a_kill_before_the_swap_costs_nothing(
    cluster: Cluster, make_database: MakeDatabase, moment: str
) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, OLD)
    decoy = make_database(cluster, OLD, beside(goal))
    execute(cluster, "postgres", f"ALTER DATABASE {goal} CONNECTION LIMIT 17")
    before = query(cluster, goal, STATE)
    there = databases(cluster)
    run_until_killed(BEFORE[moment], cluster.dsn(goal), point)
    assert query(cluster, goal, STATE) == before
    (left,) = databases(cluster) - there
    assert left.startswith(f"{goal}_cellarer_")
    listener = restore(cluster.dsn(goal), point, overwrite=True)
    assert any(left in note for note in listener.notes)
    assert databases(cluster) == there
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]
    # It has the name of a leftover, and is none.
    assert relations(cluster, decoy) == {"precious"}


def test_a_kill_after_the_swap_leaves_the_new_one_and_the_next_restore_tidies(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, OLD)
    there = databases(cluster)
    run_until_killed(killed_after_the_swap, cluster.dsn(goal), point)
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]
    (left,) = databases(cluster) - there
    assert relations(cluster, left) == {"precious"}
    elsewhere = make_database(cluster, "SELECT 1")
    restore(cluster.dsn(elsewhere), point, overwrite=True)
    assert databases(cluster) == there | {elsewhere}


def test_a_failure_leaves_every_database_and_role_as_it_was(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    role = f"role_{secrets.token_hex(5)}"
    execute(cluster, "postgres", f"CREATE ROLE {role} CONNECTION LIMIT 3")
    names = [make_database(cluster), make_database(cluster, "CREATE TABLE one (id integer)")]
    point = capture(cluster, *names)
    execute(cluster, "postgres", f"ALTER ROLE {role} CONNECTION LIMIT 5")
    limit = f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{role}'"
    for name in names:
        execute(cluster, name, OLD)
    before = [query(cluster, name, STATE) for name in names]
    kind, toc = point.streams[f"{names[1]}/toc"]
    broken = toc.replace(b"id integer", b"id integre")
    with pytest.raises(TargetFailed, match="pg_restore") as caught:
        restore(
            cluster.dsn("postgres"),
            MemoryPoint(point.streams | {f"{names[1]}/toc": (kind, broken)}),
            overwrite=True,
        )
    assert f"{names[1]} is as it was" in caught.value.hint
    assert [query(cluster, name, STATE) for name in names] == before
    assert query(cluster, "postgres", limit) == [(5,)]
    restore(cluster.dsn("postgres"), point, overwrite=True)
    assert "precious" not in relations(cluster, names[0]) | relations(cluster, names[1])
    assert query(cluster, "postgres", limit) == [(3,)]
    execute(cluster, "postgres", f"DROP ROLE {role}")


def test_a_damaged_point_replaces_nothing(cluster: Cluster, make_database: MakeDatabase) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    point.damage(f"{name}/data/public/growers")
    goal = make_database(cluster, OLD)
    before = query(cluster, goal, STATE)
    with pytest.raises(DamagedData):
        restore(cluster.dsn(goal), point, overwrite=True)
    assert query(cluster, goal, STATE) == before


def test_rows_that_are_missing_after_the_load_replace_nothing(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    """Loaded without an error is not yet loaded: a rule or a trigger may have eaten rows."""
    name = make_database(cluster)
    point = capture(cluster, name)
    path = f"{name}/tables.json"
    kind, document = point.streams[path]
    point = MemoryPoint(point.streams | {path: (kind, document.replace(b": 500,", b": 501,"))})
    goal = make_database(cluster, OLD)
    before = query(cluster, goal, STATE)
    with pytest.raises(TargetFailed, match="not what the point says") as caught:
        restore(cluster.dsn(goal), point, overwrite=True)
    assert caught.value.detail == "table public.wines has 500 rows instead of 501"
    assert query(cluster, goal, STATE) == before


def test_clients_that_come_back_at_once_cannot_hinder_the_swap(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, OLD)
    done, seen = threading.Event(), set[str]()

    def insist() -> None:
        while not done.is_set():
            try:
                with psycopg.connect(cluster.dsn(goal), autocommit=True) as connection:
                    while not done.is_set():
                        found = connection.execute("SELECT to_regclass('precious') IS NULL")
                        seen.add("new" if found.fetchall()[0][0] else "old")
            except psycopg.OperationalError:
                continue

    clients = [threading.Thread(target=insist) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        restore(cluster.dsn(goal), point, overwrite=True)
        while "new" not in seen:
            pass
    finally:
        done.set()
        for client in clients:
            client.join()
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]


@pytest.mark.long
def test_a_restore_that_is_at_work_is_left_alone(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    facts = {"encoding": "UTF8", "collate": "C", "ctype": "C", "owner": "postgres"}
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, OLD)
    with closing(connect(cluster.dsn("postgres"))) as link:
        with Stage(cluster.dsn("postgres"), "postgres", print) as stage:
            place = stage.make(DatabaseMaker(link, print), goal, facts)
            restore(cluster.dsn(goal), point, overwrite=True)
            assert place in databases(cluster)
        assert place not in databases(cluster)


def test_only_what_is_marked_and_named_so_is_swept(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    marked = make_database(cluster, options=f"CONNECTION LIMIT {MARK}", script="SELECT 1")
    named = make_database(cluster, "SELECT 1", beside("named"))
    both = make_database(cluster, "SELECT 1", beside("ours"), f"CONNECTION LIMIT {MARK}")
    with closing(connect(cluster.dsn("postgres"))) as link:
        sweep(link, cluster.dsn("postgres"), print)
    assert {marked, named, both} & databases(cluster) == {marked, named}


@pytest.mark.parametrize("name", ["w" * 63, "ü" * 31, 'odd "name" %s {} ', "a_cellarer_01234567"])
def test_odd_names(cluster: Cluster, make_database: MakeDatabase, name: str) -> None:
    point = capture(cluster, make_database(cluster))
    make_database(cluster, OLD, name)
    with connect(cluster.dsn(name)):
        restore(cluster.dsn(name), point, overwrite=True)
    assert query(cluster, name, "SELECT count(*) FROM wines") == [(500,)]
    assert len(beside(name).encode()) <= 63


def test_what_is_replaced_is_told_beforehand(cluster: Cluster, make_database: MakeDatabase) -> None:
    names = [make_database(cluster), make_database(cluster, "SELECT 1")]
    point = capture(cluster, *names)
    target = PostgresTarget(cluster.dsn("postgres"), 2)
    target.prepare(overwrite=True)
    assert target.look(point, ()).replaces == tuple(names)
    drop(cluster, names[0])
    assert target.look(point, ("wines",)).replaces == ()
    assert target.look(point, ()).replaces == (names[1],)
    alone = capture(cluster, names[1])
    assert target.look(alone, ()).replaces == ("postgres",)


# ------------------------------------------------------------------------------------- rights


@pytest.fixture
def user(cluster: Cluster) -> Iterator[str]:
    name = f"user_{secrets.token_hex(5)}"
    execute(cluster, "postgres", f"CREATE ROLE {name} LOGIN CREATEDB CREATEROLE")
    yield name
    execute(cluster, "postgres", f"DROP ROLE {name}")


def refused(cluster: Cluster, user: str, goal: str, point: MemoryPoint) -> CellarerError:
    """The error of overwriting as this user, which leaves all as it was."""
    before = query(cluster, goal, STATE)
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(goal).replace("postgres@", f"{user}@"), point, overwrite=True)
    assert query(cluster, goal, STATE) == before
    return caught.value


@pytest.mark.long
def test_rights_are_looked_at_before_anything_is_made(
    cluster: Cluster, make_database: MakeDatabase, user: str
) -> None:
    source = make_database(cluster, "CREATE TABLE t AS SELECT 1 AS id", options=f"OWNER {user}")
    execute(cluster, source, f"ALTER TABLE t OWNER TO {user}")
    point = capture(cluster, source)
    goal = make_database(cluster, OLD)
    try:
        assert "GRANT" in refused(cluster, user, goal, point).hint
        execute(cluster, "postgres", f"ALTER DATABASE {goal} OWNER TO {user}")
        execute(cluster, "postgres", f"ALTER ROLE {user} NOCREATEDB")
        assert f'ALTER ROLE "{user}" CREATEDB' in refused(cluster, user, goal, point).hint
        execute(cluster, "postgres", f"ALTER ROLE {user} CREATEDB")
        with connect(cluster.dsn(goal)):
            error = refused(cluster, user, goal, point)
        assert "being accessed by other users" in error.detail
        assert "superuser" in error.hint
        restore(cluster.dsn(goal).replace("postgres@", f"{user}@"), point, overwrite=True)
        assert relations(cluster, goal) == {"t"}
    finally:
        drop(cluster, goal)
        drop(cluster, source)


def test_a_database_that_cannot_be_dropped_later_is_refused_now(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, OLD)
    execute(
        cluster,
        goal,
        "CREATE SUBSCRIPTION news CONNECTION 'dbname=elsewhere' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE)",
    )
    try:
        assert "news" in refused(cluster, "postgres", goal, point).detail
    finally:
        execute(cluster, goal, "DROP SUBSCRIPTION news")
    execute(cluster, "postgres", f"ALTER DATABASE {goal} IS_TEMPLATE true")
    try:
        assert "copied" in refused(cluster, "postgres", goal, point).detail
    finally:
        execute(cluster, "postgres", f"ALTER DATABASE {goal} IS_TEMPLATE false")
