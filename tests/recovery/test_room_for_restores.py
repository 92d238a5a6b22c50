"""The target's disk is full: before anything is written, and in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cellarer.domain.recovery_target import recovery_target
from cellarer.errors import TargetFailed
from cellarer.postgres.cluster import Cluster
from cellarer.targets.pgdata import PgdataTarget
from cellarer.targets.recovery import Course
from recovery.life import Life, commanded
from targets.base_points import FilePoint, Primary, base_point, digests, primary, serving
from targets.recorded_points import Listener


def test_too_small_a_disk_is_refused_before_anything_is_written(
    life: Life, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(20)
    code, document = commanded(
        life.place, "restore", "cluster", "--to", f"pgdata:{disk}/data", *life.wishes
    )
    assert code == 1, document
    assert "not enough room" in document["error"]["message"]
    assert list(disk.iterdir()) == []


@dataclass
class FillingPoint(FilePoint):
    """A point during whose reading somebody else fills the disk."""

    disk: Path = Path()

    def read(self, path: str) -> Iterator[bytes]:
        if len(self.opened) == 200:
            with (self.disk / "filler").open("wb") as filler:
                try:
                    while filler.write(bytes(1 << 20)):
                        filler.flush()
                except OSError:
                    pass
        return super().read(path)


@pytest.fixture
def source(cluster: Cluster, tmp_path: Path) -> Iterator[Primary]:
    with primary(cluster.installation, tmp_path) as made:
        made.run("CREATE TABLE wines AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
        yield made


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_the_restore_goes_on_later(
    source: Primary, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk, whole = small_disk(400), base_point(source, tmp_path / "base")
    out = disk / "data"
    expected = digests(source.cluster.dsn("postgres"))

    def restore(point: FilePoint, *, delta: bool) -> None:
        course = Course(recovery_target(moment="immediate"), "1", source.read, "")
        target = PgdataTarget(out, course, {}, 2, delta=delta)
        target.prepare(overwrite=False)
        target.restore(point, (), Listener())

    with pytest.raises(TargetFailed, match="broke off") as caught:
        restore(FillingPoint(whole.files, disk=disk), delta=False)
    assert "No space left" in caught.value.detail
    assert "--delta" in caught.value.hint
    assert not (out / "global" / "pg_control").exists()
    (disk / "filler").unlink()
    restore(whole, delta=True)
    with serving(source.cluster.installation, out) as dsn:
        assert digests(dsn) == expected
