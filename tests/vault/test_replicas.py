"""Replicas that fail: a backup reaches its quorum or says so, and nobody holds half a point."""

from __future__ import annotations

import itertools

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData, VaultUnreachable
from cellarer.ports import Store
from cellarer.vault.catchup import catch_up
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.vault import Commit, Vault
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    all_restored,
    found,
    noise,
    restored,
)

pytestmark = pytest.mark.usefixtures("small_packs")

FIRST = {"t": noise(1, 40_000), "s": b"text"}
SECOND = {"t": noise(1, 30_000) + noise(2, 30_000), "e": b""}
THIRD = {"t": noise(1, 20_000) + noise(3, 5_000)}

SETUPS = [(2, 1), (2, 2), (3, 1), (3, 2)]
each_setup = pytest.mark.parametrize(
    ("count", "quorum"), SETUPS, ids=[f"{q}-of-{n}" for n, q in SETUPS]
)


def assert_nobody_holds_half_a_point(scene: Founded) -> None:
    """A replica with a point has all that the point needs, so that it alone can restore it."""
    everywhere = {key for store in scene.stores.values() for key in store.objects}
    for name, store in scene.stores.items():
        if "format.json" not in store.objects:
            assert not any(key.startswith("snapshots/") for key in store.objects)
            continue
        points = all_restored(Vault.open(scene.alone(name).replicas(), None, scene.identity))
        for session in points:
            needed = {key for key in everywhere if f"/{session}" in key}
            assert needed - {f"ledger/{session}"} <= set(store.objects)


def assert_catching_up_makes_equal(scene: Founded) -> None:
    assert all(done.problem is None for done in catch_up(scene.replicas(), lambda _: None).values())
    stores = [store.objects for store in scene.stores.values()]
    assert all(objects == stores[0] for objects in stores)


def failing(scene: Founded, name: str, faults: Faults) -> ReplicaSet:
    """The replicas, one of them with faults."""

    def wrap(each: str, store: Objects) -> Store:
        return FaultyStore(store, faults) if each == name else store

    return scene.replicas(wrap)


def try_backup(scene: Founded, replicas: ReplicaSet) -> Commit | None:
    """The commit, or None where too few replicas took it; any other error is a failure."""
    try:
        return scene.backup(SECOND, scene.open(replicas))
    except VaultUnreachable:
        return None


@pytest.mark.long
@each_setup
@pytest.mark.parametrize("broken", ["a", "b"])
@pytest.mark.parametrize("lasting", [True, False], ids=["gone-from", "hiccup-at"])
def test_a_replica_fails_at_any_operation(
    count: int, quorum: int, broken: str, lasting: bool
) -> None:
    original = found(count, quorum)
    first = original.backup(FIRST)
    for number in itertools.count():
        scene = original.copy()
        faults = Faults(
            lambda n: Fault.REFUSE if n == number or (lasting and n > number) else None  # noqa: B023
        )
        commit = try_backup(scene, failing(scene, broken, faults))
        if faults.operations <= number:
            break
        expected = {first.session: FIRST}
        points = all_restored(scene.open())
        if commit is not None:
            assert len(commit.replicas) >= quorum
            for name in commit.replicas:
                assert f"snapshots/{commit.session}" in scene.stores[name].objects
        assert commit is not None or count == quorum
        expected.update(dict.fromkeys(set(points) - set(expected), SECOND))
        assert points == expected
        assert commit is None or commit.session in points
        assert_nobody_holds_half_a_point(scene)
        assert_catching_up_makes_equal(scene)
        expected[scene.backup(THIRD).session] = THIRD
        for name in scene.stores:
            assert all_restored(scene.alone(name).open()) == expected
    assert number > 10


@each_setup
def test_a_replica_that_is_behind_takes_no_new_point(count: int, quorum: int) -> None:
    scene = found(count, quorum)
    scene.backup(FIRST)
    missed = scene.copy()
    missed.write_quorum = 1
    del missed.stores["a"]
    missed.backup(SECOND)
    missed.stores["a"] = scene.stores["a"]
    missed.write_quorum = quorum
    if count - 1 < quorum:
        with pytest.raises(VaultUnreachable, match="up to date"):
            missed.backup(THIRD)
    else:
        commit = missed.backup(THIRD)
        assert "a" not in commit.replicas
        assert f"snapshots/{commit.session}" not in missed.stores["a"].objects
    assert_nobody_holds_half_a_point(missed)
    assert_catching_up_makes_equal(missed)
    assert set(missed.backup(THIRD).replicas) == set(missed.stores)


def test_a_new_and_empty_replica_waits_until_it_is_caught_up() -> None:
    for earlier in ([], [FIRST]):
        scene = found()
        for contents in earlier:
            scene.backup(contents)
        scene.stores["b"] = Objects("b")
        commit = scene.backup(SECOND)
        assert commit.replicas == ("a",)
        assert scene.stores["b"].objects == {}
        assert_catching_up_makes_equal(scene)
        assert scene.backup(THIRD).replicas == ("a", "b")
        assert restored(scene.alone("b").open(), commit) == SECOND


def test_catching_up_goes_both_ways() -> None:
    scene = found(replicas=2)
    one, other = scene.alone("a"), scene.alone("b")
    expected = {one.backup(FIRST).session: FIRST, other.backup(SECOND).session: SECOND}
    assert_catching_up_makes_equal(scene)
    for name in "ab":
        assert all_restored(scene.alone(name).open()) == expected


def test_catching_up_does_not_copy_damage() -> None:
    scene = found(replicas=2)
    scene.backup(FIRST)
    scene.stores["c"] = Objects("c")
    packs = [k for k in scene.stores["a"].objects if k.startswith(("packs/", "meta/"))]
    for key in packs:
        scene.stores["a"].damage(key, lambda data: b"damaged" + data[7:])
    assert catch_up(scene.replicas(), lambda _: None)["c"].problem is None
    assert scene.stores["c"].objects == scene.stores["b"].objects


def test_catching_up_brings_no_point_whose_packs_are_lost() -> None:
    scene = found()
    scene.backup(FIRST)
    scene.stores["b"] = Objects("b")
    pack = next(key for key in scene.stores["a"].objects if key.startswith("packs/"))
    scene.stores["a"].damage(pack, lambda data: data[:-1])
    problem = catch_up(scene.replicas(), lambda _: None)["b"].problem
    assert isinstance(problem, DamagedData)
    assert not any(key.startswith("snapshots/") for key in scene.stores["b"].objects)


def test_catching_up_says_who_does_not_answer() -> None:
    scene = found(replicas=2)
    faults = Faults(lambda _: Fault.REFUSE)
    done = catch_up(failing(scene, "b", faults), lambda _: None)
    assert done["a"].problem is None
    assert isinstance(done["b"].problem, CellarerError)


@each_setup
def test_a_proof_is_kept_where_any_replica_takes_it(count: int, quorum: int) -> None:
    scene = found(count, quorum)
    proof = ProofRecord(
        "p", "db", Proof.PROVEN, True, scene.now(), 1.0, (Check("c", True, "1", "1"),)
    )
    refusing = Faults(lambda _: Fault.REFUSE, lambda method: method == "create")
    vault = scene.open(failing(scene, "b", refusing))
    record_proof(vault, proof)
    assert proofs(scene.open()) == [proof]
    assert_catching_up_makes_equal(scene)
    assert proofs(scene.alone("b").open()) == [proof]


def test_a_proof_that_no_replica_takes_is_an_error() -> None:
    scene = found(replicas=1)
    proof = ProofRecord("p", "db", Proof.PROVEN, True, scene.now(), 1.0, ())
    refusing = Faults(lambda _: Fault.REFUSE, lambda method: method == "create")
    (name,) = scene.stores
    with pytest.raises(VaultUnreachable, match="ledger"):
        record_proof(scene.open(failing(scene, name, refusing)), proof)


def test_no_vault_is_told_from_an_unreachable_one() -> None:
    scene = found(replicas=2)
    empty = Founded({"a": Objects("a")}, 1, scene.write_key, scene.identity, scene.now)
    with pytest.raises(VaultUnreachable, match="no vault"):
        empty.open()
    faults = Faults(lambda _: Fault.REFUSE)
    with pytest.raises(VaultUnreachable) as caught:
        scene.open(scene.replicas(lambda name, store: FaultyStore(store, faults)))
    assert "no vault" not in str(caught.value)
    assert caught.value.retryable
