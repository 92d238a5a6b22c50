"""Proofs of base backups: sound ones are proven, and each kind of damage fails its own check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellarer.domain.assertion import Assertion
from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.domain.snapshot import Check
from cellarer.errors import DamagedData
from cellarer.ports import PointReader
from cellarer.postgres.basebackup import BackupFacts
from cellarer.postgres.cluster import Cluster
from cellarer.targets.base_sandbox import BaseProver
from cellarer.targets.recovery import Course
from targets.base_points import FilePoint, Primary, base_point, primary
from targets.recorded_points import Listener

PAGE = 8192


@pytest.fixture
def source(cluster: Cluster, tmp_path: Path) -> Iterator[Primary]:
    """A server of each version in turn with a foreign key and an index."""
    with primary(cluster.installation, tmp_path) as made:
        made.run(
            "CREATE TABLE cellars (id integer PRIMARY KEY)",
            "INSERT INTO cellars SELECT generate_series(1, 100)",
            "CREATE TABLE wines (id integer PRIMARY KEY, cellar integer REFERENCES cellars)",
            "INSERT INTO wines SELECT n, n % 100 + 1 FROM generate_series(1, 20000) n",
        )
        yield made


def proven(
    point: FilePoint, source: Primary, tmp_path: Path, *assertions: Assertion
) -> dict[str, Check]:
    def course(_reader: PointReader, facts: BackupFacts) -> Course:
        return Course(RecoveryTarget("immediate"), str(facts.timeline), source.read, "")

    checks = BaseProver(assertions, tmp_path / "boxes", 2, course).prove(point, Listener()).checks
    assert not list((tmp_path / "boxes").glob("sandbox-*"))
    return {check.name: check for check in checks}


def has_checksums(source: Primary) -> list[str]:
    return ["checksums"] if source.ask("SHOW data_checksums") == "on" else []


def has_amcheck(source: Primary) -> bool:
    offered = "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"
    return source.ask(offered) == 1


def test_a_sound_cluster_is_proven(source: Primary, tmp_path: Path) -> None:
    point = base_point(source, tmp_path / "base")
    claimed = Assertion("all wines", "SELECT count(*) FROM wines", 20000, "postgres")
    checks = proven(point, source, tmp_path, claimed)
    assert all(check.passed for check in checks.values())
    assert list(checks) == [
        *("restore", "pages", *has_checksums(source), "amcheck postgres"),
        *("foreign key postgres.public.wines.wines_cellar_fkey", "assertion all wines"),
    ]
    assert ("sound" in checks["amcheck postgres"].found) == has_amcheck(source)


def test_a_claim_that_does_not_hold_fails(source: Primary, tmp_path: Path) -> None:
    point = base_point(source, tmp_path / "base")
    claimed = Assertion("one wine", "SELECT count(*) FROM wines", 1, "postgres")
    checks = proven(point, source, tmp_path, claimed)
    assert [name for name, check in checks.items() if not check.passed] == ["assertion one wine"]


def test_pages_that_were_damaged_when_they_were_read_fail(source: Primary, tmp_path: Path) -> None:
    point = base_point(source, tmp_path / "base")
    file = point.files["backup.json"][1]
    values = json.loads(file.read_text())
    values["damaged_pages"] = [
        {"path": "data/base/5/1", "database": "postgres", "relation": "wines", "block": 7}
    ]
    file.write_text(json.dumps(values))
    checks = proven(point, source, tmp_path)
    assert [name for name, check in checks.items() if not check.passed] == ["pages"]
    assert "block 7 of wines" in checks["pages"].found


def test_an_index_that_lacks_rows_fails(source: Primary, tmp_path: Path) -> None:
    if not has_amcheck(source):
        assert source.cluster.installation.major == 18  # its wheel comes without extensions
        return
    path = "data/" + str(source.ask("SELECT pg_relation_filepath('wines_pkey')"))
    source.run("CHECKPOINT")
    point = base_point(source, tmp_path / "base")
    file = point.files[path][1]
    copy = tmp_path / "index"
    shutil.copy(file, copy)
    with copy.open("r+b") as stream:
        stream.seek(3 * PAGE)
        page = stream.read(PAGE)
        stream.seek(5 * PAGE)
        stream.write(page)  # a leaf twice, another one gone
    point.files[path] = ("relation", copy)
    checks = proven(point, source, tmp_path)
    assert not checks["amcheck postgres"].passed
    assert "wines_pkey" in checks["amcheck postgres"].found


def test_a_cluster_that_does_not_recover_fails_its_restore(source: Primary, tmp_path: Path) -> None:
    point = base_point(source, tmp_path / "base")
    for path in [path for path in point.files if path.startswith("wal/")]:
        del point.files[path]
    point_alone = FilePoint(point.files)
    checks = proven(point_alone, Primary(source.cluster, tmp_path / "nowhere"), tmp_path)
    assert list(checks) == ["restore"]
    assert not checks["restore"].passed


def test_a_point_that_does_not_read_is_no_failed_check(source: Primary, tmp_path: Path) -> None:
    point = base_point(source, tmp_path / "base")
    point.damaged.add(next(path for path in point.files if path.startswith("data/base/")))
    with pytest.raises(DamagedData):
        proven(point, source, tmp_path)
