"""Scrubs where much is amiss: a replica away, no register whole, a store that only grows."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest

from cellarer.errors import DamagedData
from cellarer.stores.grow_only import GrowOnly
from cellarer.vault import format as layout
from cellarer.vault.vault import Vault
from faulty import Fault, Faults, FaultyStore, PowerCut
from flows.test_replicas_come_and_go import alarms
from scrubbing import FIRST, SECOND, run, scene_of, told
from stand_ins import Founded, all_restored, flip, noise
from vault.collecting import collect, drop, repack
from vault.wasteful import wasteful
from wal_files import away

pytestmark = pytest.mark.usefixtures("small_packs")


def registers(scene: Founded, name: str) -> list[str]:
    return [key for key in scene.stores[name].objects if key.startswith(layout.SNAPSHOTS_PREFIX)]


def test_registers_that_are_all_damaged_are_put_together_again() -> None:
    scene = scene_of(2)
    expected = all_restored(scene.open())
    for name, place in (("a", 21), ("b", 2021)):
        for key in registers(scene, name):
            scene.stores[name].damage(key, flip(place))
    with pytest.raises(DamagedData, match="whole"):
        scene.open().commits()
    with pytest.raises(DamagedData, match="whole"):
        run(scene)
    found = run(scene, repair=True)
    assert len(found.repaired) == 4
    assert found.remaining == []
    assert all_restored(scene.open()) == expected
    assert run(scene).damaged == []


def test_registers_of_which_none_can_be_put_together_stay_as_they_are() -> None:
    scene = scene_of(2)
    for name in ("a", "b"):
        for key in registers(scene, name):
            scene.stores[name].damage(key, flip(21))
    before = {name: dict(store.objects) for name, store in scene.stores.items()}
    with pytest.raises(DamagedData, match="whole"):
        run(scene, repair=True)
    for name, objects in before.items():
        assert {key: scene.stores[name].objects[key] for key in objects} == objects


def test_a_table_of_moves_that_was_collected_is_missed_by_nobody_where_a_replica_is_away() -> None:
    scene, kept = wasteful(2)
    repack(scene)
    assert scene.open().repacks()
    collect(scene)
    scene.backup({"x": b"y"})
    drop(scene, kept)
    collect(scene)
    tables = {each.moves for each in scene.open().repacks()}
    assert tables - scene.stores["a"].objects.keys(), "one was collected"
    vault = Vault.open(away(scene, "b"), scene.write_key, scene.identity)
    found = run(scene, vault=vault)
    assert (found.damaged, found.missing) == ([], [])
    assert {each.name: each.problem is None for each in found.replicas} == {"a": True, "b": False}
    assert found.replicas[0].objects > 0


def test_what_no_point_needs_is_no_loss_where_nothing_can_be_deleted() -> None:
    scene = scene_of(1)
    before = set(scene.stores["a"].objects)
    drop(scene, scene.backup({"t": noise(9, 20_000)}).session)
    pack = min(k for k in scene.stores["a"].objects.keys() - before if k.startswith("packs/"))
    scene.stores["a"].damage(pack, flip(999))
    grows = scene.replicas(lambda name, store: GrowOnly(store))
    vault = Vault.open(grows, scene.write_key, scene.identity)
    assert told(run(scene).damaged) == [("a", pack)], "elsewhere it is told"
    found = run(scene, vault=vault, repair=True)
    assert (found.damaged, found.lost) == ([], [])
    assert alarms(scene) == []


KINDS = {
    "registers": (layout.SNAPSHOTS_PREFIX,),
    "all": (layout.SNAPSHOTS_PREFIX, layout.PACKS_PREFIX, layout.META_PREFIX, layout.KEYS_PREFIX),
}


def damaged_at_different_places(kinds: tuple[str, ...]) -> Founded:
    """No copy of these objects is whole, and each two make one."""
    scene = scene_of(2)
    for name, share in (("a", 3), ("b", 2)):
        store = scene.stores[name]
        for key in [key for key in store.objects if key.startswith(kinds)]:
            store.damage(key, flip(8 * len(store.objects[key]) // share))
    return scene


@pytest.mark.long
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_a_repair_from_two_damaged_copies_that_ends_anywhere_loses_nothing(
    fault: Fault, kinds: str
) -> None:
    """Each of them is half of what is known, and is deleted before the whole takes its place."""
    for number in itertools.count():
        scene = damaged_at_different_places(KINDS[kinds])
        faults = Faults(
            lambda n, number=number: fault if n == number else None,  # type: ignore[misc]
            counts=lambda method: method in ("create", "delete"),
        )
        replicas = scene.replicas(lambda name, store, each=faults: FaultyStore(store, each))  # type: ignore[misc]
        ended = False
        with suppress(PowerCut):
            run(scene, vault=scene.open(replicas), repair=True)
            ended = True
        assert run(scene, repair=True).remaining == []
        assert list(all_restored(scene.open()).values()) == [FIRST, SECOND]
        aside = [k for s in scene.stores.values() for k in s.objects if k.startswith("aside/")]
        assert aside == []
        if ended:
            break
    assert number > 8
