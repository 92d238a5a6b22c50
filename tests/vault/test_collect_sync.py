"""Collecting and copying: what one replica deleted does not come back from another."""

from __future__ import annotations

import contextlib

import pytest

from cellarer.ports import Store, Stream
from cellarer.vault.catchup import CaughtUp, catch_up
from cellarer.vault.closing import abort
from cellarer.vault.collect import Collector
from cellarer.vault.genuine import Trust
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    PowerCut,
    all_restored,
    blocks,
    found,
    noise,
)

pytestmark = pytest.mark.usefixtures("small_packs")

OLD = {"t": noise(1, 120_000), "s": b"text"}
HALF = {"t": noise(1, 30_000), "s": b"half"}

with_and_without_keys = pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])


def keeper(scene: Founded) -> Vault:
    return Vault.open(scene.replicas(), None, None, scene.collect_key)


def sync(scene: Founded, keys: bool) -> dict[str, CaughtUp]:
    vault = scene.open()
    trust = Trust.of(vault) if keys else None
    return catch_up(vault.replicas, lambda copied_bytes: None, trust)


def collect_on(scene: Founded, name: str) -> None:
    vault = keeper(scene)
    replica = next(each for each in vault.replicas.replicas if each.name == name)
    Collector(vault, scene.now).collect(replica)


def packs(scene: Founded, name: str) -> set[str]:
    return {key for key in scene.stores[name].objects if key.startswith("packs/")}


def half_collected() -> tuple[Founded, str, str]:
    """Two replicas, a point that was given up and one that was not; only `a` is collected yet."""
    scene = found(replicas=2)
    old, half = scene.backup(OLD).session, scene.backup(HALF).session
    forget(keeper(scene), old, "", scene.now())
    collect_on(scene, "a")
    assert packs(scene, "a") < packs(scene, "b")
    return scene, old, half


@with_and_without_keys
def test_what_one_replica_deleted_does_not_come_back(keys: bool) -> None:
    scene, _, half = half_collected()
    before = packs(scene, "a")
    done = sync(scene, keys)
    assert all(each.problem is None for each in done.values())
    assert packs(scene, "a") == before
    collect_on(scene, "b")
    assert packs(scene, "a") == packs(scene, "b")
    assert all_restored(scene.alone("b").open()) == {half: HALF}


@with_and_without_keys
def test_a_new_replica_gets_every_point_and_the_registers_of_forgotten_ones(keys: bool) -> None:
    scene, old, half = half_collected()
    collect_on(scene, "b")
    scene.stores["c"] = Objects("c")
    assert sync(scene, keys)["c"].problem is None
    assert all_restored(scene.alone("c").open()) == {half: HALF}
    assert f"forgotten/{old}" in scene.stores["c"].objects
    # Without a key nobody knows whether the tombstone is genuine: then the register stays out.
    assert (f"snapshots/{old}" in scene.stores["c"].objects) == keys
    assert not any(key.startswith("collections/") for key in scene.stores["c"].objects)


@with_and_without_keys
def test_a_tombstone_that_anybody_put_there_makes_no_point_whole(keys: bool) -> None:
    scene = found(replicas=2)
    whole = scene.alone("a")
    point = whole.backup(HALF).session
    objects = scene.stores["a"].objects
    pack = next(key for key in objects if key.startswith("packs/"))
    objects[pack] = objects[pack][:-1]
    scene.stores["b"].objects[f"forgotten/{point}"] = b"{}"
    sync(scene, keys)
    assert f"snapshots/{point}" not in scene.stores["b"].objects


@with_and_without_keys
@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_nothing_is_built_on_what_is_being_deleted(keys: bool, deleted: int) -> None:
    """A collector died after it began to delete; a backup elsewhere then used that pack."""
    scene = found(replicas=2)
    old, half = scene.backup(OLD).session, scene.backup(HALF).session
    forget(keeper(scene), old, "", scene.now())
    faults = Faults(lambda n: Fault.CRASH_BEFORE if n == deleted else None, "delete".__eq__)

    def dying(name: str, store: Objects) -> Store:
        return FaultyStore(store, faults)

    vault = Vault.open(scene.replicas(dying), None, None, scene.collect_key)
    with contextlib.suppress(PowerCut):
        Collector(vault, scene.now).collect(vault.replicas.replicas[0])

    def away(name: str, store: Objects) -> Store:
        return FaultyStore(store, Faults(lambda _: Fault.REFUSE if name == "a" else None))

    new = scene.backup(OLD, scene.open(scene.replicas(away)))
    assert new.replicas == ("b",)
    assert int(new.body["added_bytes"]) < 1000
    for _ in range(2):
        done = sync(scene, keys)["a"]
        assert done.withheld == [new.session]
        assert done.problem is not None
        assert "cellarer retain" in done.problem.hint
        assert all_restored(scene.alone("a").open()) == {half: HALF}
        assert all_restored(scene.open()) == {half: HALF, new.session: OLD}
        collect_on(scene, "a")
    collect_on(scene, "b")
    assert all_restored(scene.alone("b").open()) == {half: HALF, new.session: OLD}


def test_a_commit_goes_before_the_abort_of_another_replica() -> None:
    scene = found(replicas=2)
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    for path, data in HALF.items():
        writer.add(Stream(path, "test", blocks(data), len(data)))
    abort(keeper(scene.alone("a")), writer.session)
    session = writer.commit().session
    scene.stores["c"] = Objects("c")
    done = sync(scene, keys=True)
    assert {name: each.problem for name, each in done.items()} == dict.fromkeys("abc")
    (commit,) = scene.open().commits()
    assert (commit.replicas, commit.absent) == (("b", "c"), ("a",))
    assert all_restored(scene.alone("c").open()) == {session: HALF}
