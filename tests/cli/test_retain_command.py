"""`retain`, `points hold` and `points release` as people and scripts run them, on real files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cellarer.cli.main import run
from cellarer.ports import Stream
from cellarer.stores.local import LocalStore
from cellarer.vault.keys import WriteKey
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import noise


@pytest.fixture
def vault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A config with its vault, which holds a point of each of four days."""
    config = tmp_path / "cellarer.toml"
    assert run(["--config", str(config), "init", "--replica", f"here={tmp_path / 'vault'}"]) == 0
    with config.open("a", encoding="utf-8") as file:
        file.write('\n[retention]\ndaily = 2\n\n[schedule]\ntimezone = "Europe/Berlin"\n')
    key = WriteKey.from_text((tmp_path / "write.key").read_text(encoding="utf-8"))
    replicas = ReplicaSet([Replica("here", LocalStore(tmp_path / "vault"))], 1)
    for days in (4, 3, 2, 1):
        moment = datetime.now(UTC) - timedelta(days=days)
        opened = Vault.open(replicas, key, None)
        writer = SnapshotWriter(opened, "db", "test", partial(_always, moment))
        writer.add(Stream("t", "test", iter([noise(days, 20_000)]), 20_000))
        writer.commit()
    capsys.readouterr()
    return config


def _always(moment: datetime) -> datetime:
    return moment


class Cellarer:
    """Runs commands and reads what they print."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._config, self._capsys = config, capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        assert run(["--config", str(self._config), *arguments]) == code
        return self._capsys.readouterr().out

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def cellarer(vault: Path, capsys: pytest.CaptureFixture[str]) -> Cellarer:
    return Cellarer(vault, capsys)


def test_from_the_plan_to_the_deleting(cellarer: Cellarer) -> None:
    points = [point["id"] for point in cellarer.json("points")["points"]]
    planned = cellarer.json("retain", "--dry-run")
    assert [kept["point"] for kept in planned["keep"]] == points[:2]
    assert [gone["point"] for gone in planned["remove"]] == points[2:]
    assert planned["condemned_bytes"] > 40_000
    assert planned["swept_bytes"] == 0
    assert len(cellarer.json("points")["points"]) == 4

    assert cellarer.json("points", "hold", points[3][-8:], "--reason", "case 17") == {
        "point": points[3],
        "reason": "case 17",
    }
    listed = {point["id"]: point for point in cellarer.json("points", "db")["points"]}
    assert listed[points[3]]["kept_for"] == ["on hold: case 17"]
    assert listed[points[2]]["kept_for"] == []
    assert listed[points[0]]["expires"] is not None

    done = cellarer.json("retain")
    assert [gone["point"] for gone in done["remove"]] == [points[2]]
    assert done["swept_bytes"] == done["condemned_bytes"] > 20_000
    assert done["replicas"]["here"]["problem"] is None
    left = [point["id"] for point in cellarer.json("points")["points"]]
    assert left == [points[0], points[1], points[3]]

    assert points[3] in cellarer("points", "release", points[3])
    text = cellarer("retain")
    assert f"remove  {points[3]}" in text
    assert "deleted" in text
    assert len(cellarer.json("points")["points"]) == 2


def test_a_point_that_is_not_there_cannot_be_held(cellarer: Cellarer) -> None:
    error = cellarer.json("points", "hold", "ffffffff", code=2)["error"]
    assert "is no restore point" in error["message"]


def test_a_host_without_the_right_is_told_which_key_it_needs(
    cellarer: Cellarer, vault: Path
) -> None:
    text = vault.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("identity", "collect_key"))]
    vault.write_text("\n".join(lines), encoding="utf-8")
    error = cellarer.json("retain", code=5)["error"]
    assert "vault.collect_key" in error["hint"]
    assert len(cellarer.json("retain", "--dry-run")["remove"]) == 2
