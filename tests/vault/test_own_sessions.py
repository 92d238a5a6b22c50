"""A backup that was killed on this host is closed by the next one, and nothing else ever is."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cellarer import bootstrap
from cellarer.cli.main import run
from cellarer.config import load
from cellarer.errors import StoreError
from cellarer.flows.backup import back_up
from cellarer.ports import Store, Stream
from cellarer.vault import replicas, writing
from cellarer.vault.own_sessions import close_died
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from faulty import Fault, Faults, FaultyStore, Gate
from flows.test_flows import Shelf, Silent
from stand_ins import Founded, found, noise


@pytest.fixture
def scene() -> Founded:
    return found(2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path


def opened(scene: Founded, cache: Path, **wrapped: Store) -> Vault:
    replicas = scene.replicas(wrapped.get)
    return Vault.open(replicas, scene.write_key, scene.identity, cache=cache)


def begun(vault: Vault, scene: Founded) -> SnapshotWriter:
    writer = SnapshotWriter(vault, "db", "test", scene.now)
    writer.add(Stream("t", "test", iter([noise(1, 5000)])))
    return writer


def killed(writer: SnapshotWriter) -> str:
    """As SIGKILL leaves it: the lock goes with the process, the file and the session stay."""
    writer._own_session.leave()
    return writer.session


def registers(scene: Founded, session: str) -> list[bool]:
    return [f"snapshots/{session}" in store.objects for store in scene.stores.values()]


def test_what_was_killed_is_closed_by_the_next_backup(scene: Founded, cache: Path) -> None:
    session = killed(begun(opened(scene, cache), scene))
    assert registers(scene, session) == [False, False]
    back_up(opened(scene, cache), Shelf({"t": b"x"}), Silent(), scene.now)
    assert registers(scene, session) == [True, True]
    assert len(scene.open().commits()) == 1
    assert close_died(opened(scene, cache)) == []


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "cellarer.toml"
    assert run(["--config", str(file), "init", f"--replica=one={tmp_path / 'one'}"]) == 0
    program = (
        "import os, signal, sys; from pathlib import Path; from cellarer import bootstrap;"
        "from cellarer.config import load; from cellarer.vault.writer import SnapshotWriter;"
        "vault = bootstrap.open_vault(load(Path(sys.argv[1])));"
        "SnapshotWriter(vault, 'db', 'test', bootstrap.now);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (session,) = close_died(bootstrap.open_vault(load(file)))
    assert (tmp_path / "one" / "snapshots" / session).is_file()


def test_what_is_being_written_is_left_alone_and_can_be_committed(
    scene: Founded, cache: Path
) -> None:
    writer = begun(opened(scene, cache), scene)
    assert close_died(opened(scene, cache)) == []
    commit = writer.commit()
    assert [c.session for c in scene.open().commits()] == [commit.session]
    assert list((cache / scene.open().id / "sessions").iterdir()) == []


def test_one_that_is_closed_too_early_ends_with_an_error_and_makes_no_point(
    scene: Founded, cache: Path
) -> None:
    writer = begun(opened(scene, cache), scene)
    killed(writer)  # as where a file system does not keep locks
    assert close_died(opened(scene, cache)) == [writer.session]
    with pytest.raises(StoreError, match="closed"):
        writer.commit()
    assert scene.open().commits() == []


def test_a_file_that_came_back_closes_no_restore_point(scene: Founded, cache: Path) -> None:
    """An older state of this host was restored; replica b does not have the point yet."""
    writer = begun(opened(scene, cache), scene)
    file = cache / scene.open().id / "sessions" / writer.session
    commit = writer.commit()
    file.touch()
    del scene.stores["b"].objects[f"snapshots/{commit.session}"]
    assert close_died(opened(scene, cache)) == []
    assert registers(scene, commit.session) == [True, False]
    assert not file.exists()


def test_while_a_replica_is_away_it_waits_for_the_next_time(scene: Founded, cache: Path) -> None:
    session = killed(begun(opened(scene, cache), scene))
    away = FaultyStore(scene.stores["b"], Faults(lambda _: Fault.REFUSE, lambda m: m == "create"))
    assert close_died(opened(scene, cache, b=away)) == []
    assert close_died(opened(scene, cache)) == [session]
    assert registers(scene, session) == [True, True]


def test_a_backup_that_gave_up_by_itself_is_not_told_as_dead(scene: Founded, cache: Path) -> None:
    writer = begun(opened(scene, cache), scene)
    writer.abandon()
    assert registers(scene, writer.session) == [True, True]
    assert close_died(opened(scene, cache)) == []
    assert list((cache / scene.open().id / "sessions").iterdir()) == []


def test_nothing_is_written_where_no_vault_is(scene: Founded, cache: Path) -> None:
    """A disk that is not mounted is an empty directory."""
    killed(begun(opened(scene, cache), scene))
    scene.stores["b"].objects.clear()
    assert close_died(opened(scene, cache)) == []
    assert scene.stores["b"].objects == {}


def test_a_replica_that_hangs_holds_no_backup_up(
    scene: Founded, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(begun(opened(scene, cache), scene))
    for name in ("PATIENCE_SECONDS", "SILENT_SECONDS", "CLOSING_SECONDS"):
        monkeypatch.setattr(writing, name, 0.0)
    gate = Gate()
    hanging = FaultyStore(scene.stores["b"], Faults(lambda _: gate, lambda m: m == "create"))
    vault = opened(scene, cache, b=hanging)
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 0.2)
    back_up(vault, Shelf({"t": b"x"}), Silent(), scene.now)
    gate.opened.set()
    assert len(scene.alone("a").open().commits()) == 1


def test_without_a_write_key_nothing_is_closed(scene: Founded, cache: Path) -> None:
    session = killed(begun(opened(scene, cache), scene))
    assert close_died(Vault.open(scene.replicas(), None, scene.identity, cache=cache)) == []
    assert registers(scene, session) == [False, False]


def test_the_session_of_another_writer_is_left_to_the_collectors(
    scene: Founded, cache: Path
) -> None:
    other = begun(opened(scene, cache), scene)
    session = killed(other)
    vault = opened(scene, cache)
    vault.write_key = replace(scene.write_key, writer="somebody else")
    assert close_died(vault) == []
    assert registers(scene, session) == [False, False]


def test_a_host_that_can_keep_nothing_backs_up_all_the_same(scene: Founded, tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    assert close_died(opened(scene, nowhere)) == []
    assert begun(opened(scene, nowhere), scene).commit().session
