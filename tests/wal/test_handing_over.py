"""`wal push`: what PostgreSQL hands over is stored once, and never something else in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cellarer.postgres.cluster import Cluster
from wal_places import Place, ask, system_of, wait_for

CHANGES = (
    "CREATE TABLE IF NOT EXISTS t (id int, filler text)",
    "INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n",
)


def segment_of(server: Cluster) -> Path:
    """A complete segment of the server."""
    name = ask(server, *CHANGES, "SELECT pg_walfile_name(pg_switch_wal())")
    return server.data_directory / "pg_wal" / str(name)


def test_the_same_again_is_success_and_another_is_refused(place: Place, server: Cluster) -> None:
    segment, system = segment_of(server), system_of(server)
    for _ in range(2):
        done = place.run("wal", "push", f"pg_wal/{segment.name}", cwd=server.data_directory)
        assert (done.returncode, done.stderr) == (0, "")
    assert segment.name in place.stored(system)
    other = place.directory / segment.name
    other.write_bytes(segment.read_bytes()[:-1] + b"!")
    done = place.run("wal", "push", "--system", system, other)
    assert done.returncode == 1
    assert "other write-ahead log is stored" in done.stderr
    assert "hint: " in done.stderr
    found = place.directory / "found"
    assert place.run("wal", "fetch", "--system", system, segment.name, found).returncode == 0
    assert found.read_bytes() == segment.read_bytes()


def test_a_file_of_another_cluster_is_refused(
    place: Place, server: Cluster, postgres15: Cluster, postgres18: Cluster
) -> None:
    other = postgres15 if server.installation.major == 18 else postgres18
    segment = segment_of(server)
    done = place.run("wal", "push", segment, cwd=other.data_directory)
    assert done.returncode == 2
    assert "belongs to another cluster" in done.stderr
    assert not (place.directory / "one" / "wal").exists()


@pytest.mark.parametrize("bytes_left", [0, 100, (1 << 24) - 1])
def test_a_segment_that_is_cut_off_is_refused(
    place: Place, postgres15: Cluster, bytes_left: int
) -> None:
    segment = segment_of(postgres15)
    cut = place.directory / segment.name
    cut.write_bytes(segment.read_bytes()[:bytes_left])
    done = place.run("wal", "push", "--system", system_of(postgres15), cut)
    assert (done.returncode, "no whole segment" in done.stderr) == (1, True)


def test_where_the_cluster_is_not_known_it_is_asked_for(place: Place, postgres15: Cluster) -> None:
    done = place.run("wal", "push", segment_of(postgres15))
    assert done.returncode == 2
    assert "--system" in done.stderr
    done = place.run("wal", "push", "/etc/hostname")
    assert (done.returncode, "archive_command" in done.stderr) == (2, True)


def test_a_vault_that_is_away_is_told_and_nothing_is_done(place: Place, server: Cluster) -> None:
    segment = segment_of(server)
    place.write_config(replicas={"one": "file:///proc/nowhere/one"})
    done = place.run("wal", "push", segment, cwd=server.data_directory)
    assert done.returncode not in (0, 126, 127)
    assert "error: " in done.stderr


def test_scripts_are_told_in_json(place: Place, server: Cluster) -> None:
    segment, system = segment_of(server), system_of(server)
    assert place.document("wal", "push", "--system", system, segment) == {
        "name": segment.name,
        "stored": True,
    }
    found = place.document("wal", "fetch", "--system", system, "00000009.history", "x")
    assert found == {"name": "00000009.history", "found": False}


def test_archive_command_end_to_end(place: Place, server: Cluster) -> None:
    """Everything that PostgreSQL wants archived is stored, its marks and files left to itself."""
    place.give_to_the_server()
    server.stop()
    with (server.data_directory / "postgresql.conf").open("a") as file:
        file.write(f"archive_mode = on\narchive_command = '{place.shell('wal', 'push')} \"%p\"'\n")
    server.start()
    names = [segment_of(server).name for _ in range(5)]
    archived = "SELECT last_archived_wal >= %s FROM pg_stat_archiver"
    wait_for(lambda: ask(server, archived.replace("%s", f"'{names[-1]}'")))
    assert set(names) <= place.stored(system_of(server))
    failed = ask(server, "SELECT failed_count::int FROM pg_stat_archiver")
    assert failed == 0, (server.directory / "server.log").read_text()
    # Lost from every replica, and still in pg_wal: stored again, unasked.
    for replica in ("one", "two"):
        for lost in (place.directory / replica).rglob(names[1]):
            lost.unlink()
    place.end_agent()
    segment_of(server)
    wait_for(lambda: names[1] in place.stored(system_of(server)))


def test_the_client_imports_next_to_nothing() -> None:
    """It is started for every segment: what the agent needs, it must not load."""
    program = (
        "import runpy, sys; sys.argv = ['cellarer', 'wal', 'push', '/nowhere']\n"
        "try:\n    runpy.run_module('cellarer', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded = set(done.stdout.split())
    assert "cellarer.wal.client" in loaded
    heavy = {"click", "pydantic", "psycopg", "rich", "obstore", "numpy", "json", "pathlib"}
    assert not loaded & {*heavy, "subprocess", "cellarer.config", "cellarer.vault", "cellarer.cli"}
