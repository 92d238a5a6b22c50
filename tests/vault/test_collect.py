"""Collecting on real vaults in memory: what goes, what stays, and what everybody else notices."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from cellarer.errors import DamagedData, KeyUnusable, StoreError, VaultUnreachable
from cellarer.ports import Store
from cellarer.vault.closing import abort
from cellarer.vault.collect import Collected, Collector
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.tombstones import forget, tombstones
from cellarer.vault.vault import Vault
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Objects,
    all_restored,
    flip,
    found,
    noise,
    restored,
)
from vault.collecting import FIRST, SECOND, THIRD, begin, collect, die, drop, keeper, names

pytestmark = pytest.mark.usefixtures("small_packs")


def test_a_forgotten_point_goes_and_what_others_share_with_it_stays() -> None:
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    second = scene.backup(SECOND).session
    third = scene.backup(THIRD, source="files").session
    before = {name: len(b"".join(s.objects.values())) for name, s in scene.stores.items()}
    drop(scene, first)
    done = collect(scene)
    assert set(all_restored(scene.open())) == {second, third}
    assert all_restored(scene.open()) == {second: SECOND, third: THIRD}
    for name, store in scene.stores.items():
        assert done[name].swept_bytes > 20_000
        assert len(b"".join(store.objects.values())) < before[name] - 15_000
        assert all_restored(scene.alone(name).open()) == {second: SECOND, third: THIRD}
        assert f"snapshots/{first}" in store.objects
        assert names(store, "collections/") == {
            f"collections/00000000/{step}" for step in ("begin", "mark", "sweep", "done")
        }


def test_a_tombstone_of_one_replica_reaches_the_others_before_anything_is_deleted_there() -> None:
    """Who has nothing but the second replica must not be shown a point that is not whole."""
    scene = found(replicas=2)
    first, kept = scene.backup(FIRST).session, scene.backup(SECOND).session
    drop(scene.alone("a"), first)
    collect(scene)
    assert f"forgotten/{first}" in scene.stores["b"].objects
    assert all_restored(scene.alone("b").open()) == {kept: SECOND}


def test_nothing_to_collect_begins_no_round() -> None:
    scene = found()
    scene.backup(FIRST)
    assert collect(scene)["a"] == Collected()
    assert not names(scene.stores["a"], "collections/")


def test_everything_that_a_forgotten_point_alone_needed_goes() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    kept = scene.backup(THIRD, source="files").session
    stored = set(scene.stores["a"].objects)
    drop(scene, first)
    collect(scene)
    gone = stored - set(scene.stores["a"].objects)
    assert {key.split("/")[0] for key in gone} == {"packs", "meta", "index"}
    assert {key.split("/")[1] for key in gone if key.startswith("index/")} == {first}
    assert all_restored(scene.open()) == {kept: THIRD}


def test_what_a_dead_backup_left_goes_after_a_time_and_its_session_is_closed() -> None:
    scene = found()
    kept = scene.backup(FIRST).session
    before = set(scene.stores["a"].objects)
    writer = begin(scene, THIRD)
    writer._placer.finish(writer._packer)
    writer._writing.settle()
    die(writer)
    left = names(scene.stores["a"], "packs/") - before
    assert left
    waiting = collect(scene)["a"]
    assert waiting.waiting == (writer.session,)
    assert waiting.swept_bytes == 0
    assert left <= set(scene.stores["a"].objects)
    later = scene.now() + timedelta(hours=49)
    done = collect(scene, now=lambda: later)["a"]
    assert done.waiting == ()
    assert not left & set(scene.stores["a"].objects)
    assert b'"abort"' in scene.stores["a"].objects[f"snapshots/{writer.session}"]
    assert all_restored(scene.open()) == {kept: FIRST}


def test_a_backup_under_way_is_waited_for_and_keeps_what_it_builds_on() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    writer = begin(scene, SECOND)
    drop(scene, first)
    waiting = collect(scene)["a"]
    assert waiting.waiting == (writer.session,)
    assert waiting.condemned_bytes > waiting.swept_bytes == 0
    second = writer.commit().session
    assert collect(scene)["a"].swept_bytes > 0
    assert all_restored(scene.open()) == {second: SECOND}
    assert "collections/00000000/done" in scene.stores["a"].objects


def test_a_backup_that_begins_during_a_round_builds_on_nothing_that_is_condemned() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    blocking = begin(scene, {"x": b"blocks the round"})
    drop(scene, first)
    assert collect(scene)["a"].waiting == (blocking.session,)
    second = scene.backup(FIRST)
    assert int(second.body["added_bytes"]) >= 120_000
    die(blocking)
    later = scene.now() + timedelta(hours=49)
    collect(scene, now=lambda: later)
    assert all_restored(scene.open()) == {second.session: FIRST}


def test_after_a_round_what_is_left_of_a_forgotten_point_is_still_built_upon() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    second = scene.backup(SECOND).session
    drop(scene, first)
    collect(scene)
    third = scene.backup(SECOND)
    assert int(third.body["added_bytes"]) < 1000
    assert all_restored(scene.open()) == {second: SECOND, third.session: SECOND}


def test_a_writer_whose_session_was_closed_says_so_and_can_try_again() -> None:
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    writer = begin(scene, SECOND)
    drop(scene, first)
    later = scene.now() + timedelta(days=30)
    collect(scene, now=lambda: later)
    with pytest.raises(StoreError, match="closed by another") as caught:
        writer.commit()
    assert caught.value.retryable
    assert caught.value.hint
    again = scene.backup(SECOND).session
    assert all_restored(scene.open()) == {again: SECOND}


def test_a_session_that_one_replica_closed_is_absent_there_and_not_behind() -> None:
    scene = found(replicas=2)
    writer = begin(scene, FIRST)
    abort(keeper(scene.alone("a")), writer.session)
    commit = writer.commit()
    assert (commit.session, commit.replicas) == (writer.session, ("b",))
    (listed,) = scene.open().commits()
    assert listed.replicas == ("b",)
    assert listed.absent == ("a",)
    second = scene.backup(SECOND)
    assert second.replicas == ("a", "b")
    assert restored(scene.alone("a").open(), second) == SECOND


def test_a_plan_shows_what_would_go_and_changes_nothing() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    scene.backup(THIRD)
    before = dict(scene.stores["a"].objects)
    vault = keeper(scene)
    (replica,) = vault.replicas.replicas
    plan = Collector(vault, scene.now, without=[first]).plan(replica)
    assert scene.stores["a"].objects == before
    drop(scene, first)
    done = collect(scene)["a"]
    assert (done.condemned_bytes, done.swept_bytes) == (plan.condemned_bytes,) * 2
    assert set(before) - set(scene.stores["a"].objects) == set(plan.condemned)


def test_a_write_key_can_neither_forget_nor_collect() -> None:
    scene = found()
    session = scene.backup(FIRST).session
    writing = Vault.open(scene.replicas(), scene.write_key, None)
    with pytest.raises(KeyUnusable):
        forget(writing, session, "", scene.now())
    writer = begin(scene, THIRD)
    writer._placer.finish(writer._packer)
    writer._writing.settle()  # or there may be nothing to collect
    writer.abandon()
    before = dict(scene.stores["a"].objects)
    with pytest.raises(KeyUnusable):
        collect(scene, writing)
    assert scene.stores["a"].objects == before


def test_a_tombstone_that_a_writer_signed_is_none() -> None:
    scene = found()
    session = scene.backup(FIRST).session
    body: dict[str, object] = {
        "by": scene.write_key.signer.public,
        "reason": "",
        "session": session,
        "time": "2026-03-01T00:00:00.000000Z",
        "vault": scene.write_key.vault,
    }
    forged = scene.write_key.signer.sign("forgotten", body)
    scene.stores["a"].create(f"forgotten/{session}", forged)
    vault = scene.open()
    assert [commit.session for commit in vault.commits()] == [session]
    assert f"forgotten/{session}" in vault.unreadable
    assert tombstones(vault) == set()


@pytest.mark.parametrize("prefix", ["snapshots/", "forgotten/", "meta/"])
def test_damage_that_hides_a_need_stops_everything(prefix: str) -> None:
    scene = found()
    first, kept = scene.backup(FIRST), scene.backup(SECOND)
    drop(scene, first.session)
    store = scene.stores["a"]
    name = {
        "snapshots/": f"snapshots/{kept.session}",
        "forgotten/": f"forgotten/{first.session}",
        "meta/": str(kept.body["references"]),
    }[prefix]
    store.damage(name, flip(400))
    before = dict(store.objects)
    with pytest.raises(DamagedData, match="nothing is"):
        collect(scene)
    assert store.objects == before


def test_a_replica_that_does_not_answer_stops_everything() -> None:
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    scene.backup(SECOND)
    drop(scene, first)
    before = dict(scene.stores["a"].objects)

    def wrap(name: str, store: Objects) -> Store:
        faults = Faults(lambda _: Fault.REFUSE if name == "b" else None)
        return FaultyStore(store, faults)

    with pytest.raises(VaultUnreachable, match="nothing is forgotten or deleted"):
        collect(scene, keeper(scene, scene.replicas(wrap)))
    assert scene.stores["a"].objects == before


def test_a_mark_of_another_replica_is_not_followed() -> None:
    """What a store copies from one place to another says nothing there."""
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    scene.backup(SECOND)
    blocking = begin(scene, {"x": b"blocks the round"})
    drop(scene, first)
    collect(scene)
    stolen = scene.stores["a"].objects["collections/00000000/mark"]
    scene.stores["b"].objects["collections/00000000/mark"] = stolen
    blocking.abandon()
    before = names(scene.stores["b"], "packs/")
    with pytest.raises(DamagedData, match="belongs to another round"):
        collect(scene)
    assert names(scene.stores["b"], "packs/") == before


def test_a_round_that_cannot_be_understood_takes_its_replica_out_of_backups() -> None:
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    blocking = begin(scene, {"x": b"blocks the round"})
    drop(scene, first)
    collect(scene)
    blocking.abandon()
    scene.stores["a"].damage("collections/00000000/mark", flip(300))
    assert scene.backup(THIRD).replicas == ("b",)


def test_a_point_that_is_collected_while_it_is_read_says_so() -> None:
    scene = found()
    first = scene.backup({"t": noise(5, 200_000)})
    scene.backup(THIRD)
    reader = SnapshotReader(scene.open(), first)
    streaming = reader.read("t")
    next(streaming)
    drop(scene, first.session)
    collect(scene)
    with pytest.raises(DamagedData, match="given up by retention") as caught:
        list(streaming)
    assert "points hold" in caught.value.hint


def test_a_host_with_every_key_ends_sessions_with_one_that_may_end_any() -> None:
    """A writer's key ends its own alone: signed with it, the end of a repack would be damage."""
    scene = found()
    writer = begin(scene, THIRD)
    die(writer)
    abort(
        Vault.open(scene.replicas(), scene.write_key, scene.identity, scene.collect_key),
        writer.session,
    )
    register = json.loads(scene.stores["a"].objects[f"snapshots/{writer.session}"])
    assert scene.collect_key is not None
    assert register["signed_by"] == scene.collect_key.signer.public
