"""Forgetting and collecting end at any moment, and the next run goes on."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest

from cellarer.errors import CellarerError
from cellarer.ports import Store
from cellarer.vault.collect import Collector
from cellarer.vault.repack import Repacker
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Vault
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    PowerCut,
    all_restored,
    found,
    noise,
)

pytestmark = pytest.mark.usefixtures("small_packs")

FIRST = {"t": noise(1, 70_000)}
SECOND = {"t": noise(1, 30_000) + noise(2, 30_000), "s": b"other"}
THIRD = {"t": noise(2, 30_000), "u": noise(3, 5000)}


@pytest.fixture(scope="module")
def shared(small_packs: None) -> tuple[Founded, str, dict[str, dict[str, bytes]]]:
    """A vault on two replicas whose first point shall go."""
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    kept = {scene.backup(SECOND).session: SECOND, scene.backup(THIRD, source="f").session: THIRD}
    return scene, first, kept


def run(scene: Founded, session: str, replicas: ReplicaSet) -> None:
    """What `retain` does to the vault, in its order."""
    vault = Vault.open(replicas, None, None, scene.collect_key)
    forget(vault, session, "no rule wants it", scene.now())
    collector = Collector(vault, scene.now)
    for replica in vault.replicas.replicas:
        collector.collect(replica)


def packs(scene: Founded) -> dict[str, set[str]]:
    return {
        name: {k for k in store.objects if k.startswith(("packs/", "meta/", "index/"))}
        for name, store in scene.stores.items()
    }


def faulty(
    scene: Founded, fault: Fault, number: int, counts: Callable[[str], bool]
) -> tuple[ReplicaSet, Faults]:
    """The replicas, where the operation of this number (of those that count) meets the fault."""
    faults = Faults(lambda n: fault if n == number else None, counts)

    def wrap(name: str, store: Objects) -> Store:
        return FaultyStore(store, faults)

    return scene.replicas(wrap), faults


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY])
def test_a_retention_that_ends_anywhere(
    shared: tuple[Founded, str, dict[str, dict[str, bytes]]], fault: Fault
) -> None:
    original, first, kept = shared
    clean = original.copy()
    run(clean, first, clean.replicas())
    for number in itertools.count():
        scene = original.copy()
        replicas, faults = faulty(scene, fault, number, _writes)

        with contextlib.suppress(PowerCut, CellarerError):
            run(scene, first, replicas)
        points = all_restored(scene.open())
        assert {s: p for s, p in points.items() if s != first} == kept, f"{fault} at {number}"
        for name in scene.stores:
            alone = all_restored(scene.alone(name).open())
            assert {s: p for s, p in alone.items() if s != first} == kept
        # A backup in between, then the next run, ends where a run without a fault ends.
        added = scene.backup(FIRST).session
        run(scene, first, scene.replicas())
        assert all_restored(scene.open()) == {**kept, added: FIRST}
        run(scene, added, scene.replicas())
        assert packs(scene) == packs(clean)
        if faults.operations <= number:
            break
    assert number >= 15


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY])
def test_a_retention_whose_reading_ends_anywhere(
    shared: tuple[Founded, str, dict[str, dict[str, bytes]]], fault: Fault
) -> None:
    """Every third read and listing, too: half a picture deletes nothing that is needed."""
    original, first, kept = shared
    for number in itertools.count(step=3):
        scene = original.copy()
        replicas, faults = faulty(scene, fault, number, lambda method: True)

        with contextlib.suppress(PowerCut, CellarerError):
            run(scene, first, replicas)
        points = all_restored(scene.open())
        assert {s: p for s, p in points.items() if s != first} == kept, f"{fault} at {number}"
        run(scene, first, scene.replicas())
        assert all_restored(scene.open()) == kept
        if faults.operations <= number:
            break


def repack_and_collect(scene: Founded, replicas: ReplicaSet) -> None:
    vault = Vault.open(replicas, None, None, scene.collect_key)
    Repacker(vault, scene.now, 1 << 30).run(lambda copied_bytes: None)
    collector = Collector(vault, scene.now)
    for replica in vault.replicas.replicas:
        collector.collect(replica)


@pytest.fixture(scope="module")
def wasteful(small_packs: None) -> tuple[Founded, dict[str, dict[str, bytes]]]:
    """A vault on two replicas with a point that needs a little of each of several packs."""
    scene = found(replicas=2)
    whole = noise(1, 140_000)
    first = scene.backup({"t": whole}).session
    some = {"t": whole[:16_000] + whole[60_000:76_000] + whole[120_000:136_000]}
    kept = {scene.backup(some).session: some}
    run(scene, first, scene.replicas())
    return scene, kept


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY])
def test_a_repack_that_ends_anywhere(
    wasteful: tuple[Founded, dict[str, dict[str, bytes]]], fault: Fault
) -> None:
    original, kept = wasteful
    clean = original.copy()
    repack_and_collect(clean, clean.replicas())
    room = {name: _packed(store) for name, store in clean.stores.items()}
    assert all(room[name] < _packed(store) * 0.9 for name, store in original.stores.items())
    for number in itertools.count():
        scene = original.copy()
        replicas, faults = faulty(scene, fault, number, _writes)
        with contextlib.suppress(PowerCut, CellarerError):
            repack_and_collect(scene, replicas)
        for each in (scene, scene.alone("a"), scene.alone("b")):
            assert all_restored(each.open()) == kept, f"{fault} at {number}"
        repack_and_collect(scene, scene.replicas())
        repack_and_collect(scene, scene.replicas())
        for each in (scene, scene.alone("a"), scene.alone("b")):
            assert all_restored(each.open()) == kept, f"{fault} at {number}"
        assert all(_packed(s) < room[name] * 1.2 for name, s in scene.stores.items())
        if faults.operations <= number:
            break
    assert number >= 20


def _packed(store: Objects) -> int:
    return sum(len(data) for key, data in store.objects.items() if key.startswith("packs/"))


def _writes(method: str) -> bool:
    return method in ("create", "delete")
