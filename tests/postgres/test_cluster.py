"""Private clusters: nobody else gets in, crashes lose nothing, nothing stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cellarer.errors import TargetFailed
from cellarer.postgres.binaries import Installation
from cellarer.postgres.cluster import Cluster, sandbox_cluster, sweep_sandboxes
from cellarer.postgres.processes import server_pid

ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root hands the server to another account")

HOLDER = """
import sys
from pathlib import Path
from cellarer.postgres.binaries import Installation
from cellarer.postgres.cluster import sandbox_cluster
installation = Installation(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
with sandbox_cluster(installation, Path(sys.argv[4])) as cluster:
    print(cluster.dsn("postgres"), cluster.directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def installation(cluster: Cluster) -> Installation:
    """Both versions in turn, runnable by the account of the server."""
    return cluster.installation


@contextmanager
def _created(installation: Installation, directory: Path, **settings: str) -> Iterator[Cluster]:
    cluster = Cluster.create(installation, directory, settings={"fsync": "off", **settings})
    try:
        yield cluster
    finally:
        cluster.remove()


@contextmanager
def _holder(installation: Installation, parent: Path) -> Iterator[tuple[int, str, Path]]:
    """Another process that holds a sandbox: its pid, the sandbox's dsn and directory."""
    installed = (str(installation.bin_directory), installation.version, str(installation.major))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *installed, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            dsn, directory = process.stdout.readline().split()
            yield process.pid, dsn, Path(directory)
        finally:
            process.kill()
            process.wait()


def _one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_a_cluster_from_creation_to_removal(installation: Installation, tmp_path: Path) -> None:
    directory = tmp_path / "new" / "one"
    cluster = Cluster.create(installation, directory, superuser="head waiter")
    try:
        assert cluster.pid is None
        cluster.start()
        assert _one(cluster.dsn("postgres"), "SELECT pg_backend_pid()") != cluster.pid
        assert _one(cluster.dsn("postgres"), "SELECT current_user") == "head waiter"
        version = _one(cluster.dsn("postgres"), "SELECT current_setting('server_version_num')")
        assert int(str(version)) // 10000 == installation.major
        assert (cluster.data_directory / "postmaster.pid").read_text().split()[0] == str(
            cluster.pid
        )
        cluster.stop()
        assert cluster.pid is None
        cluster.stop()
        cluster.start()
    finally:
        cluster.remove()
    assert cluster.pid is None
    assert list((tmp_path / "new").iterdir()) == []


def test_names_that_need_quoting_survive_in_the_dsn(cluster: Cluster) -> None:
    name = "o/d d?&é%"
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            assert _one(cluster.dsn(name), "SELECT current_database()") == name
        finally:
            connection.execute(f'DROP DATABASE "{name}"')


def test_only_the_owner_enters(cluster: Cluster) -> None:
    mode = stat.S_IMODE(cluster.socket_directory.stat().st_mode)
    assert mode == 0o700
    assert stat.S_IMODE(cluster.directory.stat().st_mode) == 0o700
    assert _one(cluster.dsn("postgres"), "SHOW listen_addresses") == ""
    assert _one(cluster.dsn("postgres"), "SHOW unix_socket_permissions") == "0700"


def test_over_tcp_a_password_is_required(installation: Installation, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"listen_addresses": "127.0.0.1", "port": str(port)}
    with _created(installation, tmp_path / "tcp", **settings) as cluster:
        cluster.start()
        assert cluster.port == port
        assert _one(cluster.dsn("postgres"), "SELECT 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres")


def test_settings_reach_the_server_literally(installation: Installation, tmp_path: Path) -> None:
    value = r"it's \ a = 'test' # of it"
    with _created(installation, tmp_path / "one", **{"cellar.motto": value}) as cluster:
        cluster.start()
        assert _one(cluster.dsn("postgres"), "SELECT current_setting('cellar.motto')") == value


def test_variables_of_the_environment_do_not_steer_it(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PG_COLOR": "always", "PGPORT": "1", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TargetFailed) as caught:
        Cluster.create(installation, tmp_path / "one", locale="xx_XX")
    assert "invalid locale" in caught.value.detail
    assert "\x1b" not in caught.value.detail
    with _created(installation, tmp_path / "one") as cluster:
        cluster.start()
        assert _one(cluster.dsn("postgres"), "SHOW port") == "5432"


def test_what_was_committed_survives_a_kill(installation: Installation, tmp_path: Path) -> None:
    with _created(installation, tmp_path / "one") as cluster:
        cluster.start()
        with psycopg.connect(cluster.dsn("postgres")) as connection:
            connection.execute("CREATE TABLE wines AS SELECT 42 AS id")
            connection.commit()
            connection.execute("INSERT INTO wines VALUES (43)")
            cluster.kill()
            assert cluster.pid is None
            with pytest.raises(psycopg.OperationalError):
                connection.commit()
        cluster.kill()
        cluster.start()
        assert _one(cluster.dsn("postgres"), "SELECT array_agg(id) FROM wines") == [42]


def test_a_kill_ends_busy_backends_too(installation: Installation, tmp_path: Path) -> None:
    with _created(installation, tmp_path / "one") as cluster:
        cluster.start()
        dsn = cluster.dsn("postgres")
        with psycopg.connect(dsn) as connection:
            backend = connection.pgconn.backend_pid
            connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 30000000)")
            busy = f"SELECT state = 'active' FROM pg_stat_activity WHERE pid = {backend}"
            while not _one(dsn, busy):
                pass
            cluster.kill()
            result = connection.pgconn.get_result()
            assert result is None or result.status == psycopg.pq.ExecStatus.FATAL_ERROR


def test_a_long_path_gets_a_socket_elsewhere(installation: Installation, tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 20) / "one"
    Cluster.create(installation, directory)
    shutil.rmtree(directory)  # by hand, which leaves the socket's directory behind
    with _created(installation, directory) as cluster:
        assert len(os.fsencode(cluster.socket_directory)) < 100 - len("/.s.PGSQL.65535")
        assert stat.S_IMODE(cluster.socket_directory.stat().st_mode) == 0o700
        cluster.start()
        assert _one(cluster.dsn("postgres"), "SELECT 1") == 1
    assert not cluster.socket_directory.exists()


@only_root
def test_programs_that_the_account_cannot_reach_are_copied(
    postgres18: Cluster, tmp_path: Path
) -> None:
    cluster = postgres18
    prefix = cluster.installation.bin_directory.parent
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if not libraries.is_dir():
        pytest.skip("the system's own programs cannot lie in a closed directory")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(prefix, closed / prefix.parent.name / prefix.name, symlinks=True)
    shutil.copytree(libraries, closed / libraries.name)
    for path in closed.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    hidden = Installation(
        closed / prefix.parent.name / prefix.name / "bin",
        cluster.installation.version,
        cluster.installation.major,
    )
    with sandbox_cluster(hidden, tmp_path / "parent") as copied:
        assert copied.installation.bin_directory.is_relative_to(copied.directory)
        assert _one(copied.dsn("postgres"), "SELECT 1") == 1
    assert list((tmp_path / "parent").iterdir()) == []


@only_root
def test_a_directory_that_the_account_cannot_enter_is_refused(
    installation: Installation, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(TargetFailed) as caught:
        Cluster.create(installation, closed / "one")
    assert "parents that user may enter" in caught.value.hint
    assert list(closed.iterdir()) == []


def test_a_directory_with_content_is_refused(installation: Installation, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    with pytest.raises(TargetFailed, match="not empty"):
        Cluster.create(installation, tmp_path)
    assert precious.read_text() == "keep me"


def test_an_unknown_locale_is_said(installation: Installation, tmp_path: Path) -> None:
    with pytest.raises(TargetFailed) as caught:
        Cluster.create(installation, tmp_path / "one", locale="xx_XX.UTF-8")
    assert "locale" in caught.value.detail
    assert "locale -a" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_shows_the_log(installation: Installation, tmp_path: Path) -> None:
    with (
        _created(installation, tmp_path / "one", shared_buffers="plenty") as cluster,
        pytest.raises(TargetFailed) as caught,
    ):
        cluster.start()
    assert 'invalid value for parameter "shared_buffers"' in caught.value.detail


@only_root
def test_a_full_disk_is_said(installation: Installation) -> None:
    disk = Path(tempfile.mkdtemp(prefix="cel-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0755", "none", disk],
        capture_output=True,
        check=False,
    )
    try:
        if mounted.returncode != 0:
            pytest.skip("this machine does not let its root mount a small disk")
        with (
            pytest.raises(TargetFailed) as caught,
            sandbox_cluster(installation, disk / "parent"),
        ):
            raise AssertionError("8 MB cannot hold a cluster")
        assert "No space left" in caught.value.detail
        assert "Free some space" in caught.value.hint
        assert list((disk / "parent").iterdir()) == []
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", disk], check=True)
        disk.rmdir()


def test_a_sandbox_is_removed_even_after_an_exception(
    installation: Installation, tmp_path: Path
) -> None:
    with (
        pytest.raises(psycopg.errors.DivisionByZero),
        sandbox_cluster(installation, tmp_path) as cluster,
    ):
        _one(cluster.dsn("postgres"), "SELECT 1 / 0")
    assert cluster.pid is None
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_trades_durability_for_speed(cluster: Cluster) -> None:
    for name, value in {"fsync": "off", "wal_level": "minimal", "autovacuum": "off"}.items():
        assert _one(cluster.dsn("postgres"), f"SHOW {name}") == value


def test_sandboxes_at_once_leave_each_other_alone(
    installation: Installation, tmp_path: Path
) -> None:
    with _holder(installation, tmp_path) as (_, theirs, _):
        with sandbox_cluster(installation, tmp_path) as ours:
            sweep_sandboxes(tmp_path)
            assert _one(theirs, "SELECT 1") == 1
            assert _one(ours.dsn("postgres"), "SELECT 2") == 2
        assert _one(theirs, "SELECT 3") == 3


def test_what_a_killed_process_left_is_swept(installation: Installation, tmp_path: Path) -> None:
    with _holder(installation, tmp_path) as (pid, dsn, directory):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert _one(dsn, "SELECT 1") == 1, "the orphan serves on"
    # A second leftover: killed before it had made anything but its lock.
    (tmp_path / "sandbox-0.lock").touch()
    with sandbox_cluster(installation, tmp_path) as cluster:
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            cluster.directory.name,
            f"{cluster.directory.name}.lock",
        ]
        assert server_pid(directory / "data") is None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_ends_the_process_removes_its_sandbox(
    installation: Installation, tmp_path: Path, number: signal.Signals
) -> None:
    with _holder(installation, tmp_path) as (pid, dsn, directory):
        os.kill(pid, number)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert list(tmp_path.iterdir()) == []
        assert server_pid(directory / "data") is None
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)
