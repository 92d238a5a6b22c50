"""What `points`, `doctor`, `status`, `retain` and `scrub` say of WAL, on a real directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellarer import bootstrap
from cellarer.cli.main import run
from cellarer.config import load
from cellarer.domain.snapshot import WalRange
from cellarer.flows.points import wal_note
from cellarer.ports import Stream
from cellarer.vault.writer import SnapshotWriter
from wal_files import SEGMENT_BYTES, SYSTEM, segment

Cli = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A vault on two directories, with a base backup and WAL in which one segment is missing."""
    config = tmp_path / "cellarer.toml"
    made = ["--replica", f"a={tmp_path / 'a'}", "--replica", f"b={tmp_path / 'b'}"]
    assert run(["--config", str(config), "init", *made]) == 0
    base_backup(tmp_path, 2)
    store(tmp_path, 1, 2, 3, 5)
    return tmp_path


def store(place: Path, *numbers: int) -> None:
    """Put segments as the host does that backs up."""
    vault = bootstrap.open_vault(load(place / "cellarer.toml"))
    writer = bootstrap.open_log_writer(vault, SYSTEM)
    for number in numbers:
        assert not writer.put(*segment(number)).behind


def base_backup(place: Path, number: int) -> str:
    """A point that needs WAL from a segment on."""
    vault = bootstrap.open_vault(load(place / "cellarer.toml"))
    session = SnapshotWriter(vault, "cluster", "postgres_base", bootstrap.now)
    session.add(Stream("data/base/1/1", "relation", iter([b"page"])))
    start = number * SEGMENT_BYTES + 40
    return session.commit(wal_note(WalRange(SYSTEM, 1, start, start + 500))).session


def ids(found: list[dict[str, Any]]) -> set[str]:
    """Of findings about WAL."""
    return {finding["id"] for finding in found if finding["subject"].startswith("wal.")}


def test_a_gap_is_told_by_everyone_until_it_is_closed(place: Path, cellarer: Cli) -> None:
    _, document = cellarer("points")
    (window,) = document["windows"]
    assert (window["source"], window["system"], window["timeline"]) == ("cluster", SYSTEM, 1)
    assert window["from"] < window["to"]
    assert (window["from_lsn"], window["to_lsn"]) == ("0/00100000", "0/00600000")
    assert [gap["first"] for gap in window["gaps"]] == [segment(4)[0]]
    code, doctor = cellarer("doctor")
    assert code == 3
    assert ids(doctor["findings"]) == {"wal-gap"}
    code, status = cellarer("status")
    assert code == 3
    assert any(segment(4)[0] in alarm["message"] for alarm in status["alarms"])
    # The server still has the segment in its pg_wal.
    store(place, 4)
    _, document = cellarer("points")
    assert document["windows"][0]["gaps"] == []
    assert ids(cellarer("doctor")[1]["findings"]) == set()


def test_a_new_base_backup_makes_the_gap_a_thing_of_the_past(place: Path, cellarer: Cli) -> None:
    base_backup(place, 5)
    assert ids(cellarer("doctor")[1]["findings"]) == {"wal-gap-passed"}
    _, status = cellarer("status")
    assert not any(segment(4)[0] in alarm["message"] for alarm in status["alarms"])


def test_retain_shows_what_goes_and_removes_it(place: Path, cellarer: Cli) -> None:
    _, planned = cellarer("retain", "--dry-run")
    assert [each["before"] for each in planned["wal"]] == ["0/00200028"]
    assert planned["wal_removal"]["a"]["objects"] == 1
    assert list((place / "a" / "wal").rglob(segment(1)[0]))
    _, done = cellarer("retain")
    assert {n: each["removed_objects"] for n, each in done["wal_removal"].items()} == {
        "a": 1,
        "b": 1,
    }
    assert not list((place / "a" / "wal").rglob(segment(1)[0]))
    assert cellarer("scrub")[1]["missing"] == []


def test_wal_that_is_lost_is_missed_and_brought_back(place: Path, cellarer: Cli) -> None:
    shutil.rmtree(place / "b" / "wal")
    code, status = cellarer("status")
    assert code == 3
    replicas = {each["name"]: each["behind_wal"] for each in status["replicas"]}
    assert replicas == {"a": 0, "b": 4}
    code, scrubbed = cellarer("scrub", "--sample", "0")
    assert (code, scrubbed["missing"], scrubbed["replicas"]["b"]["owed"]) == (0, [], 4)
    assert cellarer("sync")[0] == 0
    assert cellarer("scrub")[0] == 0
    assert cellarer("status")[1]["replicas"][1]["behind_wal"] == 0
