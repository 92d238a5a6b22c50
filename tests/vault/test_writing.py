"""What is written at once: in order on each replica, and nobody waits for one that hangs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from cellarer.errors import StoreError, VaultUnreachable
from cellarer.ports import Store, Stream
from cellarer.vault import writing
from cellarer.vault.catchup import catch_up
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.writer import SnapshotWriter
from cellarer.vault.writing import Writing
from faulty import Gate
from stand_ins import Faults, FaultyStore, Founded, Objects, all_restored, found, noise

pytestmark = pytest.mark.usefixtures("small_packs")

FIRST, SECOND = {"t": noise(1, 40_000)}, {"t": noise(2, 90_000), "s": b"text"}


@pytest.fixture
def gate() -> Iterator[Gate]:
    """What an operation hangs at; it may go on when the test is over."""
    each = Gate()
    yield each
    each.opened.set()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever the quorum does not need is given up at once, and not asked again."""
    monkeypatch.setattr(writing, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(writing, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(writing, "CLOSING_SECONDS", 0.0)


def hanging(scene: Founded, name: str, gate: Gate, number: int = 0) -> ReplicaSet:
    """The replicas, one of which hangs for ever from the write of this number on."""
    faults = Faults(lambda n: gate if n >= number else None, lambda method: method == "create")

    def wrap(each: str, store: Objects) -> Store:
        return FaultyStore(store, faults) if each == name else store

    return scene.replicas(wrap)


def writing_to(*stores: Store, quorum: int = 1) -> Writing:
    replicas = [Replica(name, store) for name, store in zip("abc", stores, strict=False)]
    return Writing(ReplicaSet(replicas, quorum), replicas)


class Recording(Objects):
    """Keeps the names of what is there whenever something is added."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def create(self, key: str, data: bytes) -> None:
        self.seen[key] = set(self.objects)
        super().create(key, data)


def test_a_barrier_holds_on_each_replica() -> None:
    stores = [Recording(), Recording()]
    each = writing_to(*stores)
    for phase in range(20):
        for number in range(6):
            each.put(f"{phase}-{number}", b"x")
        each.barrier()
        each.put(f"{phase}-after", b"x")
        each.barrier()
    each.settle()
    each.close()
    for store in stores:
        expected: set[str] = set()
        for phase in range(20):
            keys = {f"{phase}-{number}" for number in range(6)}
            assert all(expected <= store.seen[key] for key in keys)
            expected |= keys
            assert store.seen[f"{phase}-after"] == expected
            expected.add(f"{phase}-after")


def test_a_barrier_holds_while_something_before_it_hangs(gate: Gate) -> None:
    store = Recording()
    each = writing_to(FaultyStore(store, Faults(lambda n: gate if n == 0 else None)))
    each.put("held", b"x")
    assert gate.reached.wait(30)
    each.put("beside", b"x")
    each.barrier()
    each.put("after", b"x")
    lane = each._lanes["a"]
    with each._changed:
        assert each._changed.wait_for(lambda: "beside" in store.seen, 30)
        assert ([upload.key for upload in lane.waiting], lane.ready) == (["after"], False)
    gate.opened.set()
    each.settle()
    each.close()
    assert store.seen["after"] == {"held", "beside"}


def test_what_waits_for_a_replica_is_bounded(
    gate: Gate, no_patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BACKLOG_BYTES", 1000)
    monkeypatch.setattr(writing, "SILENT_SECONDS", 60.0)
    other = Objects("a")
    each = writing_to(other, FaultyStore(Objects("b"), Faults(lambda n: gate)))
    for number in range(100):
        each.put(str(number), bytes(300))
        assert all(lane.backlog_bytes <= 1300 for lane in each._lanes.values())
    each.settle()
    assert len(other.objects) == 100
    assert "too slow" in str(each.failed["b"])
    # What was on its way when it was given up is all that is still held.
    assert each._lanes["b"].backlog_bytes <= 1200
    each.close()


def test_the_quorum_is_waited_for(gate: Gate, no_patience: None) -> None:
    slow = Objects("b")
    each = writing_to(
        Objects("a"), FaultyStore(slow, Faults(lambda n: gate if n == 0 else None)), quorum=2
    )
    each.put("k", b"1")
    assert gate.reached.wait(30)
    gate.opened.set()
    each.settle()
    assert (each.alive, slow.objects) == (["a", "b"], {"k": b"1"})
    each.close()


def test_what_is_no_answer_of_a_store_ends_the_session() -> None:
    class Broken(Objects):
        def create(self, key: str, data: bytes) -> None:
            raise ZeroDivisionError

    each = writing_to(Objects("a"), Broken())
    each.put("k", b"1")
    with pytest.raises(ZeroDivisionError):
        each.settle()
    each.close()


@pytest.mark.parametrize("count", [2, 3])
def test_a_replica_that_hangs_at_any_write_holds_no_backup_up(
    count: int, no_patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Enough for one that does not hang; where it is not, that one is a debt as well.
    monkeypatch.setattr(writing, "PATIENCE_SECONDS", 0.2)
    original = found(count, write_quorum=count - 1)
    first = original.backup(FIRST)
    for number in itertools.count():
        scene, gate = original.copy(), Gate()
        vault = scene.open(hanging(scene, "b", gate, number))
        commit = scene.backup(SECOND, vault)
        expected = {first.session: FIRST, commit.session: SECOND}
        for each in (scene, scene.alone("a")):
            assert all_restored(each.open()) == expected
        if "b" in commit.replicas:
            break
        assert f"snapshots/{commit.session}" not in scene.stores["b"].objects
        assert vault.replicas.away == ["b"]
        if number < 2:
            assert "does not answer" in commit.body["note"]["behind"]["b"]
        # What hung comes back late, and harms nothing.
        gate.opened.set()
        assert all(d.problem is None for d in catch_up(scene.replicas(), lambda _: None).values())
        assert all_restored(scene.alone("b").open()) == expected
    assert number >= 8


def test_no_quorum_ends_a_session_that_hangs(gate: Gate, no_patience: None) -> None:
    """The one that hangs is needed: it is waited for, and its own error ends the session."""

    class Late(FaultyStore):
        def create(self, key: str, data: bytes) -> None:
            gate.hold()
            raise StoreError("no answer within 600 seconds", retryable=True)

    scene = found(2, write_quorum=2)
    faults = Faults(lambda _: None)
    replicas = scene.replicas(lambda name, s: Late(s, faults) if name == "b" else s)
    vault = scene.open(replicas)
    gate.opened.set()
    with pytest.raises(VaultUnreachable, match="1 of 2 needed"):
        scene.backup(FIRST, vault)


def test_giving_up_does_not_wait_for_a_replica_that_hangs(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, small_packs: None
) -> None:
    monkeypatch.setattr(writing, "CLOSING_SECONDS", 0.0)
    scene = found(2)
    vault = scene.open(hanging(scene, "b", gate, 2))  # a pack: announced it is by then
    writer = SnapshotWriter(vault, "db", "test", scene.now)
    writer.add(Stream("t", "test", iter([noise(1, 300_000)]), 300_000))
    assert gate.reached.wait(30)
    writer.abandon()
    gate.opened.set()
    assert all_restored(scene.open()) == {}
