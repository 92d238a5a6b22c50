"""The tool that makes stores fail does what it says: else every crash sweep passes for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cellarer.errors import ObjectMissing, StoreError
from cellarer.stores.local import LocalStore
from cellarer.stores.memory import MemoryStore
from faulty import Fate, Fault, Faults, FaultyStore, Gate, PowerCut


def meeting(fate: Fate) -> tuple[MemoryStore, FaultyStore]:
    """A store with two objects, whose next operation meets this fate."""
    memory = MemoryStore()
    memory.create("a/one", b"first")
    memory.create("a/two", b"other")
    return memory, FaultyStore(memory, Faults({0: fate}.get))


@pytest.mark.parametrize(
    ("fate", "raised", "stored"),
    [
        (Fault.REFUSE, StoreError, False),
        (Fault.LOSE_REPLY, StoreError, True),
        (Fault.CRASH_BEFORE, PowerCut, False),
        (Fault.CRASH_AFTER, PowerCut, True),
    ],
)
def test_failing_before_and_after_the_effect(
    fate: Fault, raised: type[BaseException], stored: bool
) -> None:
    memory, store = meeting(fate)
    with pytest.raises(raised):
        store.create("b", b"content")
    assert ("b" in {info.key for info in memory.list("")}) is stored


def test_nothing_works_after_a_power_cut() -> None:
    _, store = meeting(Fault.CRASH_BEFORE)
    for _ in range(3):
        with pytest.raises(PowerCut):
            store.read("a/one")


def test_reads_that_are_damaged() -> None:
    assert meeting(Fault.FLIP_BIT)[1].read("a/one") == b"fisst"
    assert meeting(Fault.FLIP_BIT)[1].read_range("a/one", 0, 1) == b"g"
    assert meeting(Fault.TRUNCATE)[1].read("a/one") == b"fi"


def test_listings_that_mislead() -> None:
    keys = ["a/one", "a/two"]
    assert [info.key for info in meeting(Fault.LIST_REORDERED)[1].list("")] == keys[::-1]
    assert [info.key for info in meeting(Fault.LIST_TWICE)[1].list("a/")] == [
        "a/one", "a/one", "a/two", "a/two",
    ]  # fmt: skip
    memory = MemoryStore()
    memory.create("a/one", b"first")
    store = FaultyStore(memory, Faults({2: Fault.LIST_STALE}.get))
    store.create("a/new", b"")
    store.delete("a/one")
    assert [(info.key, info.size_bytes) for info in store.list("a/")] == [("a/one", 5)]
    assert [info.key for info in store.list("a/")] == ["a/new"]


def test_a_gate_holds_an_operation_up() -> None:
    gate = Gate()
    memory, store = meeting(gate)
    thread = threading.Thread(target=lambda: store.create("b", b"content"))
    thread.start()
    gate.reached.wait()
    with pytest.raises(ObjectMissing):
        memory.read("b")
    gate.opened.set()
    thread.join()
    assert memory.read("b") == b"content"


DYING = """
import sys
from pathlib import Path
from cellarer.stores.local import LocalStore
from faulty import Fault, Faults, FaultyStore
store = FaultyStore(LocalStore(Path(sys.argv[1])), Faults({1: Fault[sys.argv[2]]}.get))
store.create("one", b"content")
store.create("two", b"content")
"""


@pytest.mark.parametrize(
    ("fault", "left"),
    [(Fault.KILL_BEFORE, ["one"]), (Fault.KILL_AFTER, ["one", "two"])],
)
def test_a_kill_ends_the_process(tmp_path: Path, fault: Fault, left: list[str]) -> None:
    root = Path(__file__).parents[2]
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path / "store"), fault.name],
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert [info.key for info in LocalStore(tmp_path / "store").list("")] == left


def test_only_what_counts_is_numbered() -> None:
    faults = Faults(lambda number: Fault.REFUSE, lambda method: method == "delete")
    store = FaultyStore(MemoryStore(), faults)
    store.create("one", b"")
    assert store.read("one") == b""
    with pytest.raises(StoreError):
        store.delete("one")
    assert faults.operations == 1
