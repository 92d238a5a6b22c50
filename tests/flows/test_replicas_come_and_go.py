"""A replica is added to a full vault, goes away, comes back months later, or is taken out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest

from cellarer.domain.snapshot import Proof
from cellarer.errors import StoreError
from cellarer.flows import backup
from cellarer.flows.backup import back_up
from cellarer.flows.points import list_points
from cellarer.flows.status import status
from cellarer.flows.sync import synchronise
from cellarer.flows.verify import verify
from cellarer.ports import Store
from cellarer.vault import writing
from cellarer.vault.ledger import entries
from cellarer.vault.repair import standing_damage
from cellarer.vault.vault import Vault
from faulty import Gate
from flows.test_flows import Shelf, Silent
from stand_ins import Fault, Faults, FaultyStore, Founded, Objects, all_restored, flip, found, noise

RED, WHITE = {"t": noise(1, 40_000)}, {"t": noise(1, 40_000) + noise(2, 9_000)}
ROSE = {"t": noise(3, 20_000)}


class Notes(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def write(scene: Founded, contents: dict[str, bytes], vault: Vault | None = None) -> Notes:
    """A backup by a host that cannot read."""
    notes = Notes()
    opened = vault or Vault.open(scene.replicas(), scene.write_key, None)
    back_up(opened, Shelf(contents), notes, scene.now)
    return notes


def sync(scene: Founded) -> dict[str, str]:
    vault = Vault.open(scene.replicas(), scene.write_key, None)
    outcomes = synchronise(vault.replicas, vault, Silent(), scene.now)
    return {n: str(o.problem) if o.problem else "" for n, o in outcomes.items()}


def states(scene: Founded) -> list[dict[str, str]]:
    """Of each point, oldest first: which replica holds it."""
    return [point.replicas for point in reversed(list_points(scene.open()))]


def alarms(scene: Founded) -> list[str]:
    vault = scene.open()
    found_status = status(vault, list_points(vault), {}, timedelta(days=1), scene.now())
    return [f"{alarm.subject}: {alarm.message}" for alarm in found_status.alarms]


def test_a_new_replica_is_filled_by_sync_and_takes_part_then() -> None:
    scene = found(1)
    write(scene, RED)
    scene.stores["b"] = Objects("b")
    (alarm,) = alarms(scene)
    assert "vault.replicas.b: holds no vault" in alarm
    notes = write(scene, WHITE)
    assert any("left out" in note for note in notes.told)
    # A backup does not fill it: it may be a disk that is not mounted.
    assert scene.stores["b"].objects == {}
    assert states(scene)[-1] == {"a": "stored", "b": "behind"}
    assert sync(scene) == {"a": "", "b": ""}
    assert alarms(scene) == []
    assert write(scene, ROSE).told == []
    assert states(scene) == [{"a": "stored", "b": "stored"}] * 3
    assert len(all_restored(scene.alone("b").open())) == 3


def test_filling_a_new_replica_is_interrupted_and_goes_on() -> None:
    original = found(1)
    write(original, RED)
    write(original, WHITE)
    whole = len(original.stores["a"].objects)
    for number in itertools.count():
        scene = original.copy()
        scene.stores["b"] = Objects("b")
        faults = Faults(
            lambda n: Fault.REFUSE if n >= number else None,  # noqa: B023
            lambda method: method == "create",
        )

        def wrap(name: str, store: Objects, faults: Faults = faults) -> Store:
            return FaultyStore(store, faults) if name == "b" else store

        vault = Vault.open(scene.replicas(wrap), scene.write_key, None)
        outcome = synchronise(vault.replicas, vault, Silent(), scene.now)["b"]
        if outcome.problem is None:
            break
        assert isinstance(outcome.problem, StoreError)
        before = len(scene.stores["b"].objects)
        # Half of a vault is no place for a new point, and says so.
        write(scene, ROSE)
        assert states(scene)[-1]["b"] == "behind"
        assert len(scene.stores["b"].objects) == before
        assert alarms(scene) != []
        assert sync(scene)["b"] == ""
        assert scene.stores["b"].objects == scene.stores["a"].objects
        write(scene, RED)
        assert states(scene)[-1] == {"a": "stored", "b": "stored"}
    assert number == whole


def test_a_point_damaged_everywhere_keeps_no_new_replica_out() -> None:
    scene = found(2)
    write(scene, RED)
    for store in scene.stores.values():
        for key in [key for key in store.objects if key.startswith("packs/")]:
            store.damage(key, flip(900))
    scene.stores["c"] = Objects("c")
    assert "restore points stay out" in sync(scene)["c"]
    damage = standing_damage(entries(scene.open()))
    assert {"a", "b"} <= set(damage)
    # The next backup builds on nothing damaged, and so reaches the new replica.
    notes = write(scene, WHITE)
    assert any("replica c is behind" in note for note in notes.told)
    notes = write(scene, ROSE)
    assert any("replica c is behind" in note for note in notes.told)
    assert not any("left out" in note for note in notes.told)
    assert [state["c"] for state in states(scene)] == ["behind", "stored", "stored"]
    assert any("vault.replicas.c: lacks 1 restore point of" in alarm for alarm in alarms(scene))
    vault = scene.alone("c").open()
    assert list(all_restored(vault).values()) == [WHITE, ROSE]
    newest = list_points(scene.open())[0]
    assert verify(scene.open(), newest, Proof.SCRUBBED, None, Silent(), scene.now).passed


def test_a_replica_that_comes_back_after_months_is_caught_up_and_read_as_it_is() -> None:
    scene = found(2)
    write(scene, RED)
    stale = dict(scene.stores["b"].objects)
    left = scene.alone("a")
    for contents in (WHITE, ROSE, RED):
        write(left, contents)
    scene.stores["b"] = Objects("b", stale)
    # Nothing that it lacks is taken for gone, and nothing of it is taken for the newest.
    assert list(all_restored(scene.open()).values()) == [RED, WHITE, ROSE, RED]
    assert states(scene)[-1] == {"a": "stored", "b": "behind"}
    (alarm,) = alarms(scene)
    assert "vault.replicas.b: lacks 3 restore points" in alarm
    notes = write(scene, WHITE)
    assert "replica b was behind and is up to date again" in notes.told
    assert scene.stores["b"].objects == scene.stores["a"].objects
    assert write(scene, ROSE).told == []


def test_a_replica_that_was_taken_out_is_asked_for_no_more() -> None:
    scene = found(3, write_quorum=2)
    write(scene, RED)
    fewer = replace(scene, stores={name: scene.stores[name] for name in "ac"})
    gone = dict(scene.stores["b"].objects)
    assert write(fewer, WHITE).told == []
    assert states(fewer) == [{"a": "stored", "c": "stored"}] * 2
    assert (alarms(fewer), sync(fewer)) == ([], {"a": "", "c": ""})
    assert scene.stores["b"].objects == gone


def test_a_replica_that_drops_out_is_back_by_the_end_of_the_backup() -> None:
    scene = found(2)
    write(scene, RED)
    faults = Faults(lambda n: Fault.REFUSE if n == 2 else None, lambda method: method == "create")
    replicas = scene.replicas(lambda name, s: FaultyStore(s, faults) if name == "b" else s)
    vault = Vault.open(replicas, scene.write_key, None)
    notes = write(scene, WHITE, vault)
    assert "replica b was left out of this backup: create was refused" in notes.told
    assert "replica b was behind and is up to date again" in notes.told
    assert states(scene)[-1] == {"a": "stored", "b": "stored"}
    assert alarms(scene) == []


def test_a_backup_killed_at_its_last_write_keeps_the_next_one_from_nothing() -> None:
    scene = found(3, write_quorum=2)
    write(scene, RED)
    for name in "bc":
        for key in [k for k in scene.stores[name].objects if k.startswith("snapshots/")]:
            scene.stores[name].damage(key, lambda data: None)
    write(scene, WHITE)
    assert states(scene) == [{"a": "stored", "b": "stored", "c": "stored"}] * 2


def test_a_replica_that_hangs_is_a_debt_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATIENCE_SECONDS", "SILENT_SECONDS", "CLOSING_SECONDS"):
        monkeypatch.setattr(writing, name, 0.0)
    scene, gate = found(2), Gate()
    faults = Faults(lambda _: gate, lambda method: method == "create")
    replicas = scene.replicas(lambda name, s: FaultyStore(s, faults) if name == "b" else s)
    notes = write(scene, RED, Vault.open(replicas, scene.write_key, None))
    gate.opened.set()
    assert [note.partition(": ")[0] for note in notes.told] == [
        "replica b was left out of this backup"
    ]
    (alarm,) = alarms(scene)
    assert "lacks 1 restore point of" in alarm
    assert "went on without it: replica b does not answer" in alarm
    vault = scene.open()
    (_, owing) = status(vault, list_points(vault), {}, None, scene.now()).replicas
    assert owing.last_error.startswith("replica b does not answer")


def test_a_replica_that_was_too_slow_is_not_waited_for_when_the_backup_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, gate = found(2), Gate()
    write(scene, RED)
    for name in ("PATIENCE_SECONDS", "CLOSING_SECONDS"):
        monkeypatch.setattr(writing, name, 0.0)
    # Of this backup it takes nothing before the point is there, and then everything at once.
    faults = Faults(lambda _: gate, lambda method: method == "create")

    def wrap(name: str, store: Objects) -> Store:
        return FaultyStore(store, faults) if name == "b" else store

    notes = write(scene, WHITE, Vault.open(scene.replicas(wrap), scene.write_key, None))
    assert any("too slow" in note for note in notes.told)
    gate.opened.set()
    assert states(scene)[-1] == {"a": "stored", "b": "behind"}
    assert sync(scene) == {"a": "", "b": ""}
    assert states(scene)[-1] == {"a": "stored", "b": "stored"}


def test_catching_up_after_a_backup_is_bounded_and_goes_on_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = found(2)
    left = scene.stores["b"].objects.copy()
    write(scene, RED)
    write(scene, WHITE)
    scene.stores["b"].objects = left
    monkeypatch.setattr(backup, "CATCHING_UP_SECONDS", 0.0)
    notes = write(scene, ROSE)
    assert any("lacks more than could be copied in time" in note for note in notes.told)
    assert [state["b"] for state in states(scene)] == ["behind"] * 3
    monkeypatch.undo()
    write(scene, RED)
    assert [state["b"] for state in states(scene)] == ["stored"] * 4
