"""What `sync` copies and what it does not: nothing damaged, and no point without what it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData, StoreError, UsageError
from cellarer.ports import ObjectInfo
from cellarer.vault.catchup import CaughtUp, catch_up
from cellarer.vault.genuine import Trust
from cellarer.vault.ledger import record_proof
from cellarer.vault.repair import heal
from cellarer.vault.vault import Vault
from stand_ins import Fault, Faults, FaultyStore, Founded, Objects, all_restored, flip, found, noise

pytestmark = pytest.mark.usefixtures("small_packs")

UNNAMED = ("config/", "keys/", "sessions/", "snapshots/", "index/", "ledger/")
RED, WHITE = {"t": noise(1, 40_000)}, {"t": noise(2, 40_000)}


def keyless(scene: Founded) -> None:
    return None


def write_key(scene: Founded) -> Trust:
    return Trust.of(Vault.open(scene.replicas(), scene.write_key, None))


def identity(scene: Founded) -> Trust:
    return Trust.of(Vault.open(scene.replicas(), None, scene.identity))


def filled(replicas: int) -> Founded:
    """Two points of two sources, and a proof."""
    scene = found(replicas)
    commit = scene.backup(RED, source="red")
    scene.backup(WHITE, source="white")
    proof = ProofRecord(
        commit.session, "red", Proof.PROVEN, True, scene.now(), 1.0, (Check("c", True, "", ""),)
    )
    record_proof(scene.open(), proof)
    return scene


def sync(scene: Founded, trust: Trust | None = None) -> dict[str, CaughtUp]:
    return catch_up(scene.replicas(), lambda _: None, trust)


def keys_of(scene: Founded, prefix: str, name: str = "a") -> list[str]:
    return [key for key in sorted(scene.stores[name].objects) if key.startswith(prefix)]


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("replica", ["a", "b"])
def test_damage_in_what_no_name_vouches_for_is_not_copied(kind: str, replica: str) -> None:
    original = filled(2)
    good = dict(original.stores["a"].objects)
    for key in keys_of(original, kind):
        for bit in (0, 400, len(good[key]) * 8 - 9):
            scene = original.copy()
            scene.stores[replica].damage(key, flip(bit))
            scene.stores["c"] = Objects("c")
            assert sync(scene, identity(scene))["c"].problem is None
            assert scene.stores["c"].objects == good


@pytest.mark.parametrize("kind", UNNAMED)
def test_without_keys_nothing_is_copied_that_is_in_doubt(kind: str) -> None:
    original = filled(2)
    good = dict(original.stores["a"].objects)
    for key in keys_of(original, kind):
        scene = original.copy()
        scene.stores["a"].damage(key, flip(len(good[key]) * 4))
        scene.stores["c"] = Objects("c")
        done = sync(scene)["c"]
        copied = scene.stores["c"].objects
        assert all(good[name] == data for name, data in copied.items())
        if key not in copied:
            assert "different bytes" in str(done.failed[key])
            assert isinstance(done.problem, DamagedData)


@pytest.mark.parametrize("kind", ["keys/", "index/"])
def test_without_keys_the_replicas_vote(kind: str) -> None:
    scene = filled(3)
    good = dict(scene.stores["a"].objects)
    for key in keys_of(scene, kind):
        scene.stores["a"].damage(key, flip(len(good[key]) * 4))
    scene.stores["d"] = Objects("d")
    assert sync(scene)["d"].problem is None
    assert scene.stores["d"].objects == good


@pytest.mark.parametrize("trust", [keyless, write_key, identity])
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "damaged"])
def test_one_lost_pack_keeps_only_its_points_out(
    trust: Callable[[Founded], Trust | None], gone: bool
) -> None:
    scene = found()
    red = scene.backup(RED, source="red")
    packs = keys_of(scene, "packs/")
    white = scene.backup(WHITE, source="white")
    again = scene.backup(RED, source="red")
    scene.stores["b"] = Objects("b")
    scene.stores["a"].damage(packs[1], lambda data: None if gone else flip(800)(data))
    known = trust(scene)
    done = sync(scene, known)["b"]
    copied = scene.stores["b"].objects
    lost = {packs[1]} if gone else {packs[1]} & set(scene.stores["a"].objects)
    expected = set(scene.stores["a"].objects) - lost
    if known is not None:
        assert set(done.withheld) == {red.session, again.session}
        expected -= {f"snapshots/{red.session}", f"snapshots/{again.session}"}
        assert isinstance(done.problem, DamagedData)
        assert list(all_restored(scene.alone("b").open())) == [white.session]
    elif not gone:
        assert set(done.withheld) == {red.session, white.session, again.session}
        assert "without a key" in str(done.problem)
        expected -= {f"snapshots/{session}" for session in done.withheld}
    assert set(copied) == expected


def test_an_object_cut_short_on_a_replica_is_told() -> None:
    scene = filled(2)
    pack = keys_of(scene, "packs/")[0]
    scene.stores["b"].damage(pack, lambda data: data[:-10])
    done = sync(scene, write_key(scene))
    assert done["a"].problem is None
    assert list(done["b"].failed) == [pack]
    assert isinstance(done["b"].problem, DamagedData)


def test_a_full_replica_gets_no_point_and_goes_on_when_there_is_room() -> None:
    scene = filled(1)
    scene.stores["b"] = Objects("b")
    full = Faults(lambda n: Fault.REFUSE if n >= 7 else None, lambda method: method == "create")
    replicas = scene.replicas(lambda n, s: FaultyStore(s, full) if n == "b" else s)
    done = catch_up(replicas, lambda _: None)["b"]
    assert isinstance(done.problem, StoreError)
    assert done.copied_objects == 7
    assert keys_of(scene, "snapshots/", "b") == []
    rest = sync(scene)["b"]
    assert rest.problem is None
    assert rest.copied_objects == len(scene.stores["a"].objects) - 7
    assert scene.stores["b"].objects == scene.stores["a"].objects


def test_an_announcement_of_another_vault_is_not_copied() -> None:
    scene, other = filled(1), filled(1)
    scene.stores["b"] = Objects("b")
    foreign = keys_of(other, "sessions/")[0]
    scene.stores["a"].objects[foreign] = other.stores["a"].objects[foreign]
    for trust in (None, write_key(scene)):
        done = sync(scene, trust)["b"]
        assert list(done.failed) == [foreign]
        assert foreign not in scene.stores["b"].objects


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "without a marker"])
@pytest.mark.parametrize("trust", [keyless, write_key, identity])
def test_another_vault_is_left_as_it_is(
    trust: Callable[[Founded], Trust | None], marked: bool
) -> None:
    scene, other = filled(1), filled(1)
    scene.stores["b"] = Objects("b", other.stores["a"].objects)
    if not marked:
        del scene.stores["b"].objects["format.json"]
    before = scene.copy()
    if marked and trust is keyless:
        with pytest.raises(UsageError, match="different vaults"):
            sync(scene, trust(scene))
    else:
        assert "another vault" in str(sync(scene, trust(scene))["b"].problem)
    for key in [*before.stores["b"].objects, "format.json"]:
        with contextlib.suppress(CellarerError):
            assert not heal(scene.open(), key, "b")
    assert scene.stores["b"].objects == before.stores["b"].objects


@pytest.mark.parametrize("trust", [keyless, write_key])
def test_why_a_replica_cannot_be_read_is_told(trust: Callable[[Founded], Trust | None]) -> None:
    class Unmade(Objects):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            raise StoreError("there is no bucket of that name", hint="make the bucket")

    scene = filled(2)
    scene.stores["b"] = Unmade("b")
    problem = sync(scene, trust(scene))["b"].problem
    assert problem is not None
    assert "there is no bucket of that name" in str(problem)
    assert problem.hint == "make the bucket"
