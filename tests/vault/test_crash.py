"""The program ends at any moment: what was there stays, and the next run goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError
from cellarer.ports import Store
from cellarer.vault.catchup import catch_up
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.replicas import ReplicaSet
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

FIRST = {"t": noise(1, 40_000), "s": b"text"}
SECOND = {"t": noise(1, 30_000) + noise(2, 30_000), "s": b"other", "e": b""}
THIRD = {"t": noise(2, 30_000), "u": noise(3, 5000)}

each_fault = pytest.mark.parametrize(
    "fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY]
)


@pytest.fixture(scope="module")
def founded(small_packs: None) -> tuple[Founded, dict[str, dict[str, bytes]]]:
    scene = found(replicas=2)
    return scene, {scene.backup(FIRST).session: FIRST}


def writes(method: str) -> bool:
    return method in ("create", "delete")


def faulty(scene: Founded, fault: Fault, number: int) -> tuple[ReplicaSet, Faults]:
    """The replicas, where the write of this number (over all of them) meets the fault."""
    faults = Faults(lambda n: fault if n == number else None, writes)

    def wrap(name: str, store: Objects) -> Store:
        return FaultyStore(store, faults)

    return scene.replicas(wrap), faults


def survives(act: Callable[..., object], *arguments: object) -> bool:
    """Whether it went through."""
    try:
        act(*arguments)
    except (PowerCut, CellarerError):
        return False
    return True


def _ignore(copied_bytes: int) -> None:
    """Nobody watches."""


def assert_replicas_equal(scene: Founded) -> None:
    stores = [store.objects for store in scene.stores.values()]
    assert all(objects == stores[0] for objects in stores)


@pytest.mark.long
@each_fault
@pytest.mark.parametrize(("count", "quorum"), [(2, 1), (3, 2)], ids=["1-of-2", "2-of-3"])
def test_a_backup_that_ends_anywhere(count: int, quorum: int, fault: Fault) -> None:
    original = found(count, quorum)
    earlier = {original.backup(FIRST).session: FIRST}
    for number in itertools.count():
        scene, expected = original.copy(), dict(earlier)
        replicas, faults = faulty(scene, fault, number)
        went_through = survives(scene.backup, SECOND, scene.open(replicas))
        points = all_restored(scene.open())
        new = set(points) - set(earlier)
        assert len(new) == 1 if went_through else len(new) <= 1
        expected.update(dict.fromkeys(new, SECOND))
        assert points == expected, f"after {fault} at write {number}"
        if quorum > 1:
            # A commit may be on fewer replicas than the next one needs to be up to date.
            catch_up(scene.replicas(), _ignore)
        expected[scene.backup(THIRD).session] = THIRD
        assert all_restored(scene.open()) == expected
        assert all(done.problem is None for done in catch_up(scene.replicas(), _ignore).values())
        assert_replicas_equal(scene)
        for name in scene.stores:
            assert all_restored(scene.alone(name).open()) == expected
        if faults.operations <= number:
            break
    assert went_through
    assert number >= 16


@each_fault
def test_catching_up_that_ends_anywhere(
    founded: tuple[Founded, dict[str, dict[str, bytes]]], fault: Fault
) -> None:
    original, expected = founded
    for number in itertools.count():
        scene = original.copy()
        scene.stores["c"] = Objects("c")
        replicas, faults = faulty(scene, fault, number)
        survives(catch_up, replicas, _ignore)
        assert all_restored(scene.open()) == expected
        if "format.json" in scene.stores["c"].objects:
            assert all_restored(scene.alone("c").open()) == expected
        assert all(done.problem is None for done in catch_up(scene.replicas(), _ignore).values())
        assert_replicas_equal(scene)
        if faults.operations <= number:
            break
    assert number == len(original.stores["a"].objects)


@each_fault
@pytest.mark.parametrize("number", range(3))
def test_a_proof_that_is_recorded_while_all_ends(
    founded: tuple[Founded, dict[str, dict[str, bytes]]], fault: Fault, number: int
) -> None:
    original, expected = founded
    scene = original.copy()

    def proof(name: str) -> ProofRecord:
        check = Check(name, True, "1", "1")
        return ProofRecord("p", "db", Proof.RESTORED, True, scene.now(), 0.5, (check,))

    first, second, third = proof("first"), proof("second"), proof("third")
    record_proof(scene.open(), first)
    replicas, _ = faulty(scene, fault, number)
    went_through = survives(record_proof, scene.open(replicas), second)
    found_proofs = proofs(scene.open())
    assert found_proofs in ([first, second], [first])
    assert second in found_proofs or not went_through
    record_proof(scene.open(), third)
    assert proofs(scene.open()) == [*found_proofs, third]
    assert all_restored(scene.open()) == expected


def test_a_session_without_its_commit_is_not_listed(
    founded: tuple[Founded, dict[str, dict[str, bytes]]],
) -> None:
    original, expected = founded
    scene = original.copy()
    before = set(scene.stores["a"].objects)
    committed = scene.backup(SECOND)
    assert len(set(scene.stores["a"].objects) - before) > 8
    for store in scene.stores.values():
        store.delete(f"snapshots/{committed.session}")
    assert all_restored(scene.open()) == expected
    # What the half session stored is not built upon: it may be collected at any time.
    added = scene.backup(SECOND).body["added_bytes"]
    assert isinstance(added, int)
    assert added >= 30_000
