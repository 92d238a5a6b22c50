"""Repacking on several replicas: where it does not count, and how a replica is completed."""

from __future__ import annotations

import pytest

from cellarer.errors import StoreError
from cellarer.flows.repair import heal_damage
from cellarer.flows.scrub import Scrubbed, Wanted, scrub
from cellarer.ports import Store
from cellarer.vault.catchup import catch_up
from cellarer.vault.closing import abort
from cellarer.vault.collect import Collector
from cellarer.vault.genuine import Trust
from cellarer.vault.moved import load_moves
from scrubbing import Silent
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    all_restored,
    found,
)
from vault.collecting import collect, drop, keeper, names, repack
from vault.wasteful import KEPT, content, size, wasteful

pytestmark = pytest.mark.usefixtures("small_packs")


def test_a_repack_that_was_closed_on_one_replica_counts_on_the_others() -> None:
    """Where it does not count the old packs stay."""
    scene, kept = wasteful(replicas=2)

    class Closing(FaultyStore):
        """Somebody closes the session on this replica just before its register comes."""

        def create(self, key: str, data: bytes) -> None:
            if key.startswith("snapshots/") and b'"repack"' in data:
                abort(keeper(scene.alone("b")), key.removeprefix("snapshots/"))
            super().create(key, data)

    def wrap(name: str, store: Objects) -> Store:
        plain = Faults(lambda _: None)
        return Closing(store, plain) if name == "b" else FaultyStore(store, plain)

    with pytest.raises(StoreError, match="not registered on every replica") as caught:
        repack(scene, keeper(scene, scene.replicas(wrap)))
    assert caught.value.hint
    (repacked,) = scene.open().repacks()
    assert (repacked.replicas, repacked.absent) == (("a",), ("b",))
    collect(scene)
    for name in scene.stores:
        assert all_restored(scene.alone(name).open()) == {kept: KEPT}
    assert size(scene.stores["a"]) < size(scene.stores["b"])
    repack(scene)
    collect(scene)
    assert size(scene.stores["b"]) < len(KEPT["t"]) * 1.7
    for name in scene.stores:
        assert all_restored(scene.alone(name).open()) == {kept: KEPT}


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])
def test_a_new_replica_gets_what_was_moved(keys: bool) -> None:
    scene, kept = wasteful()
    repack(scene)
    collect(scene)
    scene.stores["b"] = Objects("b")
    vault = scene.open()
    done = catch_up(vault.replicas, lambda _: None, Trust.of(vault) if keys else None)
    assert done["b"].problem is None
    assert all_restored(scene.alone("b").open()) == {kept: KEPT}
    later = scene.backup(KEPT)
    assert later.replicas == ("a", "b")
    assert int(later.body["added_bytes"]) < (1000 if keys else 20_000)


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])
def test_a_replica_that_was_away_before_is_completed_with_what_was_moved(keys: bool) -> None:
    """The points that it lacked name packs that are nowhere any more."""
    scene, kept = wasteful()
    scene.stores["b"] = Objects("b")
    vault = scene.open()
    catch_up(vault.replicas, lambda _: None, Trust.of(vault))

    def away(name: str, store: Objects) -> Store:
        return FaultyStore(store, Faults(lambda _: Fault.REFUSE if name == "b" else None))

    second = scene.backup(KEPT, scene.open(scene.replicas(away)))
    assert second.replicas == ("a",)
    repack(scene)
    collect(scene)
    vault = scene.open()
    done = catch_up(vault.replicas, lambda _: None, Trust.of(vault) if keys else None)
    assert done["b"].problem is None
    assert all_restored(scene.alone("b").open()) == {kept: KEPT, second.session: KEPT}


def test_what_one_replica_deleted_before_a_point_came_is_brought_there_by_other_names() -> None:
    """A backup on b alone built on packs that a had swept already."""
    scene = found(replicas=2)
    old = scene.backup(KEPT).session
    drop(scene, old)
    vault = keeper(scene)
    Collector(vault, scene.now).collect(vault.replicas.replicas[0])

    def away(name: str, store: Objects) -> Store:
        return FaultyStore(store, Faults(lambda _: Fault.REFUSE if name == "a" else None))

    new = scene.backup(KEPT, scene.open(scene.replicas(away)))
    assert int(new.body["added_bytes"]) < 1000
    vault = scene.open()
    withheld = catch_up(vault.replicas, lambda _: None, Trust.of(vault))["a"]
    assert withheld.withheld == [new.session]
    done = repack(scene)
    assert all("deleted on a" in each.reason for each in done.plan.packs)
    vault = scene.open()
    assert catch_up(vault.replicas, lambda _: None, Trust.of(vault))["a"].problem is None
    collect(scene)
    for name in scene.stores:
        assert all_restored(scene.alone(name).open()) == {new.session: KEPT}


def scrub_all(scene: Founded, repair: bool) -> Scrubbed:
    return scrub(scene.open(), Wanted(repair=repair), Silent(), scene.now)


def test_a_scrub_tells_what_was_moved_from_what_is_lost() -> None:
    """What was swept does not come back; the pack in its place is healed where it is lost."""
    scene, kept = wasteful(replicas=2)
    repack(scene)
    collect(scene)
    before = content(scene.stores["b"])
    clean = scrub_all(scene, repair=True)
    assert (clean.damaged, clean.missing) == ([], [])
    assert content(scene.stores["b"]) == before
    (repacked,) = scene.open().repacks()
    targets = load_moves(scene.open(), repacked.moves).targets
    pack = next(name for name in sorted(targets) if name.startswith("packs/"))
    for gone in (pack, repacked.moves):
        del scene.stores["b"].objects[gone]
        told = scrub_all(scene, repair=False)
        assert [(each.replica, each.object) for each in told.missing] == [("b", gone)]
        assert scrub_all(scene, repair=True).remaining == []
        assert all_restored(scene.alone("b").open()) == {kept: KEPT}
    for store in scene.stores.values():
        del store.objects[pack]
    told = scrub_all(scene, repair=True)
    assert [loss.point for loss in told.lost] == [kept]


def test_what_only_one_replica_has_swept_yet_is_not_healed_there() -> None:
    scene, kept = wasteful(replicas=2)
    repack(scene)
    vault = keeper(scene)
    Collector(vault, scene.now).collect(vault.replicas.replicas[1])
    swept = names(scene.stores["a"], "packs/") - names(scene.stores["b"], "packs/")
    assert swept
    met = {"b": swept}
    assert all(outcome.healed == [] for outcome in heal_damage(scene.open(), met, scene.now))
    assert not swept & scene.stores["b"].objects.keys()
    assert all_restored(scene.open()) == {kept: KEPT}
