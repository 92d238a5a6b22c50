"""The prover is proven: damage done after a restore is named by the checks that are about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql

from cellarer.domain.assertion import Assertion
from cellarer.domain.snapshot import Check
from cellarer.errors import DamagedData
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets.assertions import check_assertions
from cellarer.targets.checks import checks
from cellarer.targets.sandbox import PostgresProver, restore_and_check
from targets.conftest import CELLAR, drop
from targets.recorded_points import Listener, MemoryPoint, capture

SOURCE, PRISTINE = "cellar_restored", "cellar_pristine"
_points: dict[int, MemoryPoint] = {}

# What is done to the restored database, and what exactly must then fail, with these words.
DAMAGES = {
    "one cell": (
        "UPDATE wines SET note = 'x' WHERE id = 42",
        {"content public.wines": "1 row differs: changed id=42"},
    ),
    "a row is missing": (
        "DELETE FROM wines WHERE id = 7",
        {"rows public.wines": "499", "content public.wines": "1 row differs: missing id=7"},
    ),
    "a row too many": (
        "INSERT INTO wines (id, grower) VALUES (9000, 1)",
        {"rows public.wines": "501", "content public.wines": "1 row differs: unexpected id=9000"},
    ),
    "three kinds at once": (
        "UPDATE wines SET note = 'x' WHERE id IN (1, 2); DELETE FROM wines WHERE id = 3;"
        " INSERT INTO wines (id) VALUES (9000)",
        {
            "content public.wines": "4 rows differ: changed id=1; changed id=2; missing id=3;"
            " unexpected id=9000"
        },
    ),
    "a row twice": (
        "INSERT INTO tastings_2025 SELECT * FROM tastings_2025 WHERE taken = '2025-02-03'",
        {
            "rows public.tastings_2025": "188",
            "content public.tastings_2025": "1 row differs: unexpected row 188",
        },
    ),
    "a composite key": (
        "UPDATE blends SET share = 2 WHERE base = 3",
        {"content public.blends": "1 row differs: changed base=3, part=7"},
    ),
    "an orphan": (
        "SET session_replication_role = replica; UPDATE wines SET grower = 77 WHERE id = 5",
        {
            "content public.wines": "1 row differs: changed id=5",
            "foreign key public.wines.wines_grower_fkey": "1 orphan: grower=77 not in"
            " public.growers",
        },
    ),
    "an orphan of two columns": (
        "SET session_replication_role = replica; UPDATE blends SET parent = 9 WHERE base = 2",
        {
            "content public.blends": "1 row differs: changed base=2, part=1",
            "foreign key public.blends.blends_parent_part_fkey": "1 orphan: parent=9, part=1"
            " not in public.blends",
        },
    ),
    "an index is missing": (
        "DROP INDEX wines_by_note",
        {"schema": "1 object differs: missing INDEX public.wines_by_note"},
    ),
    "a constraint is missing": (
        "ALTER TABLE wines DROP CONSTRAINT wines_grower_fkey",
        {"schema": "1 object differs: missing FK CONSTRAINT public.wines wines_grower_fkey"},
    ),
    "another function": (
        "CREATE OR REPLACE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NEW; END'",
        {"schema": "1 object differs: changed FUNCTION public.stamp()"},
    ),
    "a table too many": (
        "CREATE TABLE more (id integer)",
        {
            "tables": "unexpected public.more",
            "schema": "1 object differs: unexpected TABLE public.more",
        },
    ),
    "a table is missing": (
        "DROP TABLE tastings_2024",
        {
            "tables": "missing public.tastings_2024",
            "rows public.tastings_2024": "no such table",
            "content public.tastings_2024": "no such table",
            "schema": "2 objects differ: missing TABLE public.tastings_2024; missing TABLE ATTACH",
        },
    ),
    "a large object": (
        "SELECT lo_put(700001, 0, 'A')",
        {"large objects": "1 large object differs: changed oid 700001"},
    ),
    "a large object is missing": (
        "SELECT lo_unlink(700002)",
        {"large objects": "1 large object differs: missing oid 700002", "schema": "700002"},
    ),
    "a sequence": (
        "SELECT setval('wines_id_seq', 12)",
        {"sequences": "public.wines_id_seq at 12 instead of 500"},
    ),
    "only the order": ("UPDATE wines SET note = note WHERE id = 1", {}),
    "nothing": ("SELECT 1", {}),
}


@pytest.fixture
def restored(cluster: Cluster) -> Iterator[tuple[Cluster, MemoryPoint]]:
    """A restored cellar to be damaged, made anew from a pristine copy for every test."""
    major = cluster.installation.major
    with connect(cluster.dsn("postgres")) as connection:
        drop(cluster, SOURCE)
        if major not in _points:
            drop(cluster, PRISTINE)
            connection.execute(f"CREATE DATABASE {SOURCE} TEMPLATE template0")
            with connect(cluster.dsn(SOURCE)) as source:
                source.execute(CELLAR.encode())
            point = capture(cluster, SOURCE)
            found = restore_and_check(cluster, point, Listener(), (), 2)
            assert [check for check in found if not check.passed] == []
            connection.execute(f"ALTER DATABASE {SOURCE} RENAME TO {PRISTINE}")
            _points[major] = point
        connection.execute(f"CREATE DATABASE {SOURCE} TEMPLATE {PRISTINE}")
        yield cluster, _points[major]
        drop(cluster, SOURCE)


def failed(found: list[Check]) -> dict[str, str]:
    """Name without the database, and what was found, of each check that failed."""
    return {
        check.name.replace(f" {SOURCE}.", " ").replace(f" {SOURCE}", ""): check.found
        for check in found
        if not check.passed
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(restored: tuple[Cluster, MemoryPoint], damage: str) -> None:
    cluster, point = restored
    statement, expected = DAMAGES[damage]
    with connect(cluster.dsn(SOURCE)) as connection:
        connection.execute(statement.encode())
    found = checks(cluster, point, Listener())
    named = failed(found)
    assert set(named) == set(expected)
    for name, words in expected.items():
        assert words in named[name]


def test_order_alone_is_said(restored: tuple[Cluster, MemoryPoint]) -> None:
    cluster, point = restored
    with connect(cluster.dsn(SOURCE)) as connection:
        connection.execute("UPDATE wines SET note = note WHERE id = 1")
    found = {check.name: check for check in checks(cluster, point, Listener())}
    check = found[f"content {SOURCE}.public.wines"]
    assert check.passed
    assert check.found == "the same rows in another order"


def test_streams_of_equal_tables_are_not_read_again(
    restored: tuple[Cluster, MemoryPoint],
) -> None:
    cluster, point = restored
    point.opened.clear()
    with connect(cluster.dsn(SOURCE)) as connection:
        connection.execute("DELETE FROM growers WHERE id = 9 AND false")
        connection.execute("DELETE FROM wines WHERE id = 1")
    checks(cluster, point, Listener())
    read = {path for path in point.opened if "/data/" in path}
    assert read == {f"{SOURCE}/data/public/wines"}


def test_many_differences_are_counted_and_five_named(
    restored: tuple[Cluster, MemoryPoint],
) -> None:
    cluster, point = restored
    with connect(cluster.dsn(SOURCE)) as connection:
        connection.execute("UPDATE wines SET note = note || '!'")
    named = failed(checks(cluster, point, Listener()))
    assert named["content public.wines"].startswith("500 rows differ: changed id=")
    assert named["content public.wines"].count("changed") == 5


@pytest.mark.parametrize(
    ("query", "expect", "passed", "words"),
    [
        ("SELECT count(*) FROM wines", 500, True, "500"),
        ("SELECT count(*) FROM wines", 501, False, "500"),
        ("SELECT 1.50", 1.5, True, "1.50"),
        ("SELECT true", True, True, "true"),
        ("SELECT 1", True, False, "1"),
        ("SELECT colour FROM wines LIMIT 1", "red", True, "red"),
        ("SELECT note FROM wines WHERE note LIKE '%nothing%'", "x", False, "no rows"),
        ("SELECT NULL", "null", False, "null"),
        ("SELECT id FROM growers", 1, False, "9 rows"),
        ("SELECT 1 / 0", 0, False, "division by zero"),
        ("DELETE FROM wines RETURNING 1", 1, False, "read-only"),
    ],
)
def test_assertions(
    restored: tuple[Cluster, MemoryPoint],
    query: str,
    expect: float | bool | str,
    passed: bool,
    words: str,
) -> None:
    cluster, _ = restored
    asked = [Assertion("it holds", query, expect)]
    (check,) = check_assertions(asked, [SOURCE], cluster.dsn)
    assert check.name == "assertion it holds"
    assert check.passed is passed
    assert words in check.found


def test_a_point_is_proven_in_a_sandbox_that_goes_away(
    cluster: Cluster, make_database: Callable[..., str], tmp_path: Path
) -> None:
    nasty = Path(__file__).parent.parent.joinpath("postgres", "nasty.sql").read_text("utf-8")
    point = capture(cluster, make_database(cluster, nasty), make_database(cluster))
    listener = Listener()
    found = PostgresProver((), tmp_path / "sandboxes", 2).prove(point, listener).checks
    assert [check for check in found if not check.passed] == []
    assert found[0].name == "restore"
    assert f"PostgreSQL {cluster.installation.version}" in found[0].found
    assert any(check.name.startswith("content ") for check in found)
    assert list((tmp_path / "sandboxes").iterdir()) == []
    content = sum(entry.size_bytes for entry in point.entries() if "/data/" in entry.path)
    assert listener.read_bytes >= 2 * content


def test_an_older_source_is_proven_on_a_newer_server(
    postgres15: Cluster, postgres18: Cluster, make_database: Callable[..., str]
) -> None:
    name = make_database(postgres15)
    make_database(postgres18, "SELECT 1", name)
    point = capture(postgres15, name)
    found = restore_and_check(postgres18, point, Listener(), (), 2)
    assert [check for check in found if not check.passed] == []
    assert "the source runs PostgreSQL 15" in found[0].found
    schema = next(check for check in found if check.name == f"schema {name}")
    assert "by name" in schema.found


def test_a_restore_with_errors_is_a_failed_check(
    cluster: Cluster, make_database: Callable[..., str], tmp_path: Path
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    kind, toc = point.streams[f"{name}/toc"]
    # A type of the table is gone, as an extension that this machine lacks would be.
    broken = toc.replace(b"CREATE TYPE public.colour AS", b"CREATE TYPE public.missed AS")
    assert broken != toc
    point = MemoryPoint(point.streams | {f"{name}/toc": (kind, broken)})
    (check,) = PostgresProver((), tmp_path, 2).prove(point, Listener()).checks
    assert not check.passed
    assert 'type "public.colour" does not exist' in check.found


def test_damage_of_the_point_is_not_taken_for_a_failed_check(
    cluster: Cluster, make_database: Callable[..., str], tmp_path: Path
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    point.damage(f"{name}/data/public/wines")
    with pytest.raises(DamagedData):
        PostgresProver((), tmp_path / "sandboxes", 2).prove(point, Listener())
    assert list((tmp_path / "sandboxes").iterdir()) == []


def test_a_generated_key_is_not_in_the_dump(
    cluster: Cluster, make_database: Callable[..., str]
) -> None:
    script = (
        "CREATE TABLE g (a integer, b integer GENERATED ALWAYS AS (a * 2) STORED,"
        " PRIMARY KEY (a, b));"
        "INSERT INTO g VALUES (1), (2), (3);"
    )
    name = make_database(cluster, script)
    point = capture(cluster, name)
    with connect(cluster.dsn(name)) as connection:
        connection.execute("DELETE FROM g WHERE a = 2")
    found = {check.name: check.found for check in checks(cluster, point, Listener())}
    assert found[f"content {name}.public.g"] == "1 row differs: missing row 2"


def test_sums_are_of_the_streams(restored: tuple[Cluster, MemoryPoint]) -> None:
    cluster, point = restored
    found = {check.name: check for check in checks(cluster, point, Listener())}
    content = point.streams[f"{SOURCE}/data/public/growers"][1]
    total = hashlib.sha256(content).hexdigest()
    assert found[f"content {SOURCE}.public.growers"].found == f"sha256 {total[:16]}..."


def test_two_databases_and_an_assertion_that_names_none(
    cluster: Cluster, make_database: Callable[..., str]
) -> None:
    names = [make_database(cluster), make_database(cluster, "CREATE TABLE one (id integer)")]
    point = capture(cluster, *names)
    assertions = [
        Assertion("unnamed", "SELECT 1", 1),
        Assertion("named", "SELECT count(*) FROM one", 0, names[1]),
        Assertion("elsewhere", "SELECT 1", 1, "nowhere"),
    ]
    found = {check.name: check for check in checks(cluster, point, Listener(), assertions)}
    assert "names no database" in found["assertion unnamed"].found
    assert found["assertion named"].passed
    assert "no database nowhere" in found["assertion elsewhere"].found


def test_names_of_checks_quote_nothing(cluster: Cluster, make_database: Callable[..., str]) -> None:
    name = make_database(cluster, 'CREATE TABLE "Odd ""name"" (1)" ("a, (b" integer PRIMARY KEY)')
    point = capture(cluster, name)
    with connect(cluster.dsn(name)) as connection:
        connection.execute(
            sql.SQL("INSERT INTO {} VALUES (4)").format(sql.Identifier('Odd "name" (1)'))
        )
    found = {check.name: check for check in checks(cluster, point, Listener())}
    check = found[f'content {name}.public.Odd "name" (1)']
    assert check.found == "1 row differs: unexpected a, (b=4"
