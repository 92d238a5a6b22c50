"""`retain`, `points hold` and `points release` as people and scripts run them, on real files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bare_machine import run_alone
from cellarer.cli.main import run
from cellarer.ports import Stream
from cellarer.stores.local import LocalStore
from cellarer.vault import packer, placing, repack
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


def test_a_hold_is_shown_with_its_reason_wherever_the_point_is_listed(
    vault: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(vault)]
    assert run([*command, "points", "hold", "latest", "--reason", "before the\nmigration"]) == 0
    capsys.readouterr()
    for listing in (["points"], ["retain", "--dry-run"]):
        assert run([*command, *listing]) == 0
        assert "on hold: before the migration" in capsys.readouterr().out
    assert run([*command, "points", "--at", "2020-01-01T00:00:00Z"]) == 0
    assert "no such restore points" in capsys.readouterr().out


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


def stored(vault: Path) -> int:
    return sum(path.stat().st_size for path in (vault.parent / "vault" / "packs").rglob("*"))


def test_room_is_won_back_and_every_point_is_there(
    cellarer: Cellarer, vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many backups that share a little with the next, on real files; read by both readers."""
    for module in (packer, repack):
        monkeypatch.setattr(module, "PACK_BYTES", 64 << 10)
    monkeypatch.setattr(placing, "RECORD_BYTES", 8 << 10)
    key = WriteKey.from_text((tmp_path / "write.key").read_text(encoding="utf-8"))
    replicas = ReplicaSet([Replica("here", LocalStore(tmp_path / "vault"))], 1)
    contents: dict[str, bytes] = {}
    base = noise(77, 400_000)
    for number in range(8):
        moment = datetime.now(UTC) - timedelta(hours=10 - number)
        snapshot = SnapshotWriter(Vault.open(replicas, key, None), "db", "test", lambda m=moment: m)  # type: ignore[misc]
        cut = b"".join(base[at : at + 40_000 - number * 4_000] for at in range(0, 400_000, 40_000))
        snapshot.add(Stream("t", "test", iter([cut]), len(cut)))
        contents[snapshot.commit().session] = cut
    text = vault.read_text(encoding="utf-8").replace("daily = 2", "last = 2")
    vault.write_text(text.replace("last = 2", 'last = 2\nrepack = "0B"'), encoding="utf-8")
    off = cellarer.json("retain")
    assert off["repack"] == []
    assert "repack is 0" in off["repack_off"]
    before = stored(vault)
    vault.write_text(text, encoding="utf-8")
    planned = cellarer.json("retain", "--dry-run")
    assert {"pack", "live_bytes", "dead_bytes", "reason"} == set(planned["repack"][0])
    assert planned["repacked_bytes"] == 0
    assert "would be repacked" in cellarer("retain", "--dry-run")
    assert stored(vault) == before
    done = cellarer.json("retain")
    assert done["repack"] == planned["repack"]
    assert done["repacked_bytes"] > 0
    assert done["repack_problem"] is None
    dead = sum(each["dead_bytes"] for each in done["repack"])
    assert dead > before * 0.2
    assert stored(vault) < before - dead * 0.9
    points = [point["id"] for point in cellarer.json("points")["points"]]
    assert points == [*contents][:-3:-1]
    for point in points:
        out = tmp_path / f"out-{point}"
        cellarer("restore", "db", "--point", point, "--to", str(out))
        assert (out / "t").read_bytes() == contents[point]
        rescued = tmp_path / f"rescued-{point}"
        script = tmp_path / "vault" / "rescue.py"
        given = [str(tmp_path / "vault"), str(tmp_path / "identity.age"), point, str(rescued)]
        assert run_alone(tmp_path, script, given).returncode == 0
        assert (rescued / "t").read_bytes() == contents[point]
    cellarer("scrub")
    assert cellarer.json("retain", "--dry-run")["repack"] == []
