"""Scrubbing finds whatever is not as it was written, heals it, and says what is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.domain.snapshot import Proof
from cellarer.errors import KeyUnusable, ObjectLocked, UsageError
from cellarer.flows.points import list_points, survey
from cellarer.flows.scrub import UNSTEADY, Scrubbed, Wanted, scrub
from cellarer.flows.verify import verify
from cellarer.ports import ObjectInfo, Stream
from cellarer.vault.ledger import entries
from cellarer.vault.repair import standing_damage
from cellarer.vault.scrub import STORED, Budget, last_whole
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    PowerCut,
    flip,
    found,
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
FIRST = {"t": noise(1, 40_000), "u": b"small"}
SECOND = {"t": noise(1, 40_000) + noise(2, 9_000), "v": noise(3, 20_000)}


class Silent:
    def begin(self, title: str, total_bytes: int | None) -> None: ...
    def advance(self, read_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


def scene_of(replicas: int) -> Founded:
    made = found(replicas=replicas)
    made.backup(FIRST)
    made.backup(SECOND)
    vault = made.open()
    verify(vault, list_points(vault)[0], Proof.SCRUBBED, None, Silent(), made.now)
    return made


@pytest.fixture
def scene() -> Founded:
    return scene_of(2)


def writer_only(scene: Founded) -> Vault:
    return Vault.open(scene.replicas(), scene.write_key, None)


def run(
    scene: Founded,
    *,
    vault: Vault | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    **how: Any,
) -> Scrubbed:
    return scrub(vault or scene.open(), Wanted(**how), Silent(), scene.now, clock)


def key_of(scene: Founded, kind: str) -> str:
    return next(key for key in sorted(scene.stores["a"].objects) if key.startswith(kind))


def told(damages: Collection[object]) -> list[tuple[str, str]]:
    return [(damage.replica, damage.object) for damage in damages]  # type: ignore[attr-defined]


def content(scene: Founded, name: str) -> dict[str, bytes]:
    """What a replica holds, without the ledger, which grows."""
    objects = scene.stores[name].objects
    return {key: data for key, data in objects.items() if not key.startswith("ledger/")}


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_vault_is_found_whole(scene: Founded, deep: bool) -> None:
    before = dict(scene.stores["a"].objects)
    outcome = run(scene, deep=deep)
    assert outcome.remaining == [] and outcome.lost == []
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
    outcome = run(scene)
    where = outcome.missing if how == "lost" else outcome.damaged
    assert told(where) == [("b", key)] == told(outcome.remaining)
    assert outcome.lost == []
    assert list(standing_damage(entries(scene.open()))["b"]) == [key]
    outcome = run(scene, repair=True)
    assert told(outcome.repaired) == [("b", key)] and outcome.remaining == []
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
    assert told(run(scene).damaged) == [("a", one), ("a", other)]
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


def test_two_damaged_copies_of_a_pack_may_still_hold_every_record(scene: Founded) -> None:
    pack = max(
        (key for key in scene.stores["a"].objects if key.startswith("packs/")),
        key=lambda key: len(scene.stores["a"].objects[key]),
    )
    size = len(scene.stores["a"].objects[pack])
    scene.stores["a"].damage(pack, flip(0))  # of its magic, which no restore reads
    scene.stores["b"].damage(pack, flip((size - 1) * 8))
    outcome = run(scene, repair=True)
    assert told(outcome.remaining) == [("a", pack), ("b", pack)]
    assert outcome.lost == []
    assert not any(point.failed for point in list_points(scene.open()))


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


def test_a_deep_scrub_raises_the_points_that_it_read_whole(scene: Founded) -> None:
    before = {point.id: point.proof for point in list_points(scene.open())}
    assert Proof.STORED in before.values()
    outcome = run(scene, deep=True)
    assert {point.proof for point in list_points(scene.open())} == {Proof.SCRUBBED}
    assert outcome.raised == [point for point, proof in before.items() if proof is Proof.STORED]
    assert run(scene, deep=True).raised == []


def test_scrubbing_without_the_identity_proves_no_point(scene: Founded) -> None:
    before = {point.id: point.proof for point in list_points(scene.open())}
    run(scene, vault=writer_only(scene))
    run(scene)
    assert {point.id: point.proof for point in list_points(scene.open())} == before
    with pytest.raises(KeyUnusable):
        run(scene, vault=writer_only(scene), deep=True)


def test_a_point_that_came_during_a_round_is_not_raised_by_it(scene: Founded) -> None:
    run(scene, replicas=["a"], deep=True, budget=Budget(bytes=1))
    late = scene.backup({"w": noise(11, 9000)})
    while not run(scene, replicas=["a"], deep=True, budget=Budget(bytes=30_000)).replicas[0].whole:
        continue
    proofs = {point.id: point.proof for point in list_points(scene.open())}
    assert proofs.pop(late.session) is Proof.STORED
    assert set(proofs.values()) == {Proof.SCRUBBED}


def test_a_record_that_is_sealed_wrongly_is_found_only_deep() -> None:
    """A pack as it was written, by a writer that named a chunk for what it is not."""
    scene = found(replicas=2)
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    honest = writer._named
    writer._named = lambda batch: bytes(len(honest(batch)))  # type: ignore[method-assign]
    try:
        writer.add(Stream("t", "test", iter([noise(5, 3000)]), 3000))
        writer._named = honest  # type: ignore[method-assign]
        commit = writer.commit()
    finally:
        writer.abandon()
    assert run(scene).remaining == []
    outcome = run(scene, deep=True, repair=True)
    packs = [key for key in scene.stores["a"].objects if key.startswith("packs/")]
    assert set(told(outcome.remaining)) == {(name, packs[0]) for name in "ab"}
    assert [(loss.point, loss.paths) for loss in outcome.lost] == [(commit.session, ("t",))]
    assert list_points(scene.open())[0].failed
    assert outcome.raised == []


class Recording(Objects):
    """Remembers which packs were read whole."""

    def __init__(self, name: str, objects: dict[str, bytes]) -> None:
        super().__init__(name, objects)
        self.seen: list[str] = []

    def read(self, key: str) -> bytes:
        self.seen.append(key)
        return super().read(key)


FILLED = scene_of(1)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_object_is_read_once_a_round_whatever_the_budget(data: st.DataObject) -> None:
    scene = FILLED.copy()
    store = Recording("a", scene.stores["a"].objects)
    scene.stores["a"] = store
    packs = [k for k in store.objects if k.startswith(("packs/", "meta/", "snapshots/"))]
    for number in (1, 2):
        whole, read = False, []
        while not whole:
            ticks = itertools.count()
            limit = data.draw(st.none() | st.integers(1, 40_000))
            seconds = data.draw(st.none() | st.integers(1, 30))
            vault = scene.open()
            store.seen.clear()
            (replica,) = run(
                scene,
                vault=vault,
                budget=Budget(limit, seconds),
                share=data.draw(st.sampled_from([1.0, 0.3])),
                clock=lambda ticks=ticks: float(next(ticks)),  # type: ignore[misc]
            ).replicas
            assert replica.round == number
            assert replica.objects >= 1 or replica.whole
            read += [key for key in store.seen if key.startswith("packs/")]
            whole = replica.whole
        assert sorted(read) == sorted(k for k in packs if k.startswith("packs/"))


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_a_repair_that_ends_anywhere_is_finished_by_asking_again(fault: Fault) -> None:
    good = scene_of(2)
    broken = good.copy()
    broken.stores["a"].damage(key_of(good, "packs/"), flip(900))
    broken.stores["a"].damage(key_of(good, "keys/2"), lambda _: None)
    broken.stores["b"].damage(key_of(good, "snapshots/"), truncate(40))
    broken.stores["b"].damage(key_of(good, "index/"), lambda _: None)
    for number in itertools.count():
        scene = broken.copy()
        faults = Faults(
            lambda n, number=number: fault if n == number else None,  # type: ignore[misc]
            lambda method: method in ("create", "delete", "list"),
        )
        replicas = scene.replicas(lambda name, store, faults=faults: FaultyStore(store, faults))  # type: ignore[misc]
        try:
            run(scene, vault=scene.open(replicas), repair=True)
        except PowerCut:
            pass
        assert run(scene, repair=True).remaining == []
        for name in "ab":
            assert content(scene, name) == content(good, name)
        assert standing_damage(entries(scene.open())) == {}
        if faults.operations <= number:
            break
    assert number > 20


class Fickle(Objects):
    """Gives a pack's bytes damaged the first time and whole the next."""

    def __init__(self, name: str, objects: dict[str, bytes], fickle: str) -> None:
        super().__init__(name, objects)
        self.fickle, self.reads = fickle, 0

    def read(self, key: str) -> bytes:
        data = super().read(key)
        if key == self.fickle:
            self.reads += 1
            return flip(900)(data) if self.reads % 2 else data
        return data


@pytest.mark.parametrize("deep", [False, True])
def test_a_store_that_changes_its_mind_is_told_of(scene: Founded, deep: bool) -> None:
    pack = key_of(scene, "packs/")
    scene.stores["a"] = Fickle("a", scene.stores["a"].objects, pack)
    outcome = run(scene, deep=deep)
    assert [(d.replica, d.object, d.reason) for d in outcome.remaining] == [("a", pack, UNSTEADY)]
    assert outcome.lost == []


class Locked(Objects):
    def delete(self, key: str) -> None:
        raise ObjectLocked(f"{key} cannot be deleted", detail="it is locked until 2027-01-01")


def test_a_locked_object_is_left_and_told_of(scene: Founded) -> None:
    pack = key_of(scene, "packs/")
    scene.stores["a"] = Locked("a", scene.stores["a"].objects)
    scene.stores["a"].damage(pack, flip(900))
    (damage,) = run(scene, repair=True).remaining
    assert (damage.replica, damage.object) == ("a", pack)
    assert "locked until 2027-01-01" in damage.obstacle


class Vanishing(Objects):
    """A collector takes a session's objects while they are being read."""

    def __init__(self, name: str, objects: dict[str, bytes], session: str, going: str) -> None:
        super().__init__(name, objects)
        self.session, self.going = session, going

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        infos = list(super().list(prefix))
        if prefix == "":
            self.objects.pop(self.going, None)
            self.objects.pop(f"snapshots/{self.session}", None)
        return iter(infos)


def test_what_a_collector_takes_meanwhile_is_not_missing() -> None:
    scene = found()
    before = set(scene.stores["a"].objects)
    commit = scene.backup({"t": noise(1, 9000)})
    pack = next(k for k in set(scene.stores["a"].objects) - before if k.startswith("packs/"))
    scene.backup({"x": noise(2, 9000)}, source="other")
    scene.stores["a"] = Vanishing("a", scene.stores["a"].objects, commit.session, pack)
    outcome = run(scene)
    assert (outcome.damaged, outcome.missing) == ([], [])


def test_a_replica_that_holds_no_vault_is_a_problem_and_no_damage(scene: Founded) -> None:
    scene.stores["b"] = Objects("b")
    outcome = run(scene)
    assert outcome.remaining == []
    assert [replica.problem is None for replica in outcome.replicas] == [True, False]
    with pytest.raises(UsageError, match="there is no replica c"):
        run(scene, replicas=["c"])


def test_the_depth_of_a_round_is_its_own(scene: Founded) -> None:
    run(scene, replicas=["a"], budget=Budget(bytes=1))
    (deep,) = run(scene, replicas=["a"], deep=True).replicas
    assert deep.whole and deep.round == 1
    facts = [e.fact for e in entries(scene.open()) if e.fact["type"] == "scrub"]
    assert [fact["depth"] for fact in facts] == [STORED, "keyed"]
    assert len(str(facts)) < 1500
