"""`wal fetch`: the end of the log is told from everything else, and what comes next is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellarer.domain.wal import Segment
from cellarer.postgres.account import service_account
from cellarer.postgres.archiving import restore_command
from cellarer.postgres.cluster import Cluster
from server_copies import configure, copy_of
from wal_places import Place, ask, interpreter, system_of, wait_for

CHANGES = (
    "CREATE TABLE IF NOT EXISTS t (id int, filler text)",
    "INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n",
)


def switched(server: Cluster) -> Path:
    name = ask(server, *CHANGES, "SELECT pg_walfile_name(pg_switch_wal())")
    return server.data_directory / "pg_wal" / str(name)


@pytest.fixture
def archived(place: Place, postgres15: Cluster) -> tuple[str, list[Path]]:
    """Six segments in a row that are in the vault."""
    segments = [switched(postgres15) for _ in range(6)]
    kept = place.directory / "kept"
    kept.mkdir()
    for segment in segments:
        shutil.copy(segment, kept)
        assert place.run("wal", "push", segment, cwd=postgres15.data_directory).returncode == 0
    return system_of(postgres15), [kept / segment.name for segment in segments]


def test_absent_unreachable_and_damaged_are_told_apart(
    place: Place, archived: tuple[str, list[Path]]
) -> None:
    system, segments = archived
    last = Segment.parse(segments[-1].name)
    after = Segment(last.timeline, last.number + 1).name()

    def fetch(name: str) -> tuple[int, str]:
        done = place.run("wal", "fetch", "--system", system, name, "found")
        return done.returncode, done.stdout

    assert fetch(after) == (1, "absent\n")
    assert fetch("00000002.history") == (1, "absent\n")
    assert fetch(segments[0].name) == (0, "")
    # One replica alone is not proof, and nor is none.
    (place.directory / "two").rename(place.directory / "away")
    assert fetch(after) == (200, "")
    (place.directory / "away").rename(place.directory / "two")
    # Lost on all replicas, with more of the log behind it, and not on its way to the spool either.
    place.end_agent()
    for replica in ("one", "two"):
        for found in (place.directory / replica).rglob(segments[2].name):
            found.unlink()
    shutil.rmtree(place.directory / "state" / "cellarer" / "wal-spool", ignore_errors=True)
    assert fetch(segments[2].name) == (200, "")
    # Damaged on all replicas.
    for replica in ("one", "two"):
        for found in (place.directory / replica).rglob(segments[3].name):
            found.write_bytes(found.read_bytes()[:-1] + b"!")
    place.end_agent()
    shutil.rmtree(place.directory / "state" / "cellarer" / "wal-spool", ignore_errors=True)
    assert fetch(segments[3].name) == (200, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "nowhere.toml", "wal", "fetch", "000000010000000000000001", "x"),
        ("wal", "fetch", "000000010000000000000001"),
        ("wal", "fetch", "000000010000000000000001", "x", "--nonsense"),
        ("wal", "fetch", "nonsense", "x"),
        ("wal", "fetch", "000000010000000000000001", "x"),
    ],
)
def test_no_mistake_looks_like_the_end_of_the_log(place: Place, arguments: tuple[str, ...]) -> None:
    done = place.run(*arguments)
    assert done.returncode == 200
    assert "absent" not in done.stdout


def test_what_comes_next_is_fetched_meanwhile(
    place: Place, archived: tuple[str, list[Path]]
) -> None:
    system, segments = archived
    spool, goal = place.directory / "ahead", place.directory / "found"
    done = place.run("wal", "fetch", "--system", system, "--spool", spool, segments[0].name, goal)
    assert done.returncode == 0
    assert goal.read_bytes() == segments[0].read_bytes()
    for segment in segments[1:]:
        ahead = spool / system / segment.name
        wait_for(ahead.exists)
        assert ahead.read_bytes() == segment.read_bytes()
        ahead.unlink()


def recovering(server: Cluster, place: Place, command: str) -> Cluster:
    """A copy of the server that recovers by this `restore_command`; not started."""
    copy = copy_of(server, place.directory / "recovered", "-X", "none")
    settings = command.replace("'", "''")
    configure(copy, f"restore_command = '{settings}'")
    (copy.data_directory / "recovery.signal").touch()
    service_account().own(copy.data_directory / "recovery.signal")
    return copy


def test_a_recovery_reaches_the_end_and_never_ends_early(place: Place, server: Cluster) -> None:
    first = switched(server)
    system = system_of(server)

    def push(path: Path) -> subprocess.CompletedProcess[str]:
        return place.run("wal", "push", path, cwd=server.data_directory)

    assert push(first).returncode == 0
    place.end_agent()
    spool = place.directory / "ahead"
    command = restore_command(place.config, system, spool).replace(sys.executable, interpreter())
    copy = recovering(server, place, f"export {place.variables}; {command}")
    last = [switched(server) for _ in range(6)][-1]
    for path in sorted((server.data_directory / "pg_wal").glob("0*")):
        if path.name <= last.name:
            assert push(path).returncode == 0, path.name
    place.end_agent()
    rows = ask(server, "SELECT count(*) FROM t")
    place.give_to_the_server()
    try:
        # The store is away: the recovery stops, and nothing is promoted.
        for replica in ("one", "two"):
            (place.directory / replica).rename(place.directory / f"{replica}-away")
        with pytest.raises(Exception, match="no PostgreSQL cluster"):
            copy.start()
        log = (copy.directory / "server.log").read_text()
        assert "selected new timeline" not in log
        assert (copy.data_directory / "recovery.signal").exists()
        for replica in ("one", "two"):
            (place.directory / f"{replica}-away").rename(place.directory / replica)
        copy.start()
        wait_for(lambda: not ask(copy, "SELECT pg_is_in_recovery()"))
        assert ask(copy, "SELECT count(*) FROM t") == rows
    finally:
        copy.remove()
        place.end_agent()
