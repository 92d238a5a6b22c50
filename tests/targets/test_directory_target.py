"""A point in a directory: archives that plain `pg_restore` reads, scripts for `psql`, files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cellarer.errors import DamagedData, TargetFailed, UsageError
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets.checks import checks
from cellarer.targets.directory import DirectoryTarget
from targets.conftest import drop
from targets.recorded_points import Listener, MemoryPoint, capture

MakeDatabase = Callable[..., str]


def restore(directory: Path, point: MemoryPoint, *only: str, overwrite: bool = False) -> Listener:
    listener = Listener()
    target = DirectoryTarget(directory)
    target.prepare(overwrite)
    result = target.restore(point, only, listener)
    # Where files are there already, everything is read once before the first is replaced.
    assert listener.read_bytes in (result.restored_bytes, 2 * result.restored_bytes)
    return listener


def run_script(cluster: Cluster, database: str, script: Path) -> None:
    psql = str(cluster.installation.program("psql"))
    options = ["-q", "-v", "ON_ERROR_STOP=1", "-d", cluster.dsn(database), "-f", str(script)]
    subprocess.run([psql, *options], check=True)


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_plain_pg_restore_reads_the_archive_in_parallel(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    nasty = Path(__file__).parent.parent.joinpath("postgres", "nasty.sql").read_text("utf-8")
    name = make_database(cluster, nasty)
    point = capture(cluster, name)
    restore(tmp_path / "out", point)
    assert names(tmp_path / "out") == {
        *(f"{name}.dump", f"{name}.tables.json", "roles.sql", "server.json"),
    }
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "out").iterdir())
    drop(cluster, name)
    make_database(cluster, "SELECT 1", name)
    subprocess.run(
        [
            *(cluster.installation.program("pg_restore"), "-j2", "-d", cluster.dsn(name)),
            tmp_path / "out" / f"{name}.dump",
        ],
        check=True,
    )
    assert [check for check in checks(cluster, point, Listener()) if not check.passed] == []
    files = {"server.json": "server.json", f"{name}.tables.json": f"{name}/tables.json"}
    for file, path in files.items():
        assert (tmp_path / "out" / file).read_bytes() == point.streams[path][1]


def test_the_archive_is_the_one_that_pg_dump_writes_into_a_file(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Byte for byte, where the data of each entry begins included; only the time is another."""
    name = make_database(cluster)
    restore(tmp_path, capture(cluster, name))
    file = tmp_path / "of-pg-dump"
    program = str(cluster.installation.program("pg_dump"))
    subprocess.run([program, "-Fc", "-Z0", "-f", str(file), "-d", cluster.dsn(name)], check=True)
    header_bytes = 100
    expected, found = file.read_bytes(), (tmp_path / f"{name}.dump").read_bytes()
    assert len(found) == len(expected)
    assert found[header_bytes:] == expected[header_bytes:]


def test_only_a_table_as_a_script(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    name = make_database(cluster)
    point = capture(cluster, name)
    restore(tmp_path, point, "wines")
    script = tmp_path / name / "public" / "wines.sql"
    assert names(tmp_path) == {f"{name}/public/wines.sql"}
    assert set(point.opened) == {"server.json", f"{name}/toc", f"{name}/data/public/wines"}
    rows = "SELECT md5(string_agg(w::text, '|' ORDER BY id)) FROM wines w"
    with connect(cluster.dsn(name)) as connection:
        before = connection.execute(rows.encode()).fetchall()
        connection.execute("DELETE FROM wines")
        run_script(cluster, name, script)
        assert connection.execute(rows.encode()).fetchall() == before


def test_a_script_of_another_encoding(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    name = make_database(
        cluster,
        "CREATE TABLE café (größe text); INSERT INTO café VALUES ('très'), ('tab\t'), (NULL)",
        options="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    restore(tmp_path, capture(cluster, name), "caf*")
    (script,) = (tmp_path / name / "public").iterdir()
    goal = make_database(cluster, "CREATE TABLE café (größe text)")
    run_script(cluster, goal, script)
    with connect(cluster.dsn(goal)) as connection:
        rows = connection.execute("SELECT * FROM café").fetchall()
    assert rows == [("très",), ("tab\t",), (None,)]


def test_files_come_with_mode_and_time(tmp_path: Path) -> None:
    point = MemoryPoint({"a/b/run.sh": ("file", b"#!/bin/sh\n"), "c.txt": ("file", b"text")})
    moment = datetime(2020, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    point.modes["a/b/run.sh"] = (0o750, moment)
    restore(tmp_path, point)
    status = (tmp_path / "a" / "b" / "run.sh").stat()
    assert (tmp_path / "a" / "b" / "run.sh").read_bytes() == b"#!/bin/sh\n"
    assert status.st_mode & 0o7777 == 0o750
    assert status.st_mtime_ns == 1588748889123456000
    assert (tmp_path / "c.txt").stat().st_mode & 0o777 == 0o600


def test_only_some_files(tmp_path: Path) -> None:
    files = ["a/x.txt", "a/y.log", "b/x.txt"]
    point = MemoryPoint({path: ("file", path.encode()) for path in files})
    restore(tmp_path / "1", point, "a")
    restore(tmp_path / "2", point, "*.txt")
    assert names(tmp_path / "1") == {"a/x.txt", "a/y.log"}
    assert names(tmp_path / "2") == {"a/x.txt", "b/x.txt"}
    with pytest.raises(UsageError):
        restore(tmp_path / "3", point, "c")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "..", "a\0b"])
def test_no_path_leads_outside(tmp_path: Path, path: str) -> None:
    point = MemoryPoint({"good.txt": ("file", b"good"), path: ("file", b"evil")})
    with pytest.raises(DamagedData):
        restore(tmp_path / "out", point)
    assert names(tmp_path) == set()


def test_no_link_leads_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "kept.txt").write_text("kept")
    (tmp_path / "out" / "b.txt").symlink_to(tmp_path / "elsewhere" / "kept.txt")
    with pytest.raises(TargetFailed):
        restore(tmp_path / "out", MemoryPoint({"a/x": ("file", b"evil")}), overwrite=True)
    restore(tmp_path / "out", MemoryPoint({"b.txt": ("file", b"new")}), overwrite=True)
    assert names(tmp_path / "elsewhere") == {"kept.txt"}
    assert (tmp_path / "elsewhere" / "kept.txt").read_text() == "kept"
    assert (tmp_path / "out" / "b.txt").read_text() == "new"


def test_what_cannot_be_read_replaces_no_file(tmp_path: Path) -> None:
    point = MemoryPoint({"a.txt": ("file", b"new"), "b.txt": ("file", b"n" * 99)})
    point.damage("b.txt")
    (tmp_path / "a.txt").write_text("old")
    target = DirectoryTarget(tmp_path)
    target.prepare(overwrite=True)
    assert target.look(point, ()).replaces == ("a.txt",)
    with pytest.raises(DamagedData):
        restore(tmp_path, point, overwrite=True)
    assert names(tmp_path) == {"a.txt"}
    assert (tmp_path / "a.txt").read_text() == "old"


def test_existing_files_are_kept_unless_overwritten(tmp_path: Path) -> None:
    point = MemoryPoint({"a.txt": ("file", b"new"), "b.txt": ("file", b"new")})
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(TargetFailed) as caught:
        restore(tmp_path, point)
    assert caught.value.detail == "b.txt"
    assert names(tmp_path) == {"b.txt"}
    restore(tmp_path, point, overwrite=True)
    assert (tmp_path / "b.txt").read_text() == "new"


def test_a_damaged_stream_leaves_no_file(tmp_path: Path) -> None:
    point = MemoryPoint({"a.txt": ("file", bytes(100_000))})
    (tmp_path / "a.txt").write_text("old")
    point.damage("a.txt")
    with pytest.raises(DamagedData):
        restore(tmp_path, point, overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TargetFailed):
        DirectoryTarget(tmp_path / "out").prepare(overwrite=True)


def test_a_restore_that_broke_off_says_what_is_there(tmp_path: Path) -> None:
    point = MemoryPoint({name: ("file", bytes(100_000)) for name in ("a", "b", "c")})
    point.damage("b")
    with pytest.raises(DamagedData) as caught:
        restore(tmp_path / "out", point)
    assert "is incomplete: 1 of 3 files were written (a), not b, c" in caught.value.detail
    assert "--overwrite" in caught.value.hint
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_looking_makes_nothing_and_counts_what_would_be_read(tmp_path: Path) -> None:
    point = MemoryPoint({"a": ("file", bytes(1000)), "b": ("file", bytes(10))})
    target = DirectoryTarget(tmp_path / "out")
    target.prepare(overwrite=False)
    assert target.look(point, ("b",)).restore_bytes == 10
    assert not target.look(point, ()).as_verified
    assert not (tmp_path / "out").exists()
    restore(tmp_path / "out", point, "b", "a")
    with pytest.raises(TargetFailed, match="already"):
        target.look(point, ())
    with pytest.raises(UsageError, match=r"matches c\b"):
        restore(tmp_path / "other", point, "a", "c")
