"""`cellarer scrub` on directories: real files that rot, exit codes, and what scripts read."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import unstyle

from cellarer import bootstrap
from cellarer.cli.main import run
from cellarer.cli.scrub import _text
from cellarer.config import load
from cellarer.flows.scrub import Damage, ReplicaScrub, Scrubbed
from cellarer.ports import Stream
from cellarer.vault.losses import Loss
from cellarer.vault.writer import SnapshotWriter

Cli = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a vault of two replicas that holds one point of several packs."""
    file = tmp_path / "cellarer.toml"
    replicas = [f"--replica={name}={tmp_path / name}" for name in ("one", "two")]
    assert run(["--config", str(file), "init", *replicas]) == 0
    writer = SnapshotWriter(bootstrap.open_vault(load(file)), "db", "test", bootstrap.now)
    data = random.Random(1).randbytes(18 << 20)
    writer.add(Stream("t", "test", iter([data]), len(data)))
    writer.commit()
    return tmp_path


def packs(place: Path, replica: str) -> list[Path]:
    """The packs of a replica, the largest first."""
    found = [path for path in (place / replica / "packs").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def rot(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("damage", [lambda p: rot(p, p.stat().st_size - 1), extend, Path.unlink])
def test_a_large_pack_that_rots_is_found_and_healed(
    place: Path, cellarer: Cli, damage: Callable[[Path], None]
) -> None:
    pack = packs(place, "one")[0]
    assert pack.stat().st_size > 16 << 20
    good = pack.read_bytes()
    code, document = cellarer("scrub")
    assert (code, document["damaged"], document["missing"]) == (0, [], [])
    assert document["bytes"] > 2 * (18 << 20)
    damage(pack)
    code, document = cellarer("scrub")
    assert code == 6
    found = (document["damaged"] + document["missing"])[0]
    assert len(document["damaged"] + document["missing"]) == 1
    assert (found["replica"], found["object"]) == ("one", str(pack.relative_to(place / "one")))
    code, document = cellarer("status")
    assert any("damaged on " in alarm["message"] for alarm in document["alarms"])
    code, document = cellarer("scrub", "--repair")
    assert (code, [each["object"] for each in document["repaired"]]) == (0, [found["object"]])
    assert pack.read_bytes() == good
    assert cellarer("scrub", "--deep")[1]["raised"]


def test_a_budget_is_kept_and_the_next_run_goes_on(place: Path, cellarer: Cli) -> None:
    _, document = cellarer("scrub", "--replica", "one", "--limit", "1KB")
    assert document["replicas"]["one"]["whole"] is False
    assert "two" not in document["replicas"]
    _, document = cellarer("scrub", "--replica", "one", "--within", "1h")
    assert document["replicas"]["one"] | {"objects": 0, "bytes": 0} == {
        "objects": 0, "bytes": 0, "round": 1, "whole": True, "owed": 0, "problem": "",
    }  # fmt: skip
    replicas = {each["name"]: each for each in cellarer("status")[1]["replicas"]}
    assert replicas["one"]["scrubbed"]
    assert replicas["two"]["scrubbed"] is None


def test_what_is_lost_everywhere_is_named(place: Path, cellarer: Cli) -> None:
    for name in ("one", "two"):
        rot(packs(place, name)[0], 5_000_000)
    code, document = cellarer("scrub", "--repair")
    assert code == 6
    assert [(loss["source"], loss["paths"]) for loss in document["lost"]] == [("db", ["t"])]
    (point,) = cellarer("points")[1]["points"]
    assert point["id"] == document["lost"][0]["point"]
    assert point["failed"]


def test_it_says_what_only_the_identity_can_tell_and_what_sync_brings() -> None:
    outcome = Scrubbed(
        [ReplicaScrub("one", 3, 100, 1, True, 2)],
        lost=[Loss("20260725T1200Z-1", "db", ("packs/1",))],
    )
    text = unstyle(_text(outcome, []))
    assert "in doubt  db 20260725T1200Z-1" in text
    assert "cellarer verify --point 20260725T1200Z-1" in text
    assert "one lacks 2 points, ledger entries or files of WAL: run `cellarer sync`" in text
    assert "lost  " not in text
    damaged = Scrubbed([ReplicaScrub("one")], [Damage("one", "packs/1", "it is not as written")])
    assert "hint: `cellarer scrub --repair`" in unstyle(_text(damaged, []))


def test_without_cellarer_the_guide_finds_the_same(place: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "scrub.md"
    line = next(line for line in guide.read_text().splitlines() if "sha256sum" in line)
    checked = subprocess.run(line, shell=True, cwd=place / "one", check=False, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    pack = packs(place, "one")[0]
    rot(pack, 100)
    checked = subprocess.run(line, shell=True, cwd=place / "one", check=False, capture_output=True)
    assert checked.returncode != 0
    assert pack.name.encode() in checked.stdout


@pytest.mark.parametrize(
    "arguments", [["--limit", "much"], ["--within", "soon"], ["--replica", "three"]]
)
def test_arguments_that_cannot_be_meant(cellarer: Cli, arguments: list[str]) -> None:
    code, document = cellarer("scrub", *arguments)
    assert (code, document["error"]["kind"]) == (2, "usage")
