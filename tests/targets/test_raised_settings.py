"""A primary that was given more room after its base backup: a recovery goes on past that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.postgres.cluster import Cluster
from cellarer.targets.pgdata import PgdataTarget
from cellarer.targets.recovery import Course
from targets.base_points import base_point, digests, primary, serving
from targets.recorded_points import Listener


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cel-", dir="/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["latest", "lsn"])
def test_a_recovery_does_not_wait_where_hot_standby_is_not_possible(
    cluster: Cluster, directory: Path, kind: str
) -> None:
    """PostgreSQL pauses before it replays what was written with more room than the server has."""
    with primary(cluster.installation, directory, max_connections="60") as source:
        source.run("CREATE TABLE wines AS SELECT generate_series(1, 20000) AS n")
        point = base_point(source, directory / "base")
        source.run("INSERT INTO wines VALUES (0)", "SELECT pg_switch_wal()")
        for room in (120, 180):
            source.run(f"ALTER SYSTEM SET max_connections = {room}")
            source.cluster.stop()
            source.cluster.start()
            source.run(f"INSERT INTO wines VALUES ({-room})", "CHECKPOINT")
        expected = digests(source.cluster.dsn("postgres"))
        lsn = str(source.ask("SELECT pg_current_wal_lsn()"))
        source.run("SELECT pg_switch_wal()", "CREATE TABLE after (n integer)")
        last = source.archived()
        if kind == "latest":
            expected = digests(source.cluster.dsn("postgres"))
        read, installation = source.read, source.cluster.installation
    target = RecoveryTarget() if kind == "latest" else RecoveryTarget("lsn", lsn)
    course = Course(target, "1", read, "", last if kind == "latest" else None)
    goal = PgdataTarget(directory / "out", course, {}, 2)
    goal.prepare(overwrite=False)
    goal.restore(point, (), Listener())
    with serving(installation, directory / "out") as dsn:
        assert digests(dsn) == expected
