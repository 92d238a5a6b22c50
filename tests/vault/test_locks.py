"""Locks on vaults in memory, over months: what points need stays locked, the rest comes free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cellarer.errors import ObjectLocked, ObjectMissing, StoreError
from cellarer.ports import retaining
from cellarer.vault import format as layout
from cellarer.vault.locks import Locked, extend_locks, needed_objects
from cellarer.vault.needs import Needs
from cellarer.vault.vault import Vault
from stand_ins import Days, Founded, Objects, all_restored, found, noise
from vault.collecting import FIRST, SECOND, THIRD, collect, drop, keeper
from wal_files import keys_of, segment, sessions_of, writer

pytestmark = pytest.mark.usefixtures("small_packs")

MONTH = timedelta(days=30)
DAY = timedelta(days=1)


class LockingObjects(Objects):
    """A store in memory that locks as S3 does, by a clock of its own."""

    def __init__(self, objects: Objects, now: Callable[[], datetime]) -> None:
        super().__init__(objects.url, objects.objects)
        self._now, self._guard = now, threading.Lock()
        self.locking, self.requests = True, 0
        self.until = {key: now() + self.locks_for for key in self.objects}

    locks_for = MONTH

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        self.until.setdefault(key, self._now() + self.locks_for)

    def delete(self, key: str) -> None:
        if key in self.objects and self.until.get(key, self._now()) > self._now():
            raise ObjectLocked(f"{key} is locked")
        super().delete(key)
        self.until.pop(key, None)

    def locks(self) -> bool:
        return self.locking

    def locked_until(self, key: str) -> datetime | None:
        with self._guard:
            self.requests += 1
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.until.get(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        with self._guard:
            self.requests += 2
        self.until[key] = max(until, self.until.get(key, until))


def locking_scene(kind: type[LockingObjects] = LockingObjects) -> tuple[Founded, Any, Days]:
    scene, clock = found(), Days()
    store = kind(scene.stores["a"], clock)
    scene.stores["a"], scene.now = store, clock
    return scene, store, clock


def extend(scene: Founded, vault: Vault | None = None, **bounds: int) -> Locked:
    vault = vault or keeper(scene)
    (replica,) = vault.replicas.replicas
    lock = retaining(replica.store)
    assert lock is not None
    needs = Needs(vault)
    needs.estimate()
    return extend_locks(vault, replica, lock, needs, scene.now, **bounds)


def needed_now(scene: Founded) -> set[str]:
    vault = keeper(scene)
    needs = Needs(vault)
    needs.refresh()
    return needed_objects(vault, vault.replicas.replicas[0], needs)


class Shortly(LockingObjects):
    """For so short that a test sees several periods pass."""

    locks_for = 12 * DAY


def test_periods_of_backups() -> None:
    """Every day a backup, the retention of a few days, extension and collecting.

    At every moment everything that is needed is locked, for almost half a period at least; what was
    given up can be deleted within a period and is, when the collector comes.
    """
    scene, store, clock = locking_scene(Shortly)
    points: list[str] = []
    given_up: dict[str, datetime] = {}
    for day in range(40):
        table = {"t": noise(day // 9, 9_000) + noise(1000 + day, 3_000)}
        points.append(scene.backup(table).session)
        if len(points) > 5:
            drop(scene, points.pop(0))
        done = extend(scene)
        assert done.complete
        assert done.problem is None
        collect(scene)
        needed = needed_now(scene)
        assert needed <= store.objects.keys()
        assert min(store.until[key] for key in needed) >= clock.moment + Shortly.locks_for / 2
        assert done.locked_until is not None
        assert done.locked_until >= clock.moment + Shortly.locks_for / 2
        for key in store.objects.keys() - needed:
            given_up.setdefault(key, clock.moment)
        for key in needed:
            given_up.pop(key, None)
        stuck = {
            key
            for key, since in given_up.items()
            if key in store.objects
            and key.startswith(("packs/", "meta/"))
            and clock.moment - since > Shortly.locks_for + 2 * DAY
        }
        assert not stuck
        clock.moment += DAY
    assert len(all_restored(scene.open())) == 5
    assert given_up


def test_without_extending_the_first_pack_of_the_newest_point_comes_free() -> None:
    """What the test above would not notice, it would not try: here nobody extends."""
    scene, store, clock = locking_scene()
    scene.backup(FIRST)
    clock.moment += MONTH + DAY
    point = scene.backup(FIRST)
    key = next(k for k in needed_now(scene) if k.startswith("packs/"))
    assert point.body["added_bytes"] == 0
    store.delete(key)
    assert key not in store.objects


def test_every_kind_of_object_that_is_needed_is_extended() -> None:
    scene, store, clock = locking_scene()
    first = scene.backup(FIRST).session
    kept = scene.backup(SECOND).session
    lone = scene.backup(THIRD, source="files").session
    drop(scene, first)
    drop(scene, lone)
    begun = dict(store.until)
    clock.moment += 16 * DAY + MONTH
    done = extend(scene)
    assert done.extended_objects == done.looked_objects == done.needed_objects
    extended = {key for key, until in store.until.items() if until != begun.get(key)}
    assert {key.split("/")[0] for key in extended} == {
        "config", "format.json", "forgotten", "index", "keys", "meta", "packs", "rescue.py",
        "sessions", "snapshots",
    }  # fmt: skip
    # The second point shares packs with the first: whoever reads it needs that one's key.
    assert {f"keys/{kept}.0.age", f"keys/{first}.0.age", f"sessions/{first}"} <= extended
    assert f"index/{kept}/00000000" in extended or any(
        k.startswith(f"index/{kept}") for k in extended
    )
    assert not [key for key in extended if key.startswith((f"index/{first}", f"index/{lone}"))]
    assert not {f"keys/{lone}.0.age", f"sessions/{lone}"} & extended
    assert {f"snapshots/{lone}", f"forgotten/{lone}"} <= extended


def test_a_run_that_was_interrupted_is_taken_up() -> None:
    class Breaking(LockingObjects):
        left = 5

        def extend_lock(self, key: str, until: datetime) -> None:
            with self._guard:
                self.left -= 1
                if self.left < 0:
                    raise StoreError("the line is down", retryable=True)
            super().extend_lock(key, until)

    scene, store, clock = locking_scene(Breaking)
    scene.backup(FIRST)
    begun = dict(store.until)
    clock.moment += 29 * DAY
    broken = extend(scene)
    assert broken.problem is not None
    assert not broken.complete
    first = {key for key in store.until if store.until[key] != begun[key]}
    assert len(first) == 5
    store.left = 10**6
    done = extend(scene)
    assert done.complete
    assert done.extended_objects == done.needed_objects - 5
    assert min(store.until[key] for key in needed_now(scene)) > clock.moment + MONTH - DAY


def test_a_small_budget_comes_to_everything_in_time() -> None:
    """Daily runs of a quarter of a period, each of which may look at a part."""
    scene, store, clock = locking_scene()
    scene.backup(FIRST)
    count = len(needed_now(scene))
    for _ in range(40):
        clock.moment += DAY
        before = store.requests
        done = extend(scene, requests=count)
        assert store.requests - before <= count
        assert min(store.until[key] for key in needed_now(scene)) > clock.moment
    assert not done.complete


def test_a_bucket_that_does_not_lock_any_more_is_said() -> None:
    scene, store, _ = locking_scene()
    scene.backup(FIRST)
    store.locking = False
    done = extend(scene)
    assert done.problem is not None
    assert "does not lock" in done.problem.message
    assert done.problem.hint
    assert (done.looked_objects, done.complete) == (0, False)


def test_a_store_that_extends_nothing_is_not_believed() -> None:
    class Saying(LockingObjects):
        def extend_lock(self, key: str, until: datetime) -> None:
            return

    scene, _, clock = locking_scene(Saying)
    scene.backup(FIRST)
    clock.moment += 20 * DAY
    done = extend(scene)
    assert done.problem is not None
    assert "s3:PutObjectRetention" in done.problem.hint
    assert done.extended_objects == 0


def test_any_key_may_extend_and_an_unreadable_point_leaves_the_others_locked() -> None:
    scene, store, clock = locking_scene()
    lost, kept = scene.backup(FIRST), scene.backup(THIRD, source="files")
    store.damage(str(lost.body["references"]), lambda data: data[:-1])
    clock.moment += 29 * DAY
    writing = Vault.open(scene.replicas(), scene.write_key, None)
    done = extend(scene, writing)
    assert done.problem is not None
    assert lost.session in done.problem.detail
    assert not done.complete
    assert store.until[str(kept.body["references"])] > clock.moment + MONTH - DAY


def test_wal_and_what_opens_it_stay_locked(tmp_path: Path) -> None:
    scene, store, clock = locking_scene()
    scene.backup(FIRST)
    putting = writer(scene, tmp_path)
    for number in (1, 2):
        putting.put(*segment(number))
    putting.put_piece(segment(2)[0], 0, segment(2)[1][:8192])  # superfluous
    clock.moment += 20 * DAY
    extend(scene)
    clock.moment += 15 * DAY
    free = {key for key, until in store.until.items() if until <= clock()}
    assert all("-" in key.rpartition("/")[2] for key in free if key.startswith("wal/"))
    assert free & keys_of(store)
    for session in sessions_of(scene):
        assert not free & {layout.session_key(session), layout.envelope_key(session)}
