"""3-2-1-1-0 from what replicas show: what is not there whole does not count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from cellarer.domain.copies import Place
from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.flows.copies import look_at_copies
from cellarer.flows.points import survey
from cellarer.ports import Store
from cellarer.vault.ledger import record_fact, record_proof
from cellarer.vault.repair import record_damage
from stand_ins import Days, Fault, Faults, FaultyStore, Founded, Objects, flip, found
from vault.collecting import THIRD
from vault.test_locks import MONTH, LockingObjects

PLACES = {
    "a": Place("the disk sda", False, "a directory of this host"),
    "b": Place("Amazon S3", True, "Amazon S3"),
}

SCHEDULE = (None, timedelta(days=7))


def looked(
    scene: Founded, wrap: Callable[[str, Objects], Store] = lambda name, store: store
) -> dict[str, Finding]:
    vault = scene.open(scene.replicas(wrap))
    told = look_at_copies(vault, survey(vault), PLACES, (), SCHEDULE, scene.now())
    return {finding.id: finding for finding in told}


@pytest.fixture
def scene() -> Founded:
    """A point on a disk and in a bucket that locks, proven."""
    scene, clock = found(replicas=2), Days()
    scene.now = clock
    scene.stores["b"] = LockingObjects(scene.stores["b"], clock)
    point = scene.backup(THIRD).session
    check = Check("rows", True, "1", "1")
    proof = ProofRecord(point, "db", Proof.PROVEN, True, clock(), 1.0, (check,))
    record_proof(scene.open(), proof)
    return scene


def unmet(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.level != "info"}


def test_all_is_met_where_all_is_seen(scene: Founded) -> None:
    before = {name: dict(store.objects) for name, store in scene.stores.items()}
    assert unmet(looked(scene)) == set()
    assert {name: store.objects for name, store in scene.stores.items()} == before


@pytest.mark.parametrize("prefix", ["packs/", "meta/", "snapshots/", "keys/2", "sessions/"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_replica_that_lacks_something_is_no_copy(scene: Founded, prefix: str, name: str) -> None:
    store = scene.stores[name]
    for key in [key for key in store.objects if key.startswith(prefix)]:
        store.damage(key, lambda data: None)
    expected = {"copies", "copies-media"}
    expected |= {"copies-off-site", "copies-immutable"} if name == "b" else set()
    told = looked(scene)
    assert unmet(told) == expected
    assert f"{name} lacks" in told["copies"].message
    assert "cellarer sync" in told["copies"].hint


def test_a_pack_that_is_damaged_is_read_and_found(scene: Founded) -> None:
    store = scene.stores["a"]
    for key in [key for key in store.objects if key.startswith(("packs/", "meta/"))]:
        store.damage(key, flip(800))
    told = looked(scene)
    assert "does not hold the newest point of db whole" in told["copies"].message


def test_a_replica_that_does_not_answer_is_no_copy(scene: Founded) -> None:
    def wrap(name: str, store: Objects) -> Store:
        return FaultyStore(store, Faults(lambda _: Fault.REFUSE if name == "b" else None))

    assert {"copies", "copies-off-site", "copies-immutable"} <= unmet(looked(scene, wrap))


def test_locks_that_lapsed_or_are_switched_off_do_not_count(scene: Founded) -> None:
    store = scene.stores["b"]
    assert isinstance(store, LockingObjects)
    store.locking = False
    assert unmet(looked(scene)) == {"copies-immutable"}
    store.locking = True
    clock = scene.now
    assert isinstance(clock, Days)
    clock.moment += MONTH + timedelta(days=1)
    assert unmet(looked(scene)) == {"copies-immutable", "copies-errors"}


def test_a_replica_that_nobody_reads_is_an_error(scene: Founded) -> None:
    clock = scene.now
    assert isinstance(clock, Days)
    clock.moment += timedelta(days=11)
    told = looked(scene)["copies-errors"].message
    assert "a was never scrubbed wholly" in told
    fact: dict[str, object] = {
        "type": "scrub", "replica": "a", "depth": "stored", "round": 1, "through": "",
        "objects": 1, "bytes": 1, "damaged": 0, "points": [1, ""],
    }  # fmt: skip
    record_fact(scene.open(), fact, clock())
    told = looked(scene)["copies-errors"].message
    assert "a was never" not in told
    assert "b was never" in told


def test_standing_damage_and_an_old_proof_are_errors(scene: Founded) -> None:
    record_damage(scene.open(), "a", ["packs/00/00"], scene.now())
    told = looked(scene)
    assert unmet(told) == {"copies-errors"}
    assert "1 objects are damaged on a" in told["copies-errors"].message


def test_without_a_point_there_is_no_copy_but_the_product() -> None:
    scene = found(replicas=2)
    told = looked(scene)
    assert "1 of 3" in told["copies"].message
    assert "cellarer backup" in told["copies"].hint
    assert len(unmet(told)) == 5
