"""Fixtures that many tests share: short temporary paths and real servers of two versions."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from cellarer.errors import ToolMissing
from cellarer.postgres.binaries import Installation, server_for
from cellarer.postgres.cluster import Cluster, sandbox_cluster

# A shell without job control lets what it runs in the background ignore interrupts, and so would
# the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Instead of pytest's own: short enough for sockets, and any user may pass through it.

    When the tests run as root, the servers they start run as an unprivileged user, who could not
    enter a directory of mode 0700 that belongs to root.
    """
    directory = Path(tempfile.mkdtemp(prefix="cel-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What this host remembers of vaults is not mixed with what the tests make it remember."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def _installation(major: int) -> Installation:
    missing = f"no server of PostgreSQL {major} on this machine"
    try:
        installation = server_for(major)
    except ToolMissing as error:
        missing = f"{error.message}. {error.hint}"
    else:
        if installation.major == major:
            return installation
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def _running(major: int) -> Iterator[Cluster]:
    installation = _installation(major)
    # One parent for all runs of a user: what a killed run leaves, the next one sweeps.
    parent = Path("/tmp", f"cellarer-tests-{os.geteuid()}")
    with sandbox_cluster(installation, parent) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres15() -> Iterator[Cluster]:
    """A running cluster of PostgreSQL 15, shared by the tests of one process."""
    yield from _running(15)


@pytest.fixture(scope="session")
def postgres18() -> Iterator[Cluster]:
    """A running cluster of PostgreSQL 18, shared by the tests of one process."""
    yield from _running(18)


@pytest.fixture(params=[15, 18], ids=["pg15", "pg18"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The shared cluster of each version in turn."""
    found: Cluster = request.getfixturevalue(f"postgres{request.param}")
    return found


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The dsn of a new, empty database, in a cluster of each version in turn."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        )
    yield cluster.dsn(name)
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes real file systems of so many megabytes, which are gone afterwards."""
    mounted: list[Path] = []
    rights = [] if os.geteuid() == 0 else ["sudo", "-n"]

    def mount(megabytes: int) -> Path:
        directory = tmp_path / f"disk{len(mounted)}"
        directory.mkdir()
        options = f"size={megabytes}m,mode=0711,uid={os.geteuid()}"
        command = [*rights, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            missing = f"no file system may be mounted here: {answer.stderr.strip()}"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run([*rights, "umount", directory], check=True)
