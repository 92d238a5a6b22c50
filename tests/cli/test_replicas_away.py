"""Replicas whose disk is not mounted, or that were set back: that is taken for nothing new."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cellarer.cli.main import run
from cli.conftest import Cli, two_replicas


@pytest.fixture
def place(tmp_path: Path, database: str) -> Path:
    """A directory with a config of two replicas, not initialised yet."""
    vault = two_replicas(tmp_path, "write_quorum = 1\n")
    (tmp_path / "cellarer.toml").write_text(
        f'{vault}[sources.database]\nkind = "postgres_dump"\ndsn = "{database}"\n'
    )
    return tmp_path


def unmount(disk: Path) -> None:
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def second(place: Path, small_disk: Callable[[int], Path]) -> Path:
    """The second replica is a directory of a disk of its own."""
    disk = small_disk(20)
    config = place / "cellarer.toml"
    url = f"file://{disk}/vault"
    config.write_text(re.sub(r'url = "file://[^"]*/two"', f'url = "{url}"', config.read_text()))
    assert url in config.read_text()
    return disk


@pytest.fixture
def remounted(second: Path) -> Callable[[], None]:
    def mount() -> None:
        command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(second)]
        subprocess.run(command, check=True)

    return mount


def test_an_empty_mount_point_is_no_new_replica(
    cellarer: Cli, second: Path, remounted: Callable[[], None]
) -> None:
    assert cellarer("init")[0] == 0
    assert cellarer("backup")[0] == 0
    unmount(second)
    code, document = cellarer("sync")
    assert (code, document["replicas"]["two"]["copied_objects"]) == (4, 0)
    assert "not mounted" in document["replicas"]["two"]["problem"]
    assert cellarer("backup")[1]["points"][0]["replicas"]["two"] == "behind"
    assert list(second.iterdir()) == []
    # Another disk in its place is a new replica.
    remounted()
    code, document = cellarer("sync")
    assert (code, document["replicas"]["two"]["behind"]) == (0, False)
    assert (second / "vault" / "format.json").exists()


def test_a_replica_may_be_moved_off_its_disk(
    cellarer: Cli, second: Path, tmp_path: Path, remounted: Callable[[], None]
) -> None:
    assert cellarer("init")[0] == 0
    shutil.copytree(second / "vault", tmp_path / "kept")
    unmount(second)
    assert cellarer("backup")[1]["points"][0]["replicas"]["two"] == "behind"
    shutil.copytree(tmp_path / "kept", second / "vault")
    assert cellarer("sync")[1]["replicas"]["two"]["behind"] is False
    shutil.rmtree(second / "vault")
    assert cellarer("sync")[1]["replicas"]["two"]["behind"] is False
    remounted()


def test_a_backup_says_that_the_vault_was_set_back(
    cellarer: Cli, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cellarer("init")[0] == 0
    for name in ("one", "two"):
        shutil.copytree(place / name, tmp_path / "old" / name)
    assert cellarer("backup")[0] == 0
    for name in ("one", "two"):
        shutil.rmtree(place / name)
        shutil.copytree(tmp_path / "old" / name, place / name)
    capfd.readouterr()
    assert run(["--config", str(place / "cellarer.toml"), "backup"]) == 0
    assert "was rolled back: 1 restore points that this host saw are gone" in capfd.readouterr().err


def test_a_point_of_which_nobody_can_tell_is_damaged_and_not_unheard_of(
    cellarer: Cli, place: Path
) -> None:
    assert cellarer("init")[0] == 0
    lost = cellarer("backup")[1]["points"][0]["id"]
    assert cellarer("backup")[0] == 0
    for name in ("one", "two"):
        register = place / name / "snapshots" / lost
        register.chmod(0o600)
        register.write_bytes(b"{}")
    for command in (
        ("restore", "database", "--point", lost, "--to", f"{place}/out"),
        ("verify", "--point", lost.rpartition("-")[2]),
        ("show", lost),
        ("points", "hold", lost),
        ("points", "release", lost),
    ):
        code, document = cellarer(*command)
        assert (code, document["error"]["kind"]) == (6, "damaged"), command
        assert lost in document["error"]["message"]


def test_a_record_that_is_lost_for_good_can_be_given_up(cellarer: Cli, place: Path) -> None:
    """By what the guide to retention says."""
    assert cellarer("init")[0] == 0
    config = place / "cellarer.toml"
    keys = 'collect_key = { file = "collect.key" }\n'
    config.write_text(config.read_text().replace("[vault]\n", f"[vault]\n{keys}", 1))
    points = []
    for _ in range(3):
        points.append(cellarer("backup")[1]["points"][0]["id"])
        assert cellarer("verify")[0] == 0
    registers = [place / name / "snapshots" / points[1] for name in ("one", "two")]
    for register in registers:
        register.chmod(0o600)
        register.write_bytes(register.read_bytes().replace(b'"', b"'", 1))
    code, document = cellarer("scrub", "--repair")
    assert (code, [loss["point"] for loss in document["lost"]]) == (6, [points[1]])
    assert cellarer("retain")[1]["error"]["kind"] == "damaged"
    for register in registers:
        register.unlink()
    code, document = cellarer("scrub")
    assert (code, len(document["gone"])) == (6, 2)
    assert any(points[1] in each for each in document["gone"])
    assert "was verified and is gone" in cellarer("retain")[1]["error"]["detail"]
    assert cellarer("points", "release", points[1])[0] == 0
    (gone,) = cellarer("scrub")[1]["gone"]
    assert cellarer("points", "release", gone.rpartition(" ")[2])[0] == 0
    assert (cellarer("scrub")[0], cellarer("status")[1]["alarms"]) == (0, [])
    assert cellarer("retain")[0] == 0
    # Another one that goes is missed all the same.
    for name in ("one", "two"):
        (place / name / "snapshots" / points[2]).unlink()
    assert any(points[2] in alarm["message"] for alarm in cellarer("status")[1]["alarms"])
    assert "rolled back" in cellarer("retain")[1]["error"]["detail"]
    # Also the newest, which nothing names, and which this host saw.
    assert cellarer("points", "release", points[2])[0] == 0
    for each in cellarer("scrub")[1]["gone"]:
        assert cellarer("points", "release", each.rpartition(" ")[2])[0] == 0
    assert cellarer("points", "release", "0" * 16)[1]["error"]["kind"] == "usage"
    assert cellarer("retain")[0] == 0


def test_nothing_is_written_where_there_is_no_vault(cellarer: Cli, place: Path) -> None:
    assert cellarer("init")[0] == 0
    point = cellarer("backup")[1]["points"][0]["id"]
    (place / "two").rename(place / "elsewhere")
    assert cellarer("verify", "--level", "scrubbed")[0] == 0
    found = cellarer("doctor")[1]["findings"]
    assert ("store-absent", "vault.replicas.two") in [(f["id"], f["subject"]) for f in found]
    assert not (place / "two").exists()
    (place / "elsewhere").rename(place / "two")
    assert cellarer("sync")[0] == 0
    assert cellarer("points")[1]["points"][0]["id"] == point
    assert cellarer("status")[1]["replicas"][1]["behind_points"] == 0


def test_a_restore_tells_of_damage_that_it_read_around(
    cellarer: Cli, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cellarer("init")[0] == 0
    assert cellarer("backup")[0] == 0
    for pack in (place / "one" / "packs").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            pack.write_bytes(bytes(byte ^ 1 for byte in pack.read_bytes()))
    config = ["--config", str(place / "cellarer.toml")]
    capfd.readouterr()
    assert run([*config, "restore", "database", "--to", str(place / "out")]) == 0
    assert "damaged in the vault: packs/" in capfd.readouterr().err
    assert any("damaged on one" in alarm["message"] for alarm in cellarer("status")[1]["alarms"])


def test_what_somebody_left_in_the_ledger_is_no_loss_once_it_is_removed(
    cellarer: Cli, place: Path
) -> None:
    assert cellarer("init")[0] == 0
    assert cellarer("backup")[0] == 0
    junk = place / "one" / "ledger" / "x"
    junk.parent.mkdir(exist_ok=True)
    junk.write_text("x")
    assert cellarer("scrub")[0] == 6
    junk.unlink()
    code, document = cellarer("scrub")
    assert (code, document["missing"], document["damaged"]) == (0, [], [])
    assert not any("damaged" in each["message"] for each in cellarer("status")[1]["alarms"])


def test_init_makes_no_key_that_the_config_does_not_find(cellarer: Cli, place: Path) -> None:
    code, document = cellarer("init", "--identity", str(place / "plain.age"))
    assert (code, document["error"]["kind"]) == (2, "usage")
    assert not (place / "one").exists()
    assert cellarer("init", "--identity", str(place / "identity.age"))[0] == 0
