"""Scrubbing finds whatever is not as it was written, heals it, and says what is lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import KeyUnusable
from cellarer.flows.points import list_points, survey
from cellarer.flows.sync import synchronise
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import entries, record_proof
from cellarer.vault.repair import standing_damage
from cellarer.vault.scrub import last_whole
from cellarer.vault.vault import Vault
from scrubbing import (
    FIRST,
    SECOND,
    Silent,
    content,
    key_of,
    run,
    scene_of,
    told,
    writer_only,
)
from stand_ins import (
    Founded,
    flip,
    noise,
    restored,
    truncate,
)

KINDS = (
    "format.json",
    "rescue.py",
    "config/",
    "keys/2",
    "keys/vault",
    "sessions/",
    "snapshots/",
    "index/",
    "packs/",
    "meta/",
    "ledger/",
)


@pytest.fixture
def scene() -> Founded:
    return scene_of(2)


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_vault_is_found_whole(scene: Founded, deep: bool) -> None:
    before = dict(scene.stores["a"].objects)
    outcome = run(scene, deep=deep)
    assert outcome.remaining == []
    assert outcome.lost == []
    assert [(r.whole, r.problem) for r in outcome.replicas] == [(True, None)] * 2
    assert outcome.replicas[0].objects == len(before)
    assert outcome.replicas[0].bytes == sum(map(len, before.values()))
    assert last_whole(entries(scene.open()), "a", scene.now()) is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["flipped", "cut short", "lost"])
def test_every_kind_of_object_is_found_and_healed(scene: Founded, kind: str, how: str) -> None:
    key, good = key_of(scene, kind), scene.copy()
    size = len(scene.stores["b"].objects[key])
    # In plain text a flipped bit may leave something that could be meant.
    plain = kind in ("format.json", "rescue.py")
    flipped = (lambda data: b"(" + data[1:]) if plain else flip(size * 4)
    change = {"flipped": flipped, "cut short": truncate(size // 2), "lost": lambda _: None}[how]
    scene.stores["b"].damage(key, change)
    if (kind, how) == ("ledger/", "lost"):
        # It may never have been there: whoever wrote it did not need this replica.
        outcome = run(scene, repair=True)
        assert (outcome.remaining, outcome.replicas[1].owed) == ([], 1)
        synchronise(scene.replicas(), scene.open(), Silent(), scene.now)
        assert run(scene).replicas[1].owed == 0
        assert scene.stores["b"].objects.items() >= good.stores["b"].objects.items()
        return
    outcome = run(scene)
    where = outcome.missing if how == "lost" else outcome.damaged
    assert told(where) == [("b", key)] == told(outcome.remaining)
    assert outcome.lost == []
    assert list(standing_damage(entries(scene.open()))["b"]) == [key]
    outcome = run(scene, repair=True)
    assert told(outcome.repaired) == [("b", key)]
    assert outcome.remaining == []
    assert content(scene, "b") == content(good, "b")
    assert scene.stores["b"].objects.items() >= good.stores["b"].objects.items()
    assert standing_damage(entries(scene.open())) == {}
    assert run(scene, repair=True).repaired == []


def test_listings_alone_tell_what_is_missing_or_cut_short(scene: Founded) -> None:
    pack, segment = key_of(scene, "packs/"), key_of(scene, "index/")
    scene.stores["a"].damage(pack, truncate(1000))
    scene.stores["b"].damage(segment, lambda _: None)
    outcome = run(scene, share=0.0)
    assert told(outcome.damaged) == [("a", pack)]
    assert told(outcome.missing) == [("b", segment)]
    assert all(replica.objects == 0 for replica in outcome.replicas)


@pytest.mark.parametrize("kind", ["packs/", "meta/", "keys/2", "sessions/"])
def test_objects_with_swapped_names_are_found(scene: Founded, kind: str) -> None:
    one, other = [key for key in sorted(scene.stores["a"].objects) if key.startswith(kind)][:2]
    objects, good = scene.stores["a"].objects, scene.copy()
    objects[one], objects[other] = objects[other], objects[one]
    # One that cannot be so long is found first, by the listing.
    assert sorted(told(run(scene).damaged)) == [("a", one), ("a", other)]
    run(scene, repair=True)
    assert content(scene, "a") == content(good, "a")


def test_a_replica_that_is_behind_misses_nothing(scene: Founded) -> None:
    b = scene.stores["b"]
    newest = list_points(scene.open())[0].id
    objects = dict(scene.stores["a"].objects)
    del scene.stores["b"]
    scene.backup({"w": noise(9, 5000)})
    scene.stores["b"] = b
    outcome = run(scene)
    assert outcome.damaged == []
    assert all(damage.object.startswith("ledger/") for damage in outcome.missing)
    assert newest in [point.id for point in list_points(scene.open())]
    assert objects.items() <= scene.stores["a"].objects.items()


@pytest.mark.parametrize("identity", [True, False])
def test_what_no_replica_has_is_named_and_loses_its_proof(scene: Founded, identity: bool) -> None:
    scene.backup({"other": noise(7, 30_000)}, source="files")
    pack = next(
        key
        for key in scene.stores["a"].objects
        if key.startswith("packs/") and len(scene.stores["a"].objects[key]) > 36_000
    )
    for store in scene.stores.values():
        store.damage(pack, flip(20_000 * 8))
    run(scene, vault=None if identity else writer_only(scene), repair=True)
    outcome = run(scene, vault=None if identity else writer_only(scene), repair=True)
    assert told(outcome.remaining) == [("a", pack), ("b", pack)]
    points = [point for point in list_points(scene.open()) if point.source == "db"]
    assert {loss.point for loss in outcome.lost} == {point.id for point in points}
    assert {loss.source for loss in outcome.lost} == {"db"}
    # The small stream of the first point shares a record with the other.
    assert {loss.paths for loss in outcome.lost} == ({("t",), ("t", "u")} if identity else {()})
    assert all(point.failed and point.proof is Proof.STORED for point in points)
    others = [point for point in list_points(scene.open()) if point.source == "files"]
    assert not any(point.failed for point in others)
    # Told once: a fact for each point, however often it is found.
    failed = [record for record in survey(scene.open()).proofs if not record.passed]
    assert len(failed) == 2
    # And nothing is built upon it.
    fresh = scene.backup(FIRST)
    assert fresh.body["added_bytes"] >= sum(map(len, FIRST.values()))
    assert restored(scene.open(), fresh) == FIRST
    assert scene.backup(FIRST).body["added_bytes"] == 0


def test_copies_damaged_at_different_places_make_a_whole_one_without_the_identity(
    scene: Founded,
) -> None:
    pack = largest_pack(scene)
    good = scene.stores["a"].objects[pack]
    scene.stores["a"].damage(pack, flip(0))
    scene.stores["b"].damage(pack, flip((len(good) - 1) * 8))
    found = run(scene, vault=writer_only(scene))
    assert found.lost == []
    assert not any(point.failed for point in list_points(scene.open()))
    healed = run(scene, vault=writer_only(scene), repair=True)
    assert sorted(told(healed.repaired)) == [("a", pack), ("b", pack)]
    assert healed.remaining == []
    assert scene.stores["a"].objects[pack] == scene.stores["b"].objects[pack] == good


@pytest.mark.parametrize("kind", ["keys/2", "snapshots/", "index/", "meta/", "ledger/"])
def test_a_small_object_is_put_together_from_two_flipped_bits_apart(
    scene: Founded, kind: str
) -> None:
    key, good = key_of(scene, kind), scene.copy()
    size = len(scene.stores["a"].objects[key])
    scene.stores["a"].damage(key, flip(size // 4 * 8))
    scene.stores["b"].damage(key, flip(size // 4 * 3 * 8))
    assert run(scene, repair=True).remaining == []
    for name in "ab":
        assert content(scene, name) == content(good, name)


@pytest.mark.parametrize("change", [(b"2026", b"2036"), (b"created", b"cbeated")])
def test_a_marker_that_says_something_else_is_found_and_not_spread(
    scene: Founded, change: tuple[bytes, bytes]
) -> None:
    good = scene.stores["b"].objects["format.json"]
    scene.stores["a"].objects["format.json"] = good.replace(*change)
    scene.stores["b"].damage("format.json", lambda _: None)
    assert ("a", "format.json") in told(run(scene, repair=True).remaining)
    assert "format.json" not in scene.stores["b"].objects
    scene.stores["b"].objects["format.json"] = good
    assert told(run(scene, repair=True).repaired) == [("a", "format.json")]
    assert scene.stores["a"].objects["format.json"] == good


def test_a_point_that_a_replica_was_never_shown_is_owed_and_not_missing(scene: Founded) -> None:
    newest = max(key for key in scene.stores["b"].objects if key.startswith("snapshots/"))
    scene.stores["b"].damage(newest, lambda _: None)
    outcome = run(scene, repair=True)
    assert outcome.remaining == []
    assert {replica.name: replica.owed for replica in outcome.replicas} == {"a": 0, "b": 1}


@pytest.mark.parametrize("with_write_key", [True, False])
def test_an_identity_that_nothing_is_sealed_to_finds_no_damage(
    scene: Founded, with_write_key: bool
) -> None:
    stranger = Identity.generate()
    before = scene.copy()
    key = scene.write_key if with_write_key else None
    with pytest.raises(KeyUnusable):
        run(scene, vault=Vault.open(scene.replicas(), key, stranger), deep=True)
    assert scene.stores["a"].objects == before.stores["a"].objects


def unjoinable(scene: Founded, pack: str) -> None:
    """Damage both copies of a pack where no restore reads, and at one place both."""
    size = len(scene.stores["a"].objects[pack])
    scene.stores["a"].damage(pack, flip(0))  # of its magic
    scene.stores["b"].damage(pack, flip(1))
    scene.stores["b"].damage(pack, flip((size - 1) * 8))


def largest_pack(scene: Founded) -> str:
    objects = scene.stores["a"].objects
    return max((key for key in objects if key.startswith("packs/")), key=lambda k: len(objects[k]))


def test_two_damaged_copies_of_a_pack_may_still_hold_every_record(scene: Founded) -> None:
    pack = largest_pack(scene)
    unjoinable(scene, pack)
    outcome = run(scene, repair=True)
    assert told(outcome.remaining) == [("a", pack), ("b", pack)]
    assert outcome.lost == []
    assert not any(point.failed for point in list_points(scene.open()))


def test_without_the_identity_such_a_point_is_in_doubt_until_somebody_can_tell(
    scene: Founded,
) -> None:
    pack = largest_pack(scene)
    unjoinable(scene, pack)
    outcome = run(scene, vault=writer_only(scene), repair=True)
    assert {(loss.objects, loss.paths) for loss in outcome.lost} == {((pack,), ())}
    assert all(point.failed for point in list_points(scene.open()))


def test_a_writer_builds_on_nothing_that_is_damaged_on_a_replica_it_writes_to(
    scene: Founded,
) -> None:
    scene.stores["b"].damage(key_of(scene, "packs/"), flip(8000))
    run(scene)
    commit = scene.backup(SECOND)
    assert commit.body["added_bytes"] > 0
    alone = scene.alone("b").open()
    assert commit.session in [c.session for c in alone.commits()]
    run(scene, repair=True)
    assert scene.backup(SECOND).body["added_bytes"] == 0


@pytest.mark.parametrize("days", [-30, 0, 30])
def test_what_was_made_before_damage_was_known_is_not_built_upon(scene: Founded, days: int) -> None:
    """It goes by what the ledger held when it was made, whatever the clocks say."""
    vault = scene.open()
    point, time = list_points(vault)[0], scene.now() + timedelta(days=days)
    check = Check("a test", False, "", "")
    record_proof(vault, ProofRecord(point.id, "db", Proof.STORED, False, time, 0.0, (check,)))
    assert scene.backup(SECOND).body["added_bytes"] >= sum(map(len, SECOND.values()))
    assert scene.backup(SECOND).body["added_bytes"] == 0
