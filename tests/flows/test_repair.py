"""Damage on one replica is healed from another, and stands in the books until it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cellarer.domain.snapshot import Proof
from cellarer.errors import DamagedData, StoreError
from cellarer.flows.history import look_back
from cellarer.flows.keys import add_recipient, remove_recipient
from cellarer.flows.points import list_points, survey
from cellarer.flows.repair import heal_damage
from cellarer.flows.verify import verify
from cellarer.ports import ObjectInfo
from cellarer.vault.catchup import catch_up
from cellarer.vault.genuine import Trust
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import entries
from cellarer.vault.repair import heal, standing_damage, whole
from cellarer.vault.vault import Vault
from key_changes import NOW
from stand_ins import Founded, Objects, all_restored, flip, found, noise, truncate

KINDS = (
    "format.json",
    "rescue.py",
    "config/",
    "keys/",
    "sessions/",
    "snapshots/",
    "index/",
    "packs/",
    "meta/",
    "ledger/",
)
PLAIN = ("format.json", "rescue.py")


class Silent:
    def begin(self, title: str, total_bytes: int | None) -> None: ...
    def advance(self, read_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


class Locked(Objects):
    """A store whose objects cannot be deleted."""

    def delete(self, key: str) -> None:
        raise StoreError(f"{key} is locked")


def scrubbed(scene: Founded) -> None:
    """Verify the newest point by reading it."""
    vault = scene.open()
    point = list_points(vault)[0]
    assert verify(vault, point, Proof.SCRUBBED, None, Silent(), scene.now).passed


@pytest.fixture
def scene() -> Founded:
    made = found(replicas=2)
    made.backup({"t": noise(1, 30_000)})
    scrubbed(made)
    return made


def key_of(scene: Founded, kind: str) -> str:
    return next(key for key in sorted(scene.stores["a"].objects) if key.startswith(kind))


def alarms(scene: Founded) -> list[str]:
    vault = scene.open()
    return [finding.id for finding in look_back(vault, survey(vault), None)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replica", ["a", "b"])
def test_every_kind_of_object_is_healed(scene: Founded, kind: str, replica: str) -> None:
    key = key_of(scene, kind)
    good = scene.stores[replica].objects[key]
    # In plain text a flipped bit may leave something that could be meant.
    flipped = truncate(5) if kind in PLAIN else flip(len(good) * 4)
    for change in (flipped, truncate(len(good) // 2), lambda _: None):
        scene.stores[replica].damage(key, change)
        vault = scene.open()
        assert not whole(vault, key, replica)
        assert heal(vault, key, replica)
        assert scene.stores[replica].objects[key] == good
        assert whole(vault, key, replica)
        assert not heal(vault, key, replica)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*PLAIN, "config/")])
def test_nothing_is_healed_from_what_is_not_certain(scene: Founded, kind: str) -> None:
    key = key_of(scene, kind)
    for bit, store in enumerate(scene.stores.values()):  # at one place, so that no mix is right
        store.damage(key, flip(len(store.objects[key]) * 4 + bit))
    before = scene.copy()
    for name in scene.stores:
        with pytest.raises(DamagedData):
            heal(scene.open(), key, name)
    for name, store in scene.stores.items():
        assert before.stores[name].objects == store.objects


@pytest.mark.parametrize("how", ["flipped", "lost"])
def test_the_keys_of_the_vault_are_sealed_anew_where_this_host_has_them(
    scene: Founded, how: str
) -> None:
    key = key_of(scene, "keys/vault")
    for store in scene.stores.values():
        store.damage(key, flip(2000) if how == "flipped" else lambda _: None)
    for name in scene.stores:
        assert heal(scene.open(), key, name)
    assert len({store.objects[key] for store in scene.stores.values()}) == 1
    assert all_restored(Vault.open(scene.replicas(), None, scene.identity))


def test_without_the_identity_and_a_register_that_names_them_envelopes_need_two_that_agree(
    scene: Founded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellarer.vault.registers.Commit.envelope", None)
    key = key_of(scene, "keys/2")
    scene.stores["a"].damage(key, flip(2000))
    vault = Vault.open(scene.replicas(), scene.write_key, None)
    with pytest.raises(DamagedData, match="nobody can tell"):
        heal(vault, key, "a")
    scene.stores["c"] = Objects("c", scene.stores["b"].objects)
    assert heal(Vault.open(scene.replicas(), scene.write_key, None), key, "a")
    assert scene.stores["a"].objects[key] == scene.stores["b"].objects[key]


def test_a_verification_heals_what_it_met(scene: Founded) -> None:
    good = dict(scene.stores["a"].objects)
    scene.stores["a"].damage(key_of(scene, "packs/"), flip(900))
    scene.stores["a"].damage(key_of(scene, "keys/2"), lambda _: None)
    scrubbed(scene)
    assert {key: scene.stores["a"].objects[key] for key in good} == good
    facts = [entry.fact["type"] for entry in entries(scene.open())]
    assert facts == ["proof", "proof", "damage", "repair"]
    assert standing_damage(entries(scene.open())) == {}
    assert alarms(scene) == []


def test_what_cannot_be_healed_stands_until_it_is_whole(scene: Founded) -> None:
    key = key_of(scene, "packs/")
    scene.stores["a"] = Locked("a", scene.stores["a"].objects)
    good = scene.stores["a"].objects[key]
    scene.stores["a"].damage(key, flip(900))
    for _ in range(2):
        scrubbed(scene)
        assert list(standing_damage(entries(scene.open()))["a"]) == [key]
        assert alarms(scene) == ["damage-stands"]
    damage = [e for e in entries(scene.open()) if e.fact["type"] == "damage"]
    assert len(damage) == 1
    scene.stores["a"].objects[key] = good  # the disk was repaired
    scrubbed(scene)
    assert alarms(scene) == []


def test_a_replica_that_is_behind_is_not_damaged(scene: Founded) -> None:
    b = scene.stores["b"]
    scene.stores = {"b": b, "a": scene.stores["a"]}
    for key in [key for key in b.objects if key.startswith(("snapshots/", "packs/", "keys/2"))]:
        b.delete(key)
    scrubbed(scene)
    assert not any(key.startswith("packs/") for key in b.objects)
    assert alarms(scene) == []


def test_a_store_that_does_not_keep_what_is_written_is_told(scene: Founded) -> None:
    class Rotten(Objects):
        def read(self, key: str) -> bytes:
            data = super().read(key)
            return flip(900)(data) if key.startswith("packs/") else data

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            return super().list(prefix)

    scene.stores["a"] = Rotten("a", scene.stores["a"].objects)
    key = key_of(scene, "packs/")
    (outcome,) = heal_damage(scene.open(), {"a": [key]}, scene.now)
    assert "does not keep" in str(outcome.failed[key])
    assert alarms(scene) == ["damage-stands"]


def test_an_envelope_for_one_who_was_removed_is_never_brought_back(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    old = dict(scene.stores["b"].objects)
    remove_recipient(scene.open(), second.recipients[0], NOW)
    superseded = [key for key in old if key not in scene.stores["b"].objects]
    assert superseded
    for key in superseded:
        scene.stores["b"].objects[key] = old[key]
        assert not heal(scene.open(), key, "a")
    heal_damage(scene.open(), {"a": superseded}, scene.now)
    assert not set(superseded) & set(scene.stores["a"].objects)
    assert alarms(scene) == []


def test_configurations_of_all_epochs_are_copied_and_healed(scene: Founded) -> None:
    add_recipient(scene.open(), Identity.generate().recipients[0], NOW)
    epochs = [key for key in sorted(scene.stores["a"].objects) if key.startswith("config/")]
    assert len(epochs) > 1
    for key in epochs:
        good = scene.stores["a"].objects[key]
        scene.stores["a"].damage(key, flip(len(good) * 4))
        assert heal(scene.open(), key, "a")
        assert scene.stores["a"].objects[key] == good
    scene.stores["c"] = Objects("c")
    done = catch_up(scene.replicas(), lambda _: None, Trust.of(scene.open()))["c"]
    assert done.problem is None
    assert {key: scene.stores["c"].objects.get(key) for key in epochs} == {
        key: scene.stores["a"].objects[key] for key in epochs
    }
