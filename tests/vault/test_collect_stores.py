"""Collecting on stores that are late, keep things, or do not do as they say; and wrong clocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cellarer.errors import CellarerError, StoreError
from cellarer.ports import ObjectInfo, Store
from cellarer.vault.collect import Collected
from stand_ins import (
    Objects,
    all_restored,
    found,
    noise,
)
from vault.collecting import FIRST, SECOND, THIRD, begin, collect, drop, names

pytestmark = pytest.mark.usefixtures("small_packs")


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


class Locking(Objects):
    """A store that keeps one of its objects whoever asks."""

    def __init__(self, objects: Objects, kept: str, until: datetime) -> None:
        super().__init__(objects.url, objects.objects)
        self._kept, self._until = kept, until

    def locked_until(self, key: str) -> datetime | None:
        return self._until if key == self._kept else None

    def extend_lock(self, key: str, until: datetime) -> None:
        raise NotImplementedError

    def locks(self) -> bool:
        return True

    @property
    def locks_for(self) -> timedelta:
        return timedelta(days=30)

    def delete(self, key: str) -> None:
        if key == self._kept:
            raise StoreError(f"{key} is locked")
        super().delete(key)


def test_what_the_store_keeps_is_left_alone_until_it_lets_go() -> None:
    scene = found()
    first = scene.backup({"t": noise(7, 90_000)}).session
    locked = min(names(scene.stores["a"], "packs/"))
    kept = scene.backup(THIRD).session
    drop(scene, first)
    until = datetime(2026, 3, 20, tzinfo=UTC)
    locking = scene.stores["a"] = Locking(scene.stores["a"], locked, until)
    done = collect(scene)["a"]
    assert (done.locked_bytes, done.locked_until) == (len(locking.objects[locked]), until)
    assert done.swept_bytes > 0
    assert "collections/00000000/done" in locking.objects
    assert collect(scene)["a"].swept_bytes == 0
    scene.stores["a"] = Objects("a", locking.objects)
    assert collect(scene)["a"].locked_until is None
    assert locked not in scene.stores["a"].objects
    assert all_restored(scene.open()) == {kept: THIRD}


class GrowingOnly(Objects):
    """A store that was found to overwrite, under the layer that says so."""

    grows_only = True

    @property
    def inner(self) -> Store:
        return Objects("inner", self.objects)


def test_a_replica_that_only_grows_is_left_alone() -> None:
    scene = found()
    first = scene.backup(FIRST).session
    scene.backup(THIRD)
    drop(scene, first)
    scene.stores["a"] = GrowingOnly("a", scene.stores["a"].objects)
    before = dict(scene.stores["a"].objects)
    assert collect(scene)["a"] == Collected(grows_only=True)
    assert scene.stores["a"].objects == before
