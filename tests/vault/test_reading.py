"""Where an object is read from: the nearest, another where that is late, and each that has it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import DamagedData, ObjectMissing, StoreError, VaultUnreachable
from cellarer.ports import ObjectInfo
from cellarer.vault import asking, fetcher
from cellarer.vault import replicas as replicas_module
from cellarer.vault.asking import Pace
from cellarer.vault.replicas import Replica, ReplicaSet
from faulty import Fault, Gate
from stand_ins import Faults, FaultyStore, Objects, all_restored, found, noise

KEY, DATA = "meta/aa/object", b"what was written"


class Seconds:
    """A clock that stands still but for what a store makes it go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Far(Objects):
    """A store whose answers take a time, by the clock of the test; it counts the reads."""

    def __init__(self, name: str, clock: Seconds, seconds: float) -> None:
        super().__init__(name, {KEY: DATA, "packs/aa/pack": DATA})
        self.clock, self.seconds, self.reads = clock, seconds, 0

    def read(self, key: str) -> bytes:
        self.reads += 1
        self.clock.now += self.seconds
        return super().read(key)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """What an answer hangs at; it comes when the test is over."""
    each = Gate()
    yield each
    each.opened.set()


@pytest.fixture
def late_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer that is not there yet is late."""
    monkeypatch.setattr(asking, "LATE_AT_FIRST_SECONDS", 0.0)


def genuine(data: bytes) -> bytes:
    if data != DATA:
        raise DamagedData("these are other bytes")
    return data


def replica_set(
    *stores: Objects | FaultyStore, clock: Callable[[], float] = lambda: 0.0
) -> ReplicaSet:
    replicas = [Replica(name, store) for name, store in zip("abc", stores, strict=False)]
    return ReplicaSet(replicas, 1, clock)


def test_alike_replicas_are_asked_in_the_order_of_the_config() -> None:
    clock = Seconds()
    stores = [Far(name, clock, seconds) for name, seconds in (("a", 0.009), ("b", 0.0001))]
    replicas = replica_set(*stores, clock=clock)
    for _ in range(50):
        replicas.fetch(KEY, genuine)
    assert [store.reads for store in stores] == [50, 0]


def test_the_nearest_replica_is_asked_first() -> None:
    clock = Seconds()
    far, near = Far("a", clock, 0.2), Far("b", clock, 0.02)
    replicas = replica_set(far, near, clock=clock)
    for _ in range(50):
        assert replicas.fetch(KEY, genuine) == DATA
    assert far.reads == 3
    assert near.reads == 47
    # One stumble says nothing; when it becomes slow the other one is the nearest again.
    near.seconds = 2.0
    for _ in range(50):
        replicas.fetch(KEY, genuine)
    assert far.reads > 20


def test_packs_and_small_objects_are_measured_apart() -> None:
    clock = Seconds()
    quick_to_answer, wide = Far("a", clock, 0.0), Far("b", clock, 0.05)
    replicas = replica_set(quick_to_answer, wide, clock=clock)
    for _ in range(20):
        replicas.fetch(KEY, genuine)
    quick_to_answer.seconds, wide.seconds = 1.0, 0.3
    for _ in range(20):
        replicas.fetch("packs/aa/pack", genuine)
    assert wide.reads == 17
    quick_to_answer.seconds = 0.0
    wide.reads = 0
    replicas.fetch(KEY, genuine)
    assert wide.reads == 0


def test_another_is_asked_beside_one_that_hangs(gate: Gate, late_at_once: None) -> None:
    hung = FaultyStore(Objects("a", {KEY: DATA}), Faults(lambda _: gate))
    replicas = replica_set(hung, Objects("b", {KEY: DATA}))
    for _ in range(20):
        assert replicas.fetch(KEY, genuine) == DATA
    assert gate.reached.is_set()
    assert (replicas.away, replicas.damaged, replicas.missing) == ([], {}, {})


def test_one_that_owes_answers_comes_last_until_it_gives_them(
    gate: Gate, late_at_once: None
) -> None:
    faults = Faults(lambda _: gate)
    replicas = replica_set(
        FaultyStore(Objects("a", {KEY: DATA}), faults), Objects("b", {KEY: DATA})
    )
    for _ in range(20):
        replicas.fetch(KEY, genuine)
    # No more threads hang than this, however much is read.
    assert faults.operations <= asking.LEFT_ALONE


def test_damage_that_comes_late_is_told_all_the_same(gate: Gate, late_at_once: None) -> None:
    bad = FaultyStore(Objects("a", {KEY: b"damaged"}), Faults(lambda _: gate))
    replicas = replica_set(bad, Objects("b", {KEY: DATA}))
    assert replicas.fetch(KEY, genuine) == DATA
    told = Told()
    replicas.damaged = told
    gate.opened.set()
    assert told.wait() == {"a": {KEY}}


class Told(dict[str, set[str]]):
    """A record that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def setdefault(self, key: str, default: set[str] | None = None) -> set[str]:
        found = super().setdefault(key, {KEY} if default is None else {KEY, *default})
        self.gate.reached.set()
        return found

    def wait(self) -> dict[str, set[str]]:
        assert self.gate.reached.wait(30)
        return dict(self)


def test_every_replica_is_asked_before_an_object_is_given_up() -> None:
    damaged = Objects("a", {KEY: b"damaged"})
    refusing = FaultyStore(Objects("b"), Faults(lambda _: Fault.REFUSE))
    whole = Objects("c", {KEY: DATA})
    replicas = replica_set(damaged, refusing, whole)
    assert replicas.fetch(KEY, genuine) == DATA
    assert (replicas.damaged, replicas.away) == ({"a": {KEY}}, ["b"])
    whole.objects.clear()
    with pytest.raises(DamagedData, match="no replica has"):
        replicas.fetch(KEY, genuine)
    del damaged.objects[KEY]
    with pytest.raises(VaultUnreachable):
        replicas.fetch(KEY, genuine)


def test_an_error_of_ours_ends_the_reading() -> None:
    def broken(data: bytes) -> bytes:
        raise ZeroDivisionError

    for count in (1, 2):
        with pytest.raises(ZeroDivisionError):
            replica_set(*[Objects("x", {KEY: DATA}) for _ in range(count)]).fetch(KEY, broken)


def test_one_that_hangs_is_not_waited_for_where_all_are_asked(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas_module, "PATIENCE_SECONDS", 0.0)
    faults = Faults(lambda _: gate)
    replicas = replica_set(FaultyStore(Objects("a"), faults), Objects("b", {KEY: DATA}))
    answers = replicas.each(lambda store: store.read(KEY))
    assert isinstance(answers["a"], StoreError)
    assert answers["b"] == DATA
    assert replicas.away == ["a"]
    for _ in range(10):
        assert list(replicas.listings("meta/")) == ["b"]
        assert replicas.fetch(KEY, genuine) == DATA
    assert faults.operations == 1


def test_a_long_listing_is_not_taken_for_a_hanging_one() -> None:
    clock = Seconds()

    class Long(Objects):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            for info in super().list(prefix):
                clock.now += 20.0
                yield info

    many = {f"meta/aa/{number}": b"" for number in range(20)}
    replicas = replica_set(Objects("a", many), Long("b", many), clock=clock)
    assert [len(found) for found in replicas.listings("meta/").values()] == [20, 20]
    assert replicas.away == []


def test_no_answer_at_all_says_what_each_said() -> None:
    with pytest.raises(DamagedData, match="missing on every replica"):
        replica_set(Objects("a"), Objects("b")).fetch(KEY, genuine)
    answers = replica_set(Objects("a"), Objects("b")).each(lambda store: store.read(KEY))
    assert all(isinstance(answer, ObjectMissing) for answer in answers.values())


def test_a_vault_is_read_while_its_first_replica_hangs(gate: Gate, late_at_once: None) -> None:
    scene = found(3)
    expected = {}
    for seed in range(3):
        contents = {"t": noise(seed, 30_000), "s": b"text"}
        expected[scene.backup(contents).session] = contents
    vault = scene.open()
    plan: list[Gate | None] = [None]
    faults = Faults(lambda _: plan[0], lambda method: method.startswith("read"))
    vault.replicas = scene.replicas(lambda n, s: FaultyStore(s, faults) if n == "a" else s)
    plan[0] = gate
    assert all_restored(vault) == expected


@given(st.lists(st.floats(0, 100), max_size=100))
def test_the_pace_knows_what_is_usual(measured: list[float]) -> None:
    pace = Pace()
    for seconds in measured:
        pace.took(seconds, large=False)
    last = measured[-32:]
    late = pace.late_after(large=False)
    if len(last) < 8:
        assert late == asking.LATE_AT_FIRST_SECONDS
    else:
        assert late >= asking.LATE_AT_LEAST_SECONDS
        assert sum(seconds > late for seconds in last) <= len(last) * 0.05
    assert pace.distance(large=True) == pace.distance(large=False)
    if len(last) >= 3 and max(last) < 0.01:
        assert pace.distance(large=False) == 0


class Meeting(Objects):
    """A store that answers for its first two packs only when both are asked for at once."""

    def __init__(self, name: str, objects: Mapping[str, bytes]) -> None:
        super().__init__(name, objects)
        self.barrier, self.reads = threading.Barrier(2), itertools.count()

    def read(self, key: str) -> bytes:
        if key.startswith("packs/") and next(self.reads) < self.barrier.parties:
            self.barrier.wait(timeout=20)
        return super().read(key)


@pytest.mark.usefixtures("small_packs")
def test_the_next_pack_is_fetched_while_one_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "WHOLE_PACK_BYTES", 1)
    scene = found()
    content = {"table": noise(1, 150_000)}
    scene.backup(content)
    meeting = Meeting("a", scene.stores["a"].objects)
    vault = scene.open(ReplicaSet([Replica("a", meeting)], 1))
    assert list(all_restored(vault).values()) == [content]
