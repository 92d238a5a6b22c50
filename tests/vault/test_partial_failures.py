"""Some of the replicas go down at each phase of a session: the rest take it, or nobody half."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from cellarer.errors import StoreError, VaultUnreachable
from cellarer.ports import Store
from cellarer.vault.catchup import catch_up
from stand_ins import Fault, Faults, FaultyStore, Founded, Objects, all_restored, found, noise

pytestmark = pytest.mark.usefixtures("small_packs")

FIRST, SECOND = {"t": noise(1, 40_000)}, {"t": noise(2, 60_000), "s": b"text"}
THIRD = {"t": noise(1, 20_000) + noise(3, 5_000)}

PHASES = ("sessions/", "keys/", "packs/", "index/", "meta/", "snapshots/")
SUBSETS = [set(each) for k in (1, 2, 3) for each in itertools.combinations("abc", k)]


class GoesDown(FaultyStore):
    """A store that is down from the first write of a phase on, for as long as the test says."""

    def __init__(self, inner: Store, phase: str, fault: Fault, lasting: bool) -> None:
        super().__init__(inner, Faults(lambda _: self.fate()))
        self.phase, self.fault, self.lasting = phase, fault, lasting
        self.down = False

    def fate(self) -> Fault | None:
        return self.fault if self.down else None

    def create(self, key: str, data: bytes) -> None:
        met = key.startswith(self.phase)
        self.down = self.down or met
        try:
            super().create(key, data)
        finally:
            if met and not self.lasting:
                self.down, self.phase = False, "nothing more"


def going_down(
    scene: Founded, down: set[str], phase: str, fault: Fault, lasting: bool
) -> Callable[[str, Objects], Store]:
    return lambda name, store: GoesDown(store, phase, fault, lasting) if name in down else store


def assert_all_is_well_in_the_end(scene: Founded, expected: dict[str, dict[str, bytes]]) -> None:
    """Whoever was down is back: all is equal, each alone restores all, the next backup is taken."""
    assert all(done.problem is None for done in catch_up(scene.replicas(), lambda _: None).values())
    third = scene.backup(THIRD)
    assert set(third.replicas) == {"a", "b", "c"}
    for name in scene.stores:
        assert scene.stores[name].objects == scene.stores["a"].objects
        assert all_restored(scene.alone(name).open()) == {**expected, third.session: THIRD}


@pytest.mark.long
@pytest.mark.parametrize("quorum", [1, 2, 3])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("fault", "lasting"),
    [(Fault.REFUSE, True), (Fault.REFUSE, False), (Fault.LOSE_REPLY, False)],
    ids=["goes-down", "hiccups", "loses-replies"],
)
def test_replicas_that_go_down_at_a_phase(
    quorum: int, phase: str, fault: Fault, lasting: bool
) -> None:
    original = found(3, quorum)
    first = original.backup(FIRST)
    for down in SUBSETS:
        scene = original.copy()
        vault = scene.open(scene.replicas(going_down(scene, down, phase, fault, lasting)))
        expected = {first.session: FIRST}
        try:
            commit = scene.backup(SECOND, vault)
        except (VaultUnreachable, StoreError):
            assert 3 - len(down) < quorum, (down, phase)
        else:
            assert 3 - len(down) >= quorum, (down, phase)
            assert {*commit.replicas} == {*"abc"} - down
            expected[commit.session] = SECOND
            for name in commit.replicas:
                assert all_restored(scene.alone(name).open()) == expected
        points = all_restored(scene.open())
        # Below the quorum a point may be there, as some had it; but never a part of one.
        assert points == {**expected, **dict.fromkeys(set(points) - set(expected), SECOND)}
        if 3 - len(down) < quorum and phase != "snapshots/":
            assert points == expected
        assert_all_is_well_in_the_end(scene, points)
