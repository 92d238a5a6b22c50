"""A sandbox that fails for a reason of its host is an error, never a verdict on the point."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from cellarer.domain.assertion import Assertion
from cellarer.errors import TargetFailed
from cellarer.postgres.cluster import SANDBOX_SETTINGS, Cluster
from cellarer.postgres.processes import server_pid
from cellarer.targets.host_faults import hint_of_host_fault
from cellarer.targets.sandbox import PostgresProver, restore_and_check
from targets.asking import query, restore
from targets.recorded_points import Listener, MemoryPoint, capture

MakeDatabase = Callable[..., str]
SmallDisk = Callable[[int], Path]

# Rows that cannot be compressed: 45 MB in the table.
BIG = (
    "CREATE TABLE big (id integer, word text); ALTER TABLE big ALTER word SET STORAGE PLAIN;"
    "INSERT INTO big SELECT n, (SELECT string_agg(md5((n * m)::text), '')"
    " FROM generate_series(1, 31) m) FROM generate_series(1, 44000) n"
)
SORTED = "SELECT count(*) FROM (SELECT id FROM big ORDER BY word DESC OFFSET 43000) s"


def not_judged(point: MemoryPoint, workspace: Path, *assertions: Assertion) -> TargetFailed:
    """The error of proving the point there, after which nothing is left."""
    with pytest.raises(TargetFailed, match="not judged") as caught:
        PostgresProver(assertions, workspace / "sandboxes", 2).prove(point, Listener())
    assert list((workspace / "sandboxes").iterdir()) == []
    assert caught.value.exit_code == 1
    return caught.value


@pytest.mark.parametrize("megabytes", [20, 70], ids=["no room to begin", "no room for the rows"])
def test_a_full_disk_is_no_failed_check(
    cluster: Cluster, make_database: MakeDatabase, small_disk: SmallDisk, megabytes: int
) -> None:
    point = capture(cluster, make_database(cluster, BIG))
    disk = small_disk(megabytes)
    error = not_judged(point, disk)
    assert any(words in error.detail for words in ("No space left on device", "wrote only"))
    assert "TMPDIR" in error.hint
    assert str(disk) in error.message


def test_a_disk_that_fills_up_while_it_is_checked(
    cluster: Cluster, make_database: MakeDatabase, small_disk: SmallDisk
) -> None:
    point = capture(cluster, make_database(cluster, BIG))
    error = not_judged(point, small_disk(125), Assertion("sorted", SORTED, 1000))
    assert "could not write" in error.detail
    assert "TMPDIR" in error.hint


def test_rows_and_errors_that_only_talk_of_a_full_disk_are_judged(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Or a point with such rows could never be found wanting."""
    words = "could not extend file: No space left on device"
    script = f"CREATE TABLE logs AS SELECT '{words}'::text AS line, 1 AS id"
    name = make_database(cluster, script)
    point = capture(cluster, name)
    kind, toc = point.streams[f"{name}/toc"]
    broken = toc.replace(b"    line text,", b"    line date,")
    assert broken != toc
    point = MemoryPoint(point.streams | {f"{name}/toc": (kind, broken)})
    (check,) = PostgresProver((), tmp_path, 2).prove(point, Listener()).checks
    assert not check.passed
    assert words in check.found


def loading(postmaster: int) -> int:
    """The process that takes the rows, by the title that it gives itself."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in children.read_text().split():
            with suppress(OSError):
                if b"COPY" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    raise AssertionError("nobody loads rows")


class DeadlyPoint(MemoryPoint):
    """Reading a table's rows kills the sandbox's server, as a host without memory does."""

    workspace: Path
    everyone = False

    def read(self, path: str) -> Iterator[bytes]:
        blocks = super().read(path)
        if path.endswith("data/public/wines"):
            yield next(blocks)
            (data,) = self.workspace.glob("sandbox-*/data")
            pid = server_pid(data)
            assert pid is not None
            os.kill(pid if self.everyone else loading(pid), signal.SIGKILL)
            yield from blocks
        else:
            yield from blocks


@pytest.mark.parametrize("everyone", [False, True], ids=["a backend", "the postmaster"])
def test_a_server_that_is_killed_is_no_failed_check(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path, everyone: bool
) -> None:
    point = DeadlyPoint(capture(cluster, make_database(cluster)).streams)
    point.workspace, point.everyone = tmp_path / "sandboxes", everyone
    assert "killed" in not_judged(point, tmp_path).hint


@pytest.mark.parametrize(
    "said",
    [
        "could not open large object 700001: server closed the connection unexpectedly",
        "error returned by PQputCopyData: server closed the connection unexpectedly",
        "could not close large object 7: could not receive data from server: Connection reset",
    ],
)
def test_the_words_of_a_server_that_is_gone(said: str) -> None:
    assert "killed" in (hint_of_host_fault(f"pg_restore reported an error\n{said}") or "")


def test_a_target_without_room_keeps_what_it_has(
    cluster: Cluster, make_database: MakeDatabase, small_disk: SmallDisk
) -> None:
    point = capture(cluster, make_database(cluster, BIG))
    directory = small_disk(100) / "small"
    small = Cluster.create(cluster.installation, directory, settings=SANDBOX_SETTINGS)
    try:
        small.start()
        with psycopg.connect(small.dsn("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE goal")
        with psycopg.connect(small.dsn("goal"), autocommit=True) as connection:
            connection.execute("CREATE TABLE precious AS SELECT 1 AS id")
        with pytest.raises(TargetFailed) as caught:
            restore(small.dsn("goal"), point, overwrite=True)
        assert "Free space" in caught.value.hint
        assert "goal is as it was" in caught.value.hint
        assert query(small, "goal", "SELECT id FROM precious") == [(1,)]
        names = query(small, "postgres", "SELECT datname FROM pg_database ORDER BY 1")
        assert names == [("goal",), ("postgres",), ("template0",), ("template1",)]
    finally:
        small.remove()


def test_a_restore_that_fails_for_the_point_is_judged_in_any_cluster(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    name = make_database(cluster, "CREATE TABLE one (id integer)")
    point = capture(cluster, name)
    kind, toc = point.streams[f"{name}/toc"]
    broken = toc.replace(b"id integer", b"id integre")
    point = MemoryPoint(point.streams | {f"{name}/toc": (kind, broken)})
    (check,) = restore_and_check(cluster, point, Listener(), (), 2)
    assert not check.passed
    assert "--overwrite" not in check.found
