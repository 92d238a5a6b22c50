"""What a restore that was killed leaves in the clear is removed by the next, and only that."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellarer.postgres.cluster import Cluster
from cellarer.targets.directory import DirectoryTarget
from cellarer.targets.scratch import scratch_directory
from targets.asking import query, restore
from targets.recorded_points import Listener, MemoryPoint, capture

TESTS = Path(__file__).resolve().parents[1]
# Restores the pickled streams, stands still at the first block of rows, and says so.
RESTORER = """
import pickle, sys, threading
from pathlib import Path
from cellarer.bootstrap.sources import open_target
from targets.recorded_points import Listener, MemoryPoint
class Standing(MemoryPoint):
    def read(self, path):
        for block in super().read(path):
            yield block
            if path.endswith(sys.argv[3]):
                print("standing", flush=True)
                threading.Event().wait()
target = open_target(sys.argv[2])
target.prepare(True)
target.restore(Standing(pickle.loads(Path(sys.argv[1]).read_bytes())), (), Listener())
"""


@contextmanager
def standing_restore(point: MemoryPoint, target: str, at: str, files: Path) -> Iterator[None]:
    """A process in the middle of restoring the point; it is killed with SIGKILL at the end."""
    streams = files / "streams"
    streams.write_bytes(pickle.dumps(point.streams))
    paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": tempfile.gettempdir()}
    command = [sys.executable, "-c", RESTORER, str(streams), target, at]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"standing\n"
            yield
        finally:
            process.kill()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_the_schema_that_a_killed_restore_leaves(
    cluster: Cluster, make_database: Callable[..., str], goal: str, scratch: Path, tmp_path: Path
) -> None:
    point = capture(cluster, make_database(cluster))
    with standing_restore(point, cluster.dsn(goal), "/wines", tmp_path):
        (left,) = scratch.glob("*/toc.dump")
        with scratch_directory():
            assert left.exists(), "its owner is alive"
    assert left.exists()
    restore(cluster.dsn(goal), point)
    assert list(scratch.iterdir()) == []
    assert query(cluster, goal, "SELECT count(*) FROM wines") == [(500,)]


def test_the_unfinished_file_that_a_killed_restore_leaves(tmp_path: Path) -> None:
    out = tmp_path / "out"
    point = MemoryPoint({name: ("file", bytes(100_000)) for name in ("deep/a", "b")})
    for at in ("deep/a", "b"):
        with standing_restore(point, str(out), at, tmp_path):
            (left,) = out.rglob(".cellarer-*.partial")
            target = DirectoryTarget(out)
            target.prepare(overwrite=True)
            target.restore(point, (), Listener())
            assert left.exists(), "its writer is alive"
        assert left.exists()
        target.restore(point, (), Listener())
        assert not list(out.rglob(".cellarer-*"))
        assert (out / at).read_bytes() == bytes(100_000)
        for path in out.rglob("*"):
            if path.is_file():
                path.unlink()
