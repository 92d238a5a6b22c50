"""Databases made from scripts, and their restore points."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect

CELLAR = Path(__file__).with_name("cellar.sql").read_text(encoding="utf-8")


@pytest.fixture
def new_name() -> Callable[[], str]:
    """A name that nothing in the shared clusters has."""
    return lambda: f"t_{secrets.token_hex(6)}"


@pytest.fixture
def make_database(new_name: Callable[[], str]) -> Iterator[Callable[..., str]]:
    """Makes databases by running SQL in new ones, and drops them at the end."""
    made: list[tuple[Cluster, str]] = []

    def make(cluster: Cluster, script: str = CELLAR, name: str = "", options: str = "") -> str:
        name = name or new_name()
        made.append((cluster, name))
        with connect(cluster.dsn("postgres")) as connection:
            statement = f"CREATE DATABASE {{}} TEMPLATE template0 {options}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
        with connect(cluster.dsn(name)) as connection:
            connection.execute(script.encode())
        return name

    yield make
    for cluster, name in made:
        drop(cluster, name)


def drop(cluster: Cluster, name: str) -> None:
    with connect(cluster.dsn("postgres")) as connection:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        connection.execute(statement.format(sql.Identifier(name)))


@pytest.fixture
def goal(cluster: Cluster) -> Iterator[str]:
    """The name of a database that is not there yet, and will not be afterwards."""
    name = f"goal_{secrets.token_hex(6)}"
    yield name
    drop(cluster, name)
