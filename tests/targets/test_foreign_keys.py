"""Orphans are found along every kind of foreign key, and only orphans."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cellarer.domain.snapshot import Check
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets.checks import checks
from targets.conftest import CELLAR
from targets.recorded_points import Listener, MemoryPoint, capture


def the_key(cluster: Cluster, point: MemoryPoint) -> Check:
    found = checks(cluster, point, Listener())
    (check,) = [check for check in found if check.name.startswith("foreign key")]
    return check


def test_not_validated_constraints_may_have_orphans(
    cluster: Cluster, make_database: Callable[..., str]
) -> None:
    script = (
        CELLAR + "SET session_replication_role = replica; INSERT INTO wines (grower) VALUES (99);"
        "SET session_replication_role = origin; ALTER TABLE wines DROP CONSTRAINT"
        " wines_grower_fkey, ADD FOREIGN KEY (grower) REFERENCES growers NOT VALID;"
    )
    name = make_database(cluster, script)
    found = checks(cluster, capture(cluster, name), Listener())
    check = next(check for check in found if check.name.endswith("wines_grower_fkey"))
    assert check.passed
    assert check.found.startswith("1 orphan: grower=99 not in public.growers, which")


@pytest.mark.parametrize("match", ["SIMPLE", "FULL"])
def test_nulls_in_keys(cluster: Cluster, make_database: Callable[..., str], match: str) -> None:
    script = (
        "CREATE TABLE p (a integer, b integer, PRIMARY KEY (a, b)); INSERT INTO p VALUES (1, 1);"
        "CREATE TABLE c (a integer, b integer, FOREIGN KEY (a, b) REFERENCES p MATCH "
        f"{match}); INSERT INTO c VALUES (1, 1), (NULL, NULL);"
    )
    name = make_database(cluster, script)
    point = capture(cluster, name)
    with connect(cluster.dsn(name)) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("INSERT INTO c VALUES (1, NULL)")
    found = checks(cluster, point, Listener())
    check = next(check for check in found if check.name.startswith("foreign key"))
    assert check.passed is (match == "SIMPLE")


def test_a_key_of_partitions_is_checked_once(
    cluster: Cluster, make_database: Callable[..., str]
) -> None:
    script = (
        "CREATE TABLE p (id integer PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE c (id integer REFERENCES p) PARTITION BY RANGE (id);"
        "CREATE TABLE c1 PARTITION OF c FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE c2 PARTITION OF c FOR VALUES FROM (10) TO (40);"
        "INSERT INTO p VALUES (1), (11); INSERT INTO c VALUES (1), (11);"
    )
    name = make_database(cluster, script)
    point = capture(cluster, name)
    with connect(cluster.dsn(name)) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("INSERT INTO c VALUES (12), (13), (13)")
    found = checks(cluster, point, Listener())
    (check,) = [check for check in found if check.name.startswith("foreign key")]
    assert check.name == f"foreign key {name}.public.c.c_id_fkey"
    assert check.found == "3 orphans: id=12; id=13 not in public.p"


def test_keys_over_periods(postgres18: Cluster, make_database: Callable[..., str]) -> None:
    script = (
        "CREATE TABLE p (id int4range, during daterange,"
        " PRIMARY KEY (id, during WITHOUT OVERLAPS));"
        "CREATE TABLE c (id int4range, during daterange,"
        " FOREIGN KEY (id, PERIOD during) REFERENCES p (id, PERIOD during));"
        "INSERT INTO p VALUES ('[1,2)', '[2020-01-01,2020-06-01)');"
        "INSERT INTO p VALUES ('[1,2)', '[2020-06-01,2021-01-01)');"
        # No single row of the other table covers this one.
        "INSERT INTO c VALUES ('[1,2)', '[2020-01-01,2021-01-01)');"
    )
    name = make_database(postgres18, script)
    point = capture(postgres18, name)
    assert the_key(postgres18, point).passed
    with connect(postgres18.dsn(name)) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM p WHERE during @> date '2020-07-01'")
    check = the_key(postgres18, point)
    assert check.name == f"foreign key {name}.public.c.c_id_during_fkey"
    assert not check.passed
