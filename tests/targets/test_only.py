"""Some tables of a point, with all that makes them whole and nothing else read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from cellarer.errors import TargetFailed, UsageError
from cellarer.postgres.cluster import Cluster
from cellarer.targets.postgres import PostgresTarget
from targets.asking import execute, query, relations, restore
from targets.conftest import CELLAR, drop
from targets.recorded_points import Listener, capture

MakeDatabase = Callable[..., str]

ONLY_WINES = {"wines", "wines_id_seq", "wines_pkey", "wines_by_note"}
TASTINGS = {"tastings", "tastings_2024", "tastings_2025"}


@pytest.mark.parametrize(
    ("pattern", "tables", "present"),
    [
        ("wines", ["wines"], ONLY_WINES),
        ("public.wines", ["wines"], ONLY_WINES),
        ("tastings", ["tastings_2024", "tastings_2025"], TASTINGS),
        ("tastings_2024", ["tastings_2024"], TASTINGS - {"tastings_2025"}),
        ("*s", ["wines", "growers", "blends", "tastings_2024", "tastings_2025"], None),
    ],
)
def test_only_some_tables(
    cluster: Cluster,
    make_database: MakeDatabase,
    goal: str,
    pattern: str,
    tables: Sequence[str],
    present: set[str] | None,
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    restore(cluster.dsn(goal), point, pattern)
    data = {f"{name}/data/public/{table}" for table in tables}
    assert set(point.opened) == data | {f"{name}/toc", "roles.sql", "server.json"}
    assert present is None or relations(cluster, goal) == present
    for table in tables:
        count = f"SELECT count(*) FROM {table}"
        assert query(cluster, goal, count) == query(cluster, name, count)


def test_only_by_the_path_of_a_stream(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    listener = restore(cluster.dsn(goal), point, f"{name}/data/public/wines")
    assert relations(cluster, goal) == ONLY_WINES
    # The sequence goes on where it stood, and the trigger came with its function.
    execute(cluster, goal, "INSERT INTO wines DEFAULT VALUES")
    last = query(cluster, goal, "SELECT id, note FROM wines ORDER BY id DESC LIMIT 1")
    assert last == [(501, "tasted")]
    assert listener.notes[0] == (
        "fk constraint public.wines wines_grower_fkey is left out: needs public.growers"
    )


def test_only_brings_foreign_keys_between_chosen_tables(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    point = capture(cluster, make_database(cluster))
    listener = restore(cluster.dsn(goal), point, "public.[gwb]*")
    keys = query(cluster, goal, "SELECT conname FROM pg_constraint WHERE contype = 'f'")
    assert len(keys) == 3
    assert listener.notes == [] or all("left out" not in note for note in listener.notes)


def test_only_with_what_needs_absent_tables(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    script = CELLAR + (
        "ALTER TABLE wines ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY with_grower ON wines USING (EXISTS (SELECT FROM growers));"
        "CREATE POLICY alone ON wines USING (id > 0);"
        "CREATE TABLE pairs (one growers, two integer DEFAULT 1);"
        "INSERT INTO pairs VALUES (ROW(1, 'x'), 2);"
        "COMMENT ON COLUMN pairs.two IS 'a number'; GRANT SELECT ON pairs TO PUBLIC;"
    )
    point = capture(cluster, make_database(cluster, script))
    listener = restore(cluster.dsn(goal), point, "wines")
    assert any("policy public.wines with_grower is left out" in n for n in listener.notes)
    assert query(cluster, goal, "SELECT polname FROM pg_policy") == [("alone",)]
    drop(cluster, goal)
    listener = restore(cluster.dsn(goal), point, "pairs")
    assert any("public.growers comes without its rows" in note for note in listener.notes)
    assert query(cluster, goal, "SELECT two FROM pairs") == [(2,)]
    assert query(cluster, goal, "SELECT count(*) FROM growers") == [(0,)]
    assert query(
        cluster,
        goal,
        "SELECT col_description('pairs'::regclass, 2), relacl IS NOT NULL"
        " FROM pg_class WHERE oid = 'pairs'::regclass",
    ) == [("a number", True)]


def test_only_leaves_what_lies_in_the_same_schema(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    script = (
        "CREATE SCHEMA s; CREATE SEQUENCE s.alone; CREATE TABLE s.other (id serial);"
        "CREATE SEQUENCE s.shared; SELECT nextval('s.shared') FROM generate_series(1, 5);"
        "CREATE TABLE s.t (id integer DEFAULT nextval('s.shared'));"
        "COMMENT ON SCHEMA s IS 'a schema'; GRANT USAGE ON SCHEMA s TO PUBLIC;"
    )
    point = capture(cluster, make_database(cluster, script))
    restore(cluster.dsn(goal), point, "s.t")
    assert relations(cluster, goal) == {"t", "shared"}
    assert query(cluster, goal, "SELECT nextval('s.shared')") == [(6,)]
    about = "SELECT obj_description(oid, 'pg_namespace'), nspacl IS NULL FROM pg_namespace"
    assert query(cluster, goal, f"{about} WHERE nspname = 's'") == [("a schema", False)]


def test_only_brings_no_key_to_a_table_without_rows(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    script = CELLAR + (
        "CREATE TABLE pairs (one growers, grower integer REFERENCES growers);"
        "INSERT INTO pairs VALUES (ROW(1, 'estate'), 2);"
    )
    point = capture(cluster, make_database(cluster, script))
    listener = restore(cluster.dsn(goal), point, "pairs")
    assert query(cluster, goal, "SELECT grower FROM pairs") == [(2,)]
    note = "fk constraint public.pairs pairs_grower_fkey is left out"
    assert any(note in one for one in listener.notes)


def test_only_never_overwrites(cluster: Cluster, make_database: MakeDatabase) -> None:
    point = capture(cluster, make_database(cluster))
    goal = make_database(cluster, "CREATE TABLE precious (id integer)")
    with pytest.raises(TargetFailed) as caught:
        restore(cluster.dsn(goal), point, "wines", overwrite=True)
    assert f"{goal}_restored" in caught.value.hint
    assert relations(cluster, goal) == {"precious"}


def test_only_nothing(cluster: Cluster, make_database: MakeDatabase, goal: str) -> None:
    point = capture(cluster, make_database(cluster))
    with pytest.raises(UsageError) as caught:
        restore(cluster.dsn(goal), point, "public.wine")
    assert "public.wines" in caught.value.hint
    assert (goal,) not in query(cluster, "postgres", "SELECT datname FROM pg_database")


def test_only_from_one_of_several_databases_goes_where_the_target_says(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    names = [make_database(cluster), make_database(cluster, "CREATE TABLE base (id integer)")]
    point = capture(cluster, *names)
    restore(cluster.dsn(goal), point, "public.base")
    assert relations(cluster, goal) == {"base"}
    drop(cluster, goal)
    restore(cluster.dsn(goal), point, f"{names[0]}/data/public/wines")
    assert relations(cluster, goal) == ONLY_WINES


def test_only_from_several_databases_needs_a_pattern_that_names_one(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    script = "CREATE TABLE base (id integer)"
    names = [make_database(cluster, script), make_database(cluster, script)]
    point = capture(cluster, *names)
    with pytest.raises(UsageError, match="several databases") as caught:
        restore(cluster.dsn(goal), point, "base")
    assert all(name in caught.value.detail for name in names)
    assert f"'{names[0]}/*'" in caught.value.hint
    assert (goal,) not in query(cluster, "postgres", "SELECT datname FROM pg_database")
    restore(cluster.dsn(goal), point, f"{names[1]}/*")
    assert relations(cluster, goal) == {"base"}


def test_a_whole_point_of_several_databases_is_told_ways_that_work(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    names = [make_database(cluster), make_database(cluster, "CREATE TABLE base (id integer)")]
    point = capture(cluster, *names)
    with pytest.raises(UsageError) as caught:
        restore(cluster.dsn(goal), point)
    assert f"--only '{names[0]}/*'" in caught.value.hint
    with pytest.raises(TargetFailed, match="is not empty") as refused:
        restore(cluster.dsn("postgres"), point)
    assert "_restored" not in refused.value.hint
    assert "another server, or into a directory" in refused.value.hint


def test_only_takes_several_patterns(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    restore(cluster.dsn(goal), point, "wines", "public.growers")
    keys = query(cluster, goal, "SELECT conname FROM pg_constraint WHERE contype = 'f'")
    assert ("wines_grower_fkey",) in keys
    count = "SELECT (SELECT count(*) FROM wines), (SELECT count(*) FROM growers)"
    assert query(cluster, goal, count) == query(cluster, name, count)
    drop(cluster, goal)
    with pytest.raises(UsageError, match=r"matches public\.wine: "):
        restore(cluster.dsn(goal), point, "growers", "public.wine")


def test_what_only_cannot_choose_is_said(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    script = "CREATE TABLE t (id integer); CREATE MATERIALIZED VIEW sums AS SELECT 1 AS one"
    point = capture(cluster, make_database(cluster, script))
    with pytest.raises(UsageError) as caught:
        restore(cluster.dsn(goal), point, "sums")
    assert "materialized views" in caught.value.detail


def test_the_outlook_is_of_what_matches(
    cluster: Cluster, make_database: MakeDatabase, goal: str
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    sizes = {entry.path: entry.size_bytes for entry in point.entries()}
    target = PostgresTarget(cluster.dsn(goal), 2)
    target.prepare(overwrite=False)
    outlook = target.look(point, ("wines",))
    assert outlook.restore_bytes == sizes[f"{name}/data/public/wines"]
    assert not outlook.as_verified
    whole = target.look(point, ())
    assert whole.as_verified
    assert whole.restore_bytes == target.restore(point, (), Listener()).restored_bytes


def test_the_look_refuses_what_the_restore_would(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    point = capture(cluster, make_database(cluster))
    occupied = make_database(cluster, "CREATE TABLE precious (id integer)")
    for only in ((), ("wines",)):
        target = PostgresTarget(cluster.dsn(occupied), 2)
        target.prepare(overwrite=False)
        with pytest.raises(TargetFailed, match="is not empty"):
            target.look(point, only)
