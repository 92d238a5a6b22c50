"""Locks in flows: extended by `retain`, kept in the ledger, alarms before they lapse."""

from __future__ import annotations

from datetime import timedelta

from cellarer.flows.immutability import (
    immutable_until,
    keep_locked,
    look_at_locks,
    seen_locks,
)
from cellarer.flows.points import survey
from cellarer.flows.retain import retain
from cellarer.vault.ledger import entries
from cellarer.vault.vault import Vault
from flows.test_retain import Silent, rules
from stand_ins import Days, Founded, noise
from vault.collecting import keeper
from vault.test_locks import DAY, MONTH, LockingObjects, locking_scene


def alarms(scene: Founded, vault: Vault | None = None) -> list[tuple[str, str]]:
    vault = vault or scene.open()
    found = survey(vault)
    told = look_at_locks(vault, found.entries, found.points, scene.now())
    assert all(finding.level == "error" and finding.hint for finding in told)
    return [(finding.id, finding.message) for finding in told]


def days_of_backups(scene: Founded, clock: Days, count: int) -> list[str]:
    points = []
    for day in range(count):
        points.append(scene.backup({"t": noise(day, 9000), "same": noise(99, 9000)}).session)
        clock.moment += DAY
    return points


def test_retain_extends_what_is_kept_and_writes_it_down() -> None:
    scene, _, clock = locking_scene()
    days_of_backups(scene, clock, 4)
    clock.moment += 20 * DAY
    done = retain(keeper(scene), rules(daily=2), clock, Silent())
    locked = done.locks["a"]
    assert locked.complete
    assert locked.extended_objects > 0
    assert locked.locked_until is not None
    assert locked.locked_until >= clock.moment + MONTH / 2 - DAY
    found = survey(scene.open())
    seen = seen_locks(found.entries)
    assert seen["a"].locked_until == locked.locked_until
    assert [immutable_until(p, seen) for p in found.points] == [{"a": locked.locked_until}] * 2
    later = scene.backup({"t": noise(50, 9000)}).session
    found = survey(scene.open())
    untold = {p.id: immutable_until(p, seen) for p in found.points}
    assert untold[later] == {}


def test_a_plan_extends_nothing() -> None:
    scene, store, clock = locking_scene()
    days_of_backups(scene, clock, 2)
    clock.moment += 29 * DAY
    before, objects = dict(store.until), set(store.objects)
    done = retain(keeper(scene), rules(daily=1), clock, Silent(), dry_run=True)
    assert (done.locks, store.until, set(store.objects)) == ({}, before, objects)


def test_locks_that_nobody_extends_are_an_alarm_before_they_lapse() -> None:
    scene, _, clock = locking_scene()
    days_of_backups(scene, clock, 1)
    assert alarms(scene) == []
    clock.moment += 15 * DAY
    ((name, message),) = alarms(scene)
    assert name == "locks-lapse"
    assert "nobody has ever extended" in message
    keep_locked(keeper(scene), clock, Silent())
    assert alarms(scene) == []
    clock.moment += 24 * DAY
    ((_, message),) = alarms(scene)
    assert "lapse in" in message
    clock.moment += 30 * DAY
    ((_, message),) = alarms(scene)
    assert "have lapsed" in message
    keep_locked(Vault.open(scene.replicas(), scene.write_key, None), clock, Silent())
    assert alarms(scene) == []


def test_a_bucket_that_does_not_lock_any_more_is_an_alarm() -> None:
    scene, store, clock = locking_scene()
    days_of_backups(scene, clock, 1)
    store.locking = False
    ((name, _),) = alarms(scene)
    assert name == "store-lock-absent"
    done = keep_locked(scene.open(), clock, Silent())
    assert done["a"].problem is not None


def test_a_command_that_runs_often_looks_once_a_day() -> None:
    scene, store, clock = locking_scene()
    days_of_backups(scene, clock, 1)
    hour = timedelta(hours=1)
    assert keep_locked(scene.open(), clock, Silent(), unless_seen_within=20 * hour)
    asked, written = store.requests, len(entries(scene.open()))
    clock.moment += hour
    assert keep_locked(scene.open(), clock, Silent(), unless_seen_within=20 * hour) == {}
    assert (store.requests, len(entries(scene.open()))) == (asked, written)
    clock.moment += 20 * hour
    assert keep_locked(scene.open(), clock, Silent(), unless_seen_within=20 * hour)["a"].complete


def test_stores_that_do_not_lock_are_not_asked() -> None:
    scene, store, clock = locking_scene()
    days_of_backups(scene, clock, 1)
    assert isinstance(store, LockingObjects)
    scene.stores["a"] = type(store).__mro__[1]("a", store.objects)
    assert keep_locked(scene.open(), clock, Silent()) == {}
    assert alarms(scene) == []
