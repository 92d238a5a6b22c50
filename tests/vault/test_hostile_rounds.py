"""Rounds that somebody put there who may add objects to a replica and not collect."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cellarer.errors import DamagedData, VaultUnreachable
from cellarer.vault.collect import Collector
from stand_ins import Founded, Objects, all_restored, found, restored
from vault.collecting import FIRST, SECOND, THIRD, collect, drop, keeper, names

pytestmark = pytest.mark.usefixtures("small_packs")


class Pausing(Objects):
    """Does something once, before it deletes the first object."""

    def __init__(self, objects: dict[str, bytes], act: Callable[[], None]) -> None:
        super().__init__("a")
        self.objects = objects
        self._act: Callable[[], None] | None = act

    def delete(self, key: str) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()
        super().delete(key)


def collected_on(scene: Founded, name: str) -> None:
    vault = keeper(scene)
    (replica,) = (r for r in vault.replicas.replicas if r.name == name)
    Collector(vault, scene.now).collect(replica)


def meanwhile(scene: Founded, act: Callable[[], None]) -> None:
    """Collect on a, and do this when it begins to delete."""
    store = Pausing(scene.stores["a"].objects, act)
    vault = keeper(scene, scene.replicas(lambda name, s: store if name == "a" else s))
    Collector(vault, scene.now).collect(vault.replicas.replicas[0])


def test_what_is_still_being_deleted_is_not_built_upon_because_somebody_says_it_is_gone() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    kept = scene.backup(THIRD, source="files").session
    drop(scene, first)

    def act() -> None:
        scene.stores["a"].objects["collections/00000000/done"] = b"{}"
        with pytest.raises(VaultUnreachable):
            scene.backup(FIRST)

    with pytest.raises(DamagedData):
        meanwhile(scene, act)
    assert all_restored(scene.open()) == {kept: THIRD}


def test_nor_by_a_round_of_another_replica_that_begins_after_it() -> None:
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    second = scene.backup(SECOND).session
    kept = scene.backup(THIRD, source="files").session
    for session in (first, second):
        drop(scene, session)
        collected_on(scene, "b")
    stolen = {
        key: data
        for key, data in scene.stores["b"].objects.items()
        if key.startswith("collections/00000001/")
    }
    assert len(stolen) == 4

    def act() -> None:
        scene.stores["a"].objects["collections/00000000/done"] = b"{}"
        scene.stores["a"].objects.update(stolen)
        with pytest.raises(VaultUnreachable):
            scene.alone("a").backup(FIRST)

    with pytest.raises(DamagedData, match="does not follow the one before"):
        meanwhile(scene, act)
    assert all_restored(scene.open()) == {kept: THIRD}


def test_a_whole_round_of_another_replica_takes_nothing_from_the_points_of_this_one() -> None:
    """On b a backup that a missed built on what a has swept."""
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    scene.backup(THIRD, source="files")
    drop(scene, first)
    collected_on(scene, "a")
    again = scene.alone("b").backup(FIRST)
    assert int(again.body["added_bytes"]) < 1000
    for step in ("begin", "mark", "sweep"):
        key = f"collections/00000000/{step}"
        scene.stores["b"].objects[key] = scene.stores["a"].objects[key]
    before = names(scene.stores["b"], "packs/")
    with pytest.raises(DamagedData, match="deletes what restore points need"):
        collect(scene)
    assert names(scene.stores["b"], "packs/") == before
    assert restored(scene.open(), again) == FIRST
