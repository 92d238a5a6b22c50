"""Rounds of a scrub: least recently read first, opened with the identity, interrupted."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.domain.snapshot import Proof
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, ObjectLocked, UsageError
from cellarer.flows.points import list_points
from cellarer.flows.scrub import UNSTEADY
from cellarer.flows.sync import synchronise
from cellarer.ports import ObjectInfo, Stream
from cellarer.vault.collect import Collector
from cellarer.vault.ledger import entries
from cellarer.vault.repair import heal, standing_damage
from cellarer.vault.scrub import STORED, Budget
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from scrubbing import Silent, content, key_of, run, scene_of, told, writer_only
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
    truncate,
)


@pytest.fixture
def scene() -> Founded:
    return scene_of(2)


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
    honest = writer._placer._named
    writer._placer._named = lambda batch: bytes(len(honest(batch)))  # type: ignore[method-assign]
    try:
        writer.add(Stream("t", "test", iter([noise(5, 3000)]), 3000))
        writer._placer._named = honest  # type: ignore[method-assign]
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
    # Its bytes are as they were written: who only reads those settles nothing.
    standing = standing_damage(entries(scene.open()))
    assert {name: set(keys) for name, keys in standing.items()} == {n: {packs[0]} for n in "ab"}
    run(scene)
    vault = scene.open()
    synchronise(vault.replicas, vault, Silent(), scene.now)
    assert standing_damage(entries(scene.open())) == standing
    scene.backup({"t": noise(6, 3000)})
    keeper = Vault.open(scene.replicas(), None, None, scene.collect_key)
    forget(keeper, commit.session, "no rule wants it", scene.now())
    for replica in keeper.replicas.replicas:
        Collector(keeper, scene.now).collect(replica)
    run(scene)
    assert standing_damage(entries(scene.open())) == {}


def test_what_only_the_identity_can_tell_is_not_settled_without_it() -> None:
    """The form of a damaged envelope may be all right, and there is no other copy."""
    scene = found()
    scene.backup({"t": noise(1, 3000)})
    key = "keys/vault.0.age"
    opened = scene.open()
    scene.stores["a"].damage(key, flip(8 * (len(scene.stores["a"].objects[key]) - 5)))
    assert told(run(scene, vault=opened).remaining) == [("a", key)]
    for _ in range(2):
        run(scene, vault=writer_only(scene))
        assert set(standing_damage(entries(writer_only(scene)))["a"]) == {key}


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


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY])
@pytest.mark.parametrize(
    ("methods", "step"), [({"create", "delete", "list"}, 1), ({"read", "read_range"}, 5)]
)
def test_a_repair_that_ends_anywhere_is_finished_by_asking_again(
    fault: Fault, methods: set[str], step: int
) -> None:
    good = scene_of(2)
    broken = good.copy()
    broken.stores["a"].damage(key_of(good, "packs/"), flip(900))
    broken.stores["a"].damage(key_of(good, "keys/2"), lambda _: None)
    broken.stores["b"].damage(key_of(good, "snapshots/"), truncate(40))
    broken.stores["b"].damage(key_of(good, "index/"), lambda _: None)
    for number in itertools.count(0, step):
        scene = broken.copy()
        faults = Faults(
            lambda n, number=number: fault if n == number else None,  # type: ignore[misc]
            methods.__contains__,
        )
        replicas = scene.replicas(lambda name, store, faults=faults: FaultyStore(store, faults))  # type: ignore[misc]
        with contextlib.suppress(PowerCut, CellarerError):
            run(scene, vault=scene.open(replicas), repair=True)
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


class Meanwhile(Objects):
    """Something happens to the vault at the moment when a scrub has listed all of this replica."""

    def __init__(self, name: str, objects: dict[str, bytes]) -> None:
        super().__init__(name, objects)
        self.then: Callable[[], object] | None = None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        infos = super().list(prefix)
        if prefix == "" and self.then is not None:
            act, self.then = self.then, None
            act()
        return infos


def test_what_a_collector_takes_meanwhile_is_not_missing() -> None:
    scene = found()
    before = set(scene.stores["a"].objects)
    commit = scene.backup({"t": noise(1, 9000)})
    mine = set(scene.stores["a"].objects) - before
    scene.backup({"x": noise(2, 9000)}, source="other")
    store = scene.stores["a"] = Meanwhile("a", scene.stores["a"].objects)

    def collect() -> None:
        vault = scene.open()
        forget(vault, commit.session, "a test", scene.now())
        (replica,) = vault.replicas.replicas
        assert Collector(vault, scene.now).collect(replica).swept_objects

    store.then = collect
    outcome = run(scene)
    assert any(key.startswith("packs/") for key in mine - set(store.objects))
    assert (outcome.damaged, outcome.missing) == ([], [])


def test_a_backup_meanwhile_is_not_missing_anywhere(scene: Founded) -> None:
    store = scene.stores["b"] = Meanwhile("b", scene.stores["b"].objects)
    store.then = lambda: scene.backup({"t": noise(8, 9000)})
    outcome = run(scene)
    assert (outcome.damaged, outcome.missing) == ([], [])
    assert len(scene.open().commits()) == 3


def test_what_nobody_needs_is_never_brought_back(scene: Founded) -> None:
    """A collector may be deleting it, and would go on to delete what came back."""
    commit = next(c for c in scene.open().commits() if c.source == "db")
    before = set(scene.stores["a"].objects)
    other = scene.backup({"x": noise(2, 9000)}, source="other")
    pack = next(k for k in set(scene.stores["a"].objects) - before if k.startswith("packs/"))
    scene.stores["a"].damage(pack, flip(900))
    vault = scene.open()
    forget(vault, other.session, "a test", scene.now())
    damaged = scene.stores["a"].objects[pack]
    (damage,) = run(scene, repair=True).remaining
    assert (damage.object, scene.stores["a"].objects[pack]) == (pack, damaged)
    assert "no restore point needs it" in damage.obstacle
    vault = scene.open()
    for replica in vault.replicas.replicas:
        Collector(vault, scene.now).collect(replica)
    assert run(scene, repair=True).remaining == []
    assert standing_damage(entries(scene.open())) == {}
    assert commit.session in [c.session for c in scene.open().commits()]


def test_a_register_that_a_collector_closed_does_not_become_a_point_there(scene: Founded) -> None:
    """Damaged so that nobody can tell an ABORT from a COMMIT, on a replica that lacks packs."""
    last = list_points(scene.open())[0].id
    scene.stores["b"].damage(f"snapshots/{last}", truncate(30))
    lacking = next(k for k in scene.stores["b"].objects if k.startswith("packs/"))
    good = scene.stores["b"].objects.pop(lacking)
    with pytest.raises(DamagedData, match="not brought back"):
        heal(scene.open(), f"snapshots/{last}", "b")
    scene.stores["b"].objects[lacking] = good
    assert heal(scene.open(), f"snapshots/{last}", "b")


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
    assert deep.whole
    assert deep.round == 1
    facts = [e.fact for e in entries(scene.open()) if e.fact["type"] == "scrub"]
    assert [fact["depth"] for fact in facts] == [STORED, "keyed"]
    assert len(str(facts)) < 1500
