"""Repacking on vaults in memory: room is won back, and every point is read from where it went."""

from __future__ import annotations

import threading
from datetime import timedelta

import numpy as np
import pytest

from cellarer.errors import DamagedData, KeyUnusable
from cellarer.ports import Store
from cellarer.stores.grow_only import GrowOnly
from cellarer.vault.moves import PLACE
from cellarer.vault.pack import read_toc
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.repack import Repacked, Repacker, records_at
from cellarer.vault.vault import Vault
from faulty import Gate
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Objects,
    PowerCut,
    all_restored,
    flip,
    found,
    noise,
    restored,
)
from vault.collecting import begin, collect, drop, keeper, names, repack
from vault.wasteful import KEPT, LESS, WHOLE, content, size, wasteful

pytestmark = pytest.mark.usefixtures("small_packs")


def test_waste_is_won_back_and_the_point_is_read_from_where_it_went() -> None:
    scene, kept = wasteful(replicas=2)
    before = size(scene.stores["a"])
    done = repack(scene)
    assert done.left == {}
    assert all("dead" in each.reason for each in done.plan.packs)
    assert all_restored(scene.open()) == {kept: KEPT}
    collect(scene)
    for name, store in scene.stores.items():
        assert not {each.pack for each in done.plan.packs} & store.objects.keys()
        assert size(store) < min(before * 0.6, len(KEPT["t"]) * 1.7)
        assert all_restored(scene.alone(name).open()) == {kept: KEPT}
    assert content(scene.stores["a"]) == content(scene.stores["b"])
    assert repack(scene) == Repacked()
    assert [commit.session for commit in scene.open().commits()] == [kept]


def test_a_plan_changes_nothing_and_is_carried_out_as_it_says() -> None:
    scene, _ = wasteful()
    before = dict(scene.stores["a"].objects)
    planned = Repacker(keeper(scene), scene.now, 1 << 30).plan()
    assert scene.stores["a"].objects == before
    assert planned.plan.live_bytes > 0
    done = repack(scene)
    assert done.plan == planned.plan
    assert done.repacked_bytes >= planned.plan.live_bytes


def test_records_move_any_number_of_times() -> None:
    scene, kept = wasteful()
    repack(scene)
    collect(scene)
    less = scene.backup(LESS)
    assert int(less.body["added_bytes"]) < 40_000  # built on what was moved
    drop(scene, kept)
    collect(scene)
    moved = repack(scene)
    assert moved.plan.packs
    collect(scene)
    assert not {each.pack for each in moved.plan.packs} & scene.stores["a"].objects.keys()
    assert all_restored(scene.open()) == {less.session: LESS}
    # A new vault is not needed to see that nothing is left behind but what counts.
    drop(scene, less.session)
    scene.backup({"x": b"another"})
    collect(scene)
    moves = [k for k in scene.stores["a"].objects if k.startswith("index/")]
    assert len(moves) <= 2


def test_a_point_that_is_kept_is_found_through_several_moves() -> None:
    """The old point names the first place; the packs that it went to were repacked again."""
    scene = found()
    first, second = scene.backup(WHOLE).session, scene.backup(KEPT).session
    kept = scene.backup(LESS).session
    for gone in (first, second):
        drop(scene, gone)
        collect(scene)
        assert repack(scene).plan.packs
        collect(scene)
    assert len(scene.open().repacks()) == 2
    assert all_restored(scene.open()) == {kept: LESS}


def test_a_backup_builds_on_what_was_moved() -> None:
    scene, kept = wasteful()
    repack(scene)
    again = scene.backup(KEPT)  # the old packs are still there
    assert int(again.body["added_bytes"]) < 1000
    collect(scene)
    third = scene.backup(KEPT)
    assert int(third.body["added_bytes"]) < 1000
    expected = dict.fromkeys((kept, again.session, third.session), KEPT)
    assert all_restored(scene.open()) == expected
    assert size(scene.stores["a"]) < len(KEPT["t"]) * 1.7


def test_a_restore_goes_on_while_its_packs_are_repacked_and_deleted() -> None:
    scene, kept = wasteful()
    vault = scene.open()
    reader = SnapshotReader(vault, vault.commits()[0])
    streaming = reader.read("t")
    begun = next(streaming)
    repack(scene)
    collect(scene)
    assert begun + b"".join(streaming) == KEPT["t"]
    assert kept == reader.point


def test_a_backup_under_way_keeps_the_old_packs_until_it_ends() -> None:
    scene, kept = wasteful()
    writer = begin(scene, KEPT)
    repack(scene)
    assert collect(scene)["a"].waiting == (writer.session,)
    session = writer.commit().session
    collect(scene)
    assert all_restored(scene.open()) == {kept: KEPT, session: KEPT}
    assert size(scene.stores["a"]) < len(KEPT["t"]) * 1.7


def test_two_collectors_that_repack_the_same_lose_nothing() -> None:
    scene, kept = wasteful(replicas=2)
    one, other = (
        Vault.open(scene.replicas(), None, scene.identity),
        keeper(scene),
    )
    gate = Gate()

    def held(name: str, store: Objects) -> Store:
        faults = Faults(lambda number: gate if number == 4 and name == "a" else None, _creates)
        return FaultyStore(store, faults)

    slow = Vault.open(scene.replicas(held), None, scene.identity)
    thread = threading.Thread(target=repack, args=(scene, slow))
    thread.start()
    gate.reached.wait()
    repack(scene, other)
    gate.opened.set()
    thread.join()
    assert len(scene.open().repacks()) == 2
    collect(scene, one)
    for name, store in scene.stores.items():
        assert size(store) < len(KEPT["t"]) * 1.7
        assert all_restored(scene.alone(name).open()) == {kept: KEPT}


def _creates(method: str) -> bool:
    return method == "create"


def test_a_repack_that_died_is_closed_by_the_next_run_of_its_key() -> None:
    scene, kept = wasteful()

    def dying(name: str, store: Objects) -> Store:
        plan = {3: Fault.CRASH_BEFORE}
        return FaultyStore(store, Faults(plan.get, _creates))

    with pytest.raises(PowerCut):
        repack(scene, keeper(scene, scene.replicas(dying)))
    assert scene.open().repacks() == []
    open_session = max(names(scene.stores["a"], "sessions/"))
    assert b"repacker" in scene.stores["a"].objects[open_session]
    waited = collect(scene)
    assert waited["a"].waiting == ()
    register = scene.stores["a"].objects[open_session.replace("sessions/", "snapshots/")]
    assert b'"abort"' in register
    repack(scene)
    collect(scene)
    assert size(scene.stores["a"]) < len(KEPT["t"]) * 1.7
    assert all_restored(scene.open()) == {kept: KEPT}


def test_a_repack_of_another_key_is_waited_for() -> None:
    scene, kept = wasteful()

    def dying(name: str, store: Objects) -> Store:
        return FaultyStore(store, Faults({3: Fault.CRASH_BEFORE}.get, _creates))

    with pytest.raises(PowerCut):
        repack(scene, Vault.open(scene.replicas(dying), None, scene.identity))
    session = max(names(scene.stores["a"], "sessions/")).removeprefix("sessions/")
    assert collect(scene)["a"].waiting == (session,)
    collect(scene, now=lambda: scene.now() + timedelta(hours=49))
    assert all_restored(scene.open()) == {kept: KEPT}


def test_damage_is_not_copied_and_stops_none_of_the_others() -> None:
    scene, kept = wasteful(replicas=2)
    chosen = Repacker(keeper(scene), scene.now, 1 << 30).plan().plan.packs
    for store in scene.stores.values():
        store.damage(chosen[0].pack, flip(800))
    scene.stores["a"].damage(chosen[1].pack, flip(800))
    done = repack(scene)
    assert set(done.left) == {chosen[0].pack}
    collect(scene)
    for store in scene.stores.values():
        assert chosen[0].pack in store.objects
        assert chosen[1].pack not in store.objects
    scene.stores["b"].damage(chosen[0].pack, flip(800))
    assert all_restored(scene.open()) == {kept: KEPT}


def test_a_budget_is_spent_on_the_most_wasteful_first() -> None:
    scene, kept = wasteful()
    everything = Repacker(keeper(scene), scene.now, 1 << 30).plan().plan
    assert Repacker(keeper(scene), scene.now, 0).plan().off
    runs = 0
    while repack(scene, budget_bytes=20_000).plan.packs:
        collect(scene)
        runs += 1
    assert runs > 1
    assert everything.live_bytes > 20_000 * (runs - 1)
    assert all_restored(scene.open()) == {kept: KEPT}
    assert size(scene.stores["a"]) < len(KEPT["t"]) * 1.7


def test_many_small_packs_become_few() -> None:
    scene = found()
    kept = {}
    for number in range(20):
        text = {"t": noise(number, 2000)}
        kept[scene.backup(text).session] = text
    before = len(names(scene.stores["a"], "packs/"))
    done = repack(scene)
    assert "small packs" in done.plan.packs[0].reason
    collect(scene)
    assert len(names(scene.stores["a"], "packs/")) <= before // 8
    assert len(names(scene.stores["a"], "meta/")) <= 24
    assert all_restored(scene.open()) == kept
    assert repack(scene) == Repacked()


def test_where_a_replica_only_grows_nothing_is_repacked() -> None:
    scene, _ = wasteful(replicas=2)

    def growing(name: str, store: Objects) -> Store:
        return GrowOnly(store) if name == "b" else store

    vault = keeper(scene, scene.replicas(growing))
    assert "b only grows" in Repacker(vault, scene.now, 1 << 30).run(lambda _: None).off


def test_a_write_key_repacks_nothing() -> None:
    scene, _ = wasteful()
    writing = Vault.open(scene.replicas(), scene.write_key, None)
    before = dict(scene.stores["a"].objects)
    with pytest.raises(KeyUnusable):
        repack(scene, writing)
    assert scene.stores["a"].objects == before


@pytest.mark.parametrize("outcome", ["repack", "commit"])
def test_what_a_writer_signs_moves_nothing(outcome: str) -> None:
    scene, kept = wasteful()
    repack(scene)
    (repacked,) = scene.open().repacks()
    register = f"snapshots/{repacked.session}"
    body: dict[str, object] = {
        "outcome": outcome,
        "sealed": "",
        "session": repacked.session,
        "vault": scene.write_key.vault,
        "writer": scene.write_key.writer,
    }
    scene.stores["a"].objects[register] = scene.write_key.signer.sign("snapshot", body)
    vault = scene.open()
    assert vault.repacks() == []
    assert register in vault.unreadable
    with pytest.raises(DamagedData):
        collect(scene)
    assert restored(scene.open(), scene.open().commits()[0]) == KEPT
    assert [c.session for c in scene.open().commits()] == [kept]


def test_a_table_of_moves_that_cannot_be_read_stops_all_deleting_while_a_point_needs_it() -> None:
    scene, kept = wasteful()
    repack(scene)
    (repacked,) = scene.open().repacks()
    collect(scene)
    scene.stores["a"].damage(repacked.moves, flip(300))
    other = scene.backup({"x": b"y"}).session
    before = {key for key in scene.stores["a"].objects if key.startswith("packs/")}
    with pytest.raises(DamagedData, match="nothing is deleted") as caught:
        collect(scene)
    assert "scrub" in caught.value.hint
    assert before <= scene.stores["a"].objects.keys()
    drop(scene, kept)
    collect(scene)
    assert repacked.moves not in scene.stores["a"].objects
    assert all_restored(scene.open()) == {other: {"x": b"y"}}
    assert len([key for key in scene.stores["a"].objects if key.startswith("packs/")]) == 1


def test_a_table_that_cannot_be_read_is_not_needed_while_the_old_packs_are_there() -> None:
    """Then what was copied goes again, and the points are read where they always were."""
    scene, kept = wasteful()
    repack(scene)
    (repacked,) = scene.open().repacks()
    scene.stores["a"].damage(repacked.moves, flip(300))
    collect(scene)
    assert repacked.moves not in scene.stores["a"].objects
    assert all_restored(scene.open()) == {kept: KEPT}


def test_a_record_that_a_point_cuts_otherwise_than_its_pack_stays_where_it_is() -> None:
    """Only the writer of a pack says where its records begin and end."""
    scene, _ = wasteful()
    planned = Repacker(keeper(scene), scene.now, 1 << 30).plan().plan
    pack = planned.packs[0].pack
    data = scene.stores["a"].objects[pack]
    toc = read_toc(data, scene.write_key.index)
    row = toc.records[0]
    place = np.array([(0, int(row["offset"]), int(row["length"]) - 1)], PLACE)
    with pytest.raises(DamagedData, match="no record of"):
        records_at(data, toc, place)
    place["length"] += 1
    (record,) = records_at(data, toc, place)
    assert record.id == row["id"].tobytes()
