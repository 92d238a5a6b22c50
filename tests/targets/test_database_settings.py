"""Settings of a database come back whole, and hinder neither its restore nor its proof."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellarer.postgres.cluster import Cluster
from cellarer.targets.sandbox import PostgresProver
from targets.asking import execute, query, restore
from targets.conftest import drop
from targets.recorded_points import Listener, capture

MakeDatabase = Callable[..., str]


@pytest.fixture
def role(cluster: Cluster) -> Iterator[str]:
    name = f"role {secrets.token_hex(5)}"
    execute(cluster, "postgres", f'CREATE ROLE "{name}"')
    yield name
    execute(cluster, "postgres", f'DROP ROLE IF EXISTS "{name}"')


def settings(cluster: Cluster, database: str) -> list[tuple[object, ...]]:
    return query(
        cluster,
        "postgres",
        "SELECT r.rolname, s.setconfig FROM pg_db_role_setting s"
        " JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole"
        f" WHERE d.datname = '{database}' ORDER BY 1",
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_settings_of_a_database_and_of_roles_in_it(
    cluster: Cluster, make_database: MakeDatabase, goal: str, role: str, overwrite: bool
) -> None:
    name = make_database(cluster)
    for statement in (
        f"ALTER DATABASE {name} SET statement_timeout = '150ms'",
        f'ALTER DATABASE {name} SET search_path = public, "odd one"',
        f"ALTER DATABASE {name} SET default_transaction_read_only = on",
        f"ALTER ROLE \"{role}\" IN DATABASE {name} SET work_mem = '7MB'",
        f'ALTER ROLE "{role}" IN DATABASE {name} SET search_path = "odd one", public',
    ):
        execute(cluster, "postgres", statement)
    point = capture(cluster, name)
    expected = settings(cluster, name)
    assert len(expected) == 2
    if overwrite:
        make_database(cluster, "CREATE TABLE old ()", goal)
    else:
        drop(cluster, name)
        execute(cluster, "postgres", f'DROP ROLE "{role}"')
    listener = restore(cluster.dsn(goal), point, overwrite=overwrite)
    # Tests before this one may have left roles of theirs on the server.
    assert [note for note in listener.notes if not note.startswith("roles kept")] == []
    assert settings(cluster, goal) == expected
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]
    drop(cluster, goal)


def test_a_read_only_database_is_proven(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    name = make_database(cluster)
    execute(cluster, "postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    found = PostgresProver((), tmp_path, 2).prove(capture(cluster, name), Listener()).checks
    assert [check for check in found if not check.passed] == []
