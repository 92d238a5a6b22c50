"""A session that its writer gave up says so in its own register."""

from __future__ import annotations

import json

import pytest

from cellarer.errors import StoreError, VaultUnreachable
from cellarer.ports import Store, Stream
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Fault, Faults, FaultyStore, Founded, Objects, found


def registers(scene: Founded, name: str) -> list[str]:
    objects = scene.stores[name].objects
    return [
        json.loads(objects[k])["body"]["outcome"] for k in objects if k.startswith("snapshots/")
    ]


def started(scene: Founded, vault: Vault | None = None) -> SnapshotWriter:
    writer = SnapshotWriter(vault or scene.open(), "db", "test", scene.now)
    writer.add(Stream("t", "test", iter([b"half"]), 4))
    return writer


def test_an_abandoned_session_is_closed_on_every_replica() -> None:
    scene = found(replicas=2)
    kept = scene.backup({"a": b"1"})
    writer = started(scene)
    for _ in range(2):
        writer.abandon()
    assert registers(scene, "a") == registers(scene, "b") == ["commit", "abort"]
    assert [commit.session for commit in scene.open().commits()] == [kept.session]
    assert scene.open().unreadable == {}


def test_a_committed_session_is_not_aborted() -> None:
    scene = found(replicas=2)
    writer = started(scene)
    writer.commit()
    writer.abandon()
    assert registers(scene, "a") == registers(scene, "b") == ["commit"]


class KeepsNoRegister(FaultyStore):
    """A store that refuses registers and nothing else."""

    def create(self, key: str, data: bytes) -> None:
        if key.startswith("snapshots/"):
            raise StoreError(f"{key} was refused")
        super().create(key, data)


def test_a_commit_that_was_tried_is_not_aborted() -> None:
    scene = found(replicas=2, write_quorum=2)
    no_faults = Faults(lambda _: None)

    def wrap(name: str, store: Objects) -> Store:
        return KeepsNoRegister(store, no_faults) if name == "b" else store

    writer = started(scene, scene.open(scene.replicas(wrap)))
    with pytest.raises(VaultUnreachable):
        writer.commit()
    writer.abandon()
    assert (registers(scene, "a"), registers(scene, "b")) == (["commit"], [])


def test_what_ended_the_session_is_not_hidden_by_a_store_that_is_gone() -> None:
    scene = found(replicas=1)
    plan: list[Fault | None] = [None]
    faults = Faults(lambda _: plan[0])
    vault = scene.open(scene.replicas(lambda _, store: FaultyStore(store, faults)))
    writer = started(scene, vault)
    plan[0] = Fault.REFUSE
    writer.abandon()
    assert registers(scene, "a") == []
