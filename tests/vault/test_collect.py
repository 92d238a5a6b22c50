"""Collecting on real vaults in memory: what goes, what stays, and what everybody else notices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cellarer.errors import (
    CellarerError,
    DamagedData,
    KeyUnusable,
    StoreError,
    VaultUnreachable,
)
from cellarer.ports import ObjectInfo, Store, Stream
from cellarer.vault.collect import Collected, Collector
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.tombstones import forget, tombstones
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    all_restored,
    blocks,
    flip,
    found,
    noise,
    restored,
)

pytestmark = pytest.mark.usefixtures("small_packs")

FIRST = {"t": noise(1, 120_000), "s": b"text"}
SECOND = {"t": noise(1, 30_000) + noise(2, 30_000), "s": b"other"}
THIRD = {"t": noise(3, 20_000)}


def keeper(scene: Founded, replicas: object = None) -> Vault:
    """The vault as a host opens it that may collect and nothing else."""
    return Vault.open(replicas or scene.replicas(), None, None, scene.collect_key)  # type: ignore[arg-type]


def collect(
    scene: Founded, vault: Vault | None = None, now: Callable[[], datetime] | None = None
) -> dict[str, Collected]:
    vault = vault or keeper(scene)
    collector = Collector(vault, now or scene.now)
    return {replica.name: collector.collect(replica) for replica in vault.replicas.replicas}


def drop(scene: Founded, session: str) -> None:
    forget(keeper(scene), session, "no rule wants it", scene.now())


def names(store: Objects, prefix: str) -> set[str]:
    return {key for key in store.objects if key.startswith(prefix)}


def begin(scene: Founded, contents: dict[str, bytes], vault: Vault | None = None) -> SnapshotWriter:
    """A backup that has read everything and not committed yet."""
    writer = SnapshotWriter(vault or scene.open(), "db", "test", scene.now)
    for path, data in contents.items():
        writer.add(Stream(path, "test", blocks(data), len(data)))
    return writer


def die(writer: SnapshotWriter) -> None:
    """Its host loses power: nobody closes the session."""
    writer._undecided = False
    writer.abandon()


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
    writer._finish(writer._packer)
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
    with pytest.raises(StoreError, match="closed by a collector") as caught:
        writer.commit()
    assert caught.value.retryable
    assert caught.value.hint
    again = scene.backup(SECOND).session
    assert all_restored(scene.open()) == {again: SECOND}


def test_a_session_that_one_replica_closed_is_absent_there_and_not_behind() -> None:
    scene = found(replicas=2)
    writer = begin(scene, FIRST)
    later = scene.now() + timedelta(days=30)
    alone = keeper(scene.alone("a"))
    Collector(alone, lambda: later)._abort(writer.session)
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
    writer._finish(writer._packer)
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


class NeverDeleting(Objects):
    """A store that says it deleted and keeps everything."""

    def delete(self, key: str) -> None:
        return


def test_a_store_that_does_not_delete_is_found_out() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    scene.backup(THIRD)
    drop(scene, first)
    scene.stores["a"] = NeverDeleting("a", scene.stores["a"].objects)
    with pytest.raises(StoreError, match="does not delete"):
        collect(scene)


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


class Lagging(Objects):
    """A store whose listings are late: what was created in the last operations is not there yet."""

    def __init__(self, objects: Objects, lag: int) -> None:
        super().__init__(objects.url, objects.objects)
        self._recent: list[str] = []
        self._lag = lag

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        self._recent.append(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        hidden = set(self._recent[-self._lag :] if self._lag else [])
        return iter([info for info in super().list(prefix) if info.key not in hidden])


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_listings_that_are_late_for_the_collector_cost_no_point(lag: int) -> None:
    """A late listing may only let a round see fewer sweepable objects, or refuse."""
    scene = found()
    first = scene.backup(FIRST).session
    kept = scene.backup(SECOND).session
    drop(scene, first)
    lagging = scene.copy()
    lagging.stores["a"] = Lagging(scene.stores["a"], lag)
    with contextlib.suppress(CellarerError):
        collect(lagging)
    assert all_restored(lagging.open()) == {kept: SECOND}


@pytest.mark.parametrize("days", [-30, 30])
def test_clocks_that_jump_cost_no_point(days: int) -> None:
    scene = found()
    first = scene.backup(FIRST).session
    writer = begin(scene, SECOND)
    drop(scene, first)
    jumped = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=days)
    collect(scene, now=lambda: jumped)
    try:
        expected = {writer.commit().session: SECOND}
    except StoreError:
        expected = {}
    collect(scene, now=lambda: jumped)
    assert all_restored(scene.open()) == expected
