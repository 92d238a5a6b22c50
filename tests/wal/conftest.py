"""Fixtures of tests of log: a vault of two directories, and servers that write log for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import server_copies
from cellarer.postgres.cluster import Cluster, sandbox_cluster
from wal_places import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.write_config()
    done = made.run("init")
    assert done.returncode == 0, done.stderr
    yield made
    made.end_agent()


SETTINGS = {
    "wal_level": "replica",
    "max_wal_senders": "6",
    "max_replication_slots": "4",
    "fsync": "off",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "wal_keep_size": "256MB",
}


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A server of its own of each version in turn, which writes log for others."""
    with sandbox_cluster(cluster.installation, tmp_path, settings=SETTINGS) as made:
        yield made


@pytest.fixture
def standby_of(tmp_path: Path) -> Iterator[Callable[[Cluster], Cluster]]:
    """Makes standbys of servers."""
    made: list[Cluster] = []

    def make(primary: Cluster) -> Cluster:
        standby = server_copies.standby_of(primary, tmp_path / f"standby{len(made)}")
        made.append(standby)
        standby.start()
        return standby

    yield make
    for standby in made:
        standby.remove()
