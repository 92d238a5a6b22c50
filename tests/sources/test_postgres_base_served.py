"""Base backups of real servers: a server recovers from them, and nothing of it is stale."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellarer.domain.snapshot import RestorePoint
from cellarer.flows.backup import back_up
from cellarer.ports import Stream
from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster
from cellarer.sources.postgres_base import Way
from cellarer.vault.reader import SnapshotReader
from sources.base_servers import (
    WAYS,
    ask,
    captured,
    facts,
    run,
    server,
    source,
)
from stand_ins import Founded, found
from targets.recorded_points import Listener

__all__ = ["server"]

# --------------------------------------------------------------------- a point that starts a server


def restored(found: dict[str, tuple[Stream, bytes | None]], directory: Path) -> None:
    """What a restore does, in short: files where they were, WAL in pg_wal."""
    for path in facts(found).directories:
        if path.startswith("data/"):
            (directory / path.removeprefix("data/")).mkdir(parents=True, exist_ok=True, mode=0o700)
    for space in facts(found).tablespaces:
        elsewhere = directory.parent / f"space{space.oid}"
        elsewhere.mkdir(mode=0o700)
        (directory / "pg_tblspc" / str(space.oid)).symlink_to(elsewhere)
    for path, (_, content) in found.items():
        name = path.removeprefix("data/")
        if path.startswith("wal/"):
            name = f"pg_wal/{path.removeprefix('wal/')}"
        elif path.startswith("tablespaces/"):
            name = f"pg_tblspc/{path.removeprefix('tablespaces/')}"
        if path not in ("backup.json", "tablespace_map"):
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.write_bytes(content or b"")


def amcheck(cluster: Cluster) -> None:
    program = cluster.installation.program("pg_amcheck")
    where = ["-h", str(cluster.socket_directory), "-p", str(cluster.port), "-U", "postgres"]
    command: list[str | Path] = [program, "--install-missing", *where, "postgres"]
    answer = service_account().run(command, cluster.directory)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("way", WAYS)
def test_a_server_recovers_from_the_files(
    server: Cluster, tmp_path: Path, way: Way, writing: Callable[[Cluster], None]
) -> None:
    writing(server)
    found = captured(source(server, tmp_path, way))
    directory = tmp_path / "again"
    directory.mkdir(mode=0o700)
    again = Cluster(server.installation, directory, service_account(), "postgres")
    again.data_directory.mkdir(mode=0o700)
    restored(found, again.data_directory)
    again.socket_directory.mkdir(mode=0o700)
    with (again.data_directory / "postgresql.auto.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{again.socket_directory}'\n")
    account = service_account()
    for place in (directory, *directory.rglob("*")):
        account.own(place)
        if place.is_dir():
            place.chmod(0o700)
    try:
        again.start()
        assert int(ask(again, "SELECT count(*) FROM rows")) >= 40000
        assert ask(again, "SELECT count(*) FROM moved") == "40000"
        if ask(again, "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'") == "1":
            amcheck(again)
    finally:
        again.remove()


@pytest.fixture
def writing() -> Iterator[Callable[[Cluster], None]]:
    """Keeps a server busy until the test is over."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(cluster: Cluster) -> None:
        program = cluster.installation.program("pgbench")
        script = cluster.directory / "script.sql"
        script.write_text(
            "INSERT INTO rows VALUES (40001, 'new'); UPDATE rows SET m = 'x' WHERE n = 5;\n"
        )
        started.append(
            subprocess.Popen(
                [program, "-n", "-c", "2", "-T", "60", "-f", script, cluster.dsn("postgres")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ,
            )
        )

    yield begin
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


# ----------------------------------------------------------------- what was left unread is the same


def sums(scene: Founded, point: str) -> dict[str, str]:
    """The sum of each file of a point, all of it read; but for what every backup has of its own."""
    vault = scene.open()
    commit = next(commit for commit in vault.commits() if commit.session == point)
    reader = SnapshotReader(vault, commit)
    for entry in reader.entries():
        for _ in reader.read(entry.path):
            pass
    return {e.path: e.sum for e in reader.entries() if e.path.startswith(("data/", "tablespaces/"))}


def test_what_is_left_unread_is_what_reading_it_would_give(
    server: Cluster, tmp_path: Path, writing: Callable[[Cluster], None]
) -> None:
    """Backups under load, then two of the server at rest: one by memory, one by reading all."""
    scene = found()

    def backed_up(*, full_read: bool = False) -> RestorePoint:
        each = source(server, tmp_path, full_read=full_read)
        return back_up(scene.open(), each, Listener(), scene.now)

    writing(server)
    for _ in range(4):
        backed_up()
        run(server, "UPDATE moved SET m = 'again' WHERE n % 100 = 1", "VACUUM moved")
    stop_writing(server)
    run(server, "CHECKPOINT")
    by_memory, by_reading = backed_up(), backed_up(full_read=True)
    assert by_memory.added_bytes < by_reading.read_bytes / 4
    remembered_sums, read_sums = sums(scene, by_memory.id), sums(scene, by_reading.id)
    del remembered_sums["data/global/pg_control"], read_sums["data/global/pg_control"]
    assert remembered_sums == read_sums


def stop_writing(cluster: Cluster) -> None:
    """End every session but our own, and wait until they are gone."""
    others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
    while (
        ask(
            cluster, f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}"
        )
        != "0"
    ):
        pass
