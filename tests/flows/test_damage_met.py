"""What a backup meets damaged it writes down: `status` tells, and `sync` heals."""

from __future__ import annotations

import pytest

from cellarer.errors import DamagedData
from cellarer.flows.history import look_back
from cellarer.flows.points import survey
from cellarer.vault.ledger import entries
from cellarer.vault.repair import standing_damage
from flows.test_replicas_come_and_go import RED, WHITE, sync, write
from scrubbing import key_of
from stand_ins import Founded, Objects, flip, found, restored


@pytest.fixture
def scene() -> Founded:
    made = found(2)
    write(made, RED)
    return made


def standing(scene: Founded) -> dict[str, set[str]]:
    found = standing_damage(entries(scene.open()))
    return {name: set(objects) for name, objects in found.items()}


def told(scene: Founded) -> list[str]:
    vault = scene.open()
    return [f"{f.id} {f.subject}" for f in look_back(vault, survey(vault), None)]


@pytest.mark.parametrize("kind", ["index/", "keys/2", "sessions/"])
def test_what_is_damaged_everywhere_is_told_by_status(scene: Founded, kind: str) -> None:
    key = key_of(scene, kind)
    for store in scene.stores.values():
        store.damage(key, flip(60 * 8))
    notes = write(scene, WHITE)
    assert any("damaged" in note and "cellarer status" in note for note in notes.told)
    assert standing(scene) == {"a": {key}, "b": {key}}
    assert told(scene) == ["damage-stands vault.replicas.a", "damage-stands vault.replicas.b"]
    # It is told once, and what was taken since does not need it.
    assert write(scene, WHITE).told == []
    newest = max(readable(scene))
    assert newest == max(commit.session for commit in scene.open().commits())


def readable(scene: Founded) -> list[str]:
    whole = []
    for commit in scene.open().commits():
        try:
            restored(scene.open(), commit)
        except DamagedData:
            continue
        whole.append(commit.session)
    return whole


@pytest.mark.parametrize("kind", ["index/", "keys/2", "sessions/"])
def test_sync_heals_what_was_written_down(scene: Founded, kind: str) -> None:
    key = key_of(scene, kind)
    good = scene.stores["a"].objects[key]
    scene.stores["a"].damage(key, flip(60 * 8))
    write(scene, WHITE)
    assert standing(scene) == {"a": {key}}
    assert sync(scene) == {"a": "", "b": ""}
    assert scene.stores["a"].objects[key] == good
    assert standing(scene) == {}
    assert told(scene) == []


@pytest.mark.parametrize("where", ["a", "ab"])
def test_a_lost_envelope_is_told(scene: Founded, where: str) -> None:
    key = key_of(scene, "keys/2")
    for name in where:
        scene.stores[name].damage(key, lambda _: None)
    write(scene, WHITE)
    assert standing(scene) == {name: {key} for name in where}
    sync(scene)
    assert standing(scene) == ({} if where == "a" else {"a": {key}, "b": {key}})


def test_a_replica_that_is_behind_is_not_damaged(scene: Founded) -> None:
    b = Objects("b", scene.stores["b"].objects)
    del scene.stores["b"]
    write(scene, WHITE)
    scene.stores = {"b": b, **scene.stores}
    write(scene, RED)
    assert standing(scene) == {}
