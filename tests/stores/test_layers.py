"""Patience, limits of bandwidth and of time, and replicas that only grow."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo, Store, grows_only, layers
from cellarer.stores.grow_only import GrowOnly
from cellarer.stores.memory import MemoryStore
from cellarer.stores.retrying import Patience, Retrying
from cellarer.stores.throttled import Throttled
from cellarer.stores.time_limited import HANGING_CALLS, TimeLimited
from faulty import Fault, Faults, FaultyStore, Gate


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds

    def clock(self) -> float:
        return self.seconds


def patient(inner: Store, time: Time, total_seconds: float = 60.0) -> Retrying:
    patience = Patience(total_seconds=total_seconds)
    return Retrying(inner, patience, sleep=time.sleep, clock=time.clock, chance=lambda: 0.5)


def faulty(inner: Store, *fates: Fault | None) -> FaultyStore:
    """The operations meet these fates, then none."""
    planned = dict(enumerate(fates))
    return FaultyStore(inner, Faults(planned.get))


# -------------------------------------------------------------------------------------- patience


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.LOSE_REPLY])
def test_an_outage_is_waited_for(fault: Fault) -> None:
    memory, time = MemoryStore(), Time()
    store = patient(faulty(memory, None, fault, fault, fault), time)
    store.create("one", b"content")
    store.create("two", b"content")
    assert memory.read("two") == b"content"
    assert time.pauses == [0.375, 0.75, 1.5]
    assert store.url == memory.url


def test_everything_is_tried_again() -> None:
    memory = MemoryStore()
    memory.create("one", b"content")
    acts: list[Callable[[Store], object]] = [
        lambda store: store.read("one"),
        lambda store: store.read_range("one", 1, 2),
        lambda store: [info.key for info in store.list("")],
        lambda store: store.create("one", b"content"),
        lambda store: store.delete("two"),
    ]
    for act in acts:
        store = patient(faulty(memory, None, Fault.REFUSE), Time())
        store.create("one", b"content")
        assert act(store) == act(memory)


def test_what_cannot_succeed_is_not_tried_again() -> None:
    memory, time = MemoryStore(), Time()
    faults = Faults(lambda number: None)
    store = patient(FaultyStore(memory, faults), time)
    store.create("one", b"content")
    with pytest.raises(ObjectExists):
        store.create("one", b"another")
    with pytest.raises(ObjectMissing):
        store.read("none")
    with pytest.raises(DamagedData):
        store.read_range("one", 0, 100)
    with pytest.raises(StoreError, match="name of an object"):
        store.read("../one")
    assert time.pauses == []
    assert faults.operations == 5


def test_a_store_that_never_answered_is_not_waited_for() -> None:
    time = Time()
    store = patient(FaultyStore(MemoryStore(), Faults(lambda number: Fault.REFUSE)), time)
    with pytest.raises(StoreError):
        store.read("one")
    assert time.pauses == []


def test_patience_ends_and_is_not_spent_twice() -> None:
    time = Time()
    store = patient(
        FaultyStore(MemoryStore(), Faults(lambda number: Fault.REFUSE if number else None)), time
    )
    store.create("one", b"")
    with pytest.raises(StoreError):
        store.read("one")
    assert 40 < time.seconds <= 60
    before = time.seconds
    with pytest.raises(StoreError):
        store.read("one")
    assert time.seconds == before


def test_a_refusal_is_an_answer_too() -> None:
    """Whoever says that an object is missing is there, and will be again."""
    memory, time = MemoryStore(), Time()
    store = patient(faulty(memory, None, Fault.REFUSE), time)
    with pytest.raises(ObjectMissing):
        store.read("one")
    store.create("one", b"content")
    assert time.pauses == [0.375]


class BreakingOff(MemoryStore):
    """Its listings break off after some names, as often as is planned."""

    def __init__(self, breaks: list[int]) -> None:
        super().__init__()
        self.breaks = breaks

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if not self.breaks:
            yield from super().list(prefix)
            return
        yield from itertools.islice(super().list(prefix), self.breaks.pop(0))
        raise StoreError("the listing broke off", retryable=True)


@given(st.lists(st.integers(0, 12), max_size=4), st.integers(0, 10))
def test_a_listing_that_broke_off_goes_on_where_it_was(breaks: list[int], names: int) -> None:
    memory = BreakingOff(breaks)
    for number in range(names):
        memory.create(f"many/{number}", b"")
    store = patient(memory, Time(), total_seconds=1000)
    store.create("other", b"")
    assert [info.key for info in store.list("many/")] == [f"many/{n}" for n in range(names)]


@given(st.integers(0, 2000), st.floats(0, 1))
def test_a_pause_has_bounds(attempt: int, chance: float) -> None:
    patience = Patience()
    pause = patience.pause(attempt, chance)
    assert patience.first_pause_seconds / 2 <= pause <= patience.longest_pause_seconds


# ------------------------------------------------------------------------------------- bandwidth


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_no_more_goes_through_than_is_allowed(sizes: list[int]) -> None:
    time = Time()
    store = Throttled(MemoryStore(), 1000, sleep=time.sleep, clock=time.clock)
    for number, size_bytes in enumerate(sizes):
        store.create(f"up/{number}", bytes(size_bytes))
        # One second's worth is there from the beginning; nothing is waited for beyond need.
        assert sum(sizes[: number + 1]) <= 1000 * (time.seconds + 1) + 0.01
    assert time.seconds == pytest.approx(max(0, sum(sizes) - 1000) / 1000)


def test_both_ways_are_counted_each() -> None:
    time = Time()
    store = Throttled(MemoryStore(), 1000, sleep=time.sleep, clock=time.clock)
    store.create("one", bytes(1000))
    assert store.read("one") == bytes(1000)
    assert time.pauses == []
    assert store.read("one") == bytes(1000)
    assert store.read_range("one", 0, 500) == bytes(500)
    assert time.pauses == [1.0, 0.5]
    assert [info.key for info in store.list("")] == ["one"]
    store.delete("one")
    assert list(store.list("")) == []


def test_time_without_use_is_not_saved_up() -> None:
    time = Time()
    store = Throttled(MemoryStore(), 1000, sleep=time.sleep, clock=time.clock)
    time.seconds = 3600.0
    store.create("one", bytes(3000))
    assert time.pauses == [2.0]


# ------------------------------------------------------------------------------------------ time


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def test_a_call_that_hangs_ends_and_may_take_effect_later(gate: Gate) -> None:
    memory = MemoryStore()
    store = TimeLimited(FaultyStore(memory, Faults({0: gate}.get)), 0.05)
    with pytest.raises(StoreError) as caught:
        store.create("one", b"content")
    assert gate.reached.is_set()
    assert caught.value.retryable
    assert "no answer within" in caught.value.detail
    assert "mount" in caught.value.hint
    with pytest.raises(ObjectMissing):
        store.read("one")
    hanging = [thread for thread in threading.enumerate() if thread.name == "store-call"]
    gate.opened.set()
    for thread in hanging:
        thread.join()
    assert memory.read("one") == b"content"
    store.create("one", b"content")


def test_hanging_calls_do_not_pile_up(gate: Gate) -> None:
    faults = Faults(lambda number: gate)
    store = TimeLimited(FaultyStore(MemoryStore(), faults), 0.01)
    for _ in range(HANGING_CALLS + 3):
        with pytest.raises(StoreError) as caught:
            store.read("one")
    assert "still hang" in caught.value.detail
    assert caught.value.retryable
    assert faults.operations == HANGING_CALLS
    hanging = [thread for thread in threading.enumerate() if thread.name == "store-call"]
    gate.opened.set()
    for thread in hanging:
        thread.join()
    with pytest.raises(ObjectMissing):
        store.read("one")


def test_a_listing_that_hangs_ends(gate: Gate) -> None:
    store = TimeLimited(HangingListing(gate), 0.05)
    with pytest.raises(StoreError) as caught:
        list(store.list(""))
    assert "cannot be listed" in caught.value.message


class HangingListing(MemoryStore):
    """Its listing stops in the middle."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield ObjectInfo("one", 0)
        self.gate.hold()


def test_patience_goes_with_a_time_limit(gate: Gate) -> None:
    """A call that hung is tried again, and what it did in between is no conflict."""
    memory, time = MemoryStore(), Time()
    faults = Faults({1: gate}.get)
    store = patient(TimeLimited(FaultyStore(memory, faults), 0.05), time)
    store.create("one", b"content")
    store.create("two", b"content")
    assert faults.operations == 3
    assert memory.read("two") == b"content"


READING = """
import sys
from datetime import timedelta
from cellarer.errors import StoreError
from cellarer.stores import open_layered
from cellarer.stores.settings import StoreSettings
store = open_layered(sys.argv[1], {}, StoreSettings(timeout=timedelta(seconds=0.2)))
try:
    store.read("one")
except StoreError as error:
    sys.exit(error.hint)
"""


def test_a_file_system_that_hangs_holds_no_process(tmp_path: Path) -> None:
    """A pipe that nobody writes to is a file whose opening waits in the kernel without end."""
    os.mkfifo(tmp_path / "one")
    source = Path(__file__).parents[2] / "src"
    ended = subprocess.run(
        [sys.executable, "-c", READING, tmp_path.as_uri()],
        env={**os.environ, "PYTHONPATH": str(source)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "network mount" in ended.stderr


# -------------------------------------------------------------------------------------- grow-only


def test_a_replica_that_only_grows_takes_and_gives() -> None:
    store = GrowOnly(MemoryStore())
    store.create("packs/one", b"content")
    store.create("packs/one", b"content")
    assert store.read("packs/one") == b"content"
    assert store.read_range("packs/one", 3, 4) == b"tent"
    assert [info.key for info in store.list("packs/")] == ["packs/one"]


def test_a_replica_that_only_grows_is_not_collected() -> None:
    store = GrowOnly(MemoryStore())
    store.create("packs/one", b"content")
    with pytest.raises(StoreError) as refused:
        store.delete("packs/one")
    assert "grow_only" in refused.value.hint
    assert not refused.value.retryable
    with pytest.raises(StoreError):
        store.create("collections/1/begin", b"")
    assert [info.key for info in store.list("")] == ["packs/one"]


def test_what_overwrites_is_kept_from_overwriting(lying: Store) -> None:
    store = GrowOnly(lying)
    store.create("one", b"first")
    with pytest.raises(ObjectExists):
        store.create("one", b"second")
    assert store.read("one") == b"first"


def test_whether_a_store_only_grows_is_seen_through_its_layers() -> None:
    memory = MemoryStore()
    assert not grows_only(memory)
    assert not grows_only(Retrying(memory))
    store = Throttled(GrowOnly(Retrying(memory)), 1000)
    assert grows_only(store)
    assert [*layers(store)][-1] is memory


def test_layers_keep_what_a_store_promises(memory: Store) -> None:
    """Eight who create at once, through all layers at once."""
    store = Retrying(Throttled(TimeLimited(memory, 60), 10**9))
    barrier = threading.Barrier(8)

    def race(number: int) -> int | None:
        barrier.wait()
        try:
            store.create("race", bytes([number]))
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [number for number in pool.map(race, range(8)) if number is not None]
    assert store.read("race") == bytes([winner])
