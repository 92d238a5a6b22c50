"""A damaged envelope is damage, not a wrong key; and nothing is built upon a key that is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cellarer.domain.snapshot import Proof
from cellarer.errors import DamagedData, KeyUnusable
from cellarer.flows.keys import add_recipient, remove_recipient
from cellarer.flows.points import list_points
from cellarer.flows.verify import verify
from cellarer.vault.genuine import Trust
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import entries
from cellarer.vault.repair import heal, standing_damage
from cellarer.vault.vault import Vault
from key_changes import NOW
from scrubbing import FIRST, Silent, key_of, run, told, writer_only
from stand_ins import Founded, flip, found, restored, truncate

STANZA = (30, 60, 100)
"""Bytes of the first recipient's stanza: its kind, its share, the wrapped key."""


@pytest.fixture
def scene() -> Founded:
    made = found(replicas=2)
    made.backup(FIRST)
    return made


def xor4(offset: int) -> Callable[[bytes], bytes]:
    return flip(offset * 8 + 2)


@pytest.mark.parametrize("offset", STANZA)
def test_a_damaged_stanza_is_damage_and_heals(scene: Founded, offset: int) -> None:
    key = key_of(scene, "keys/2")
    good = scene.stores["a"].objects[key]
    scene.stores["a"].damage(key, xor4(offset))
    with pytest.raises(DamagedData):
        Trust.of(scene.open()).check(key, scene.stores["a"].objects[key])
    vault = scene.open()
    assert verify(vault, list_points(vault)[0], Proof.SCRUBBED, None, Silent(), scene.now).passed
    assert scene.stores["a"].objects[key] == good


@pytest.mark.parametrize("offset", STANZA)
def test_on_all_replicas_it_is_damage_too(scene: Founded, offset: int) -> None:
    key = key_of(scene, "keys/2")
    for store in scene.stores.values():
        store.damage(key, xor4(offset))
    (commit,) = scene.open().commits()
    with pytest.raises(DamagedData):
        restored(scene.open(), commit)
    vault = scene.open()
    record = verify(vault, list_points(vault)[0], Proof.SCRUBBED, None, Silent(), scene.now)
    assert not record.passed
    assert told(run(scene).damaged) == [("a", key), ("b", key)]
    assert list(standing_damage(entries(scene.open()))) == ["a", "b"]


def test_another_identity_is_still_a_wrong_key(scene: Founded) -> None:
    (commit,) = scene.open().commits()
    vault = Vault.open(scene.replicas(), scene.write_key, Identity.generate())
    with pytest.raises(KeyUnusable):
        restored(vault, commit)
    assert vault.replicas.damaged == {}


def test_without_the_identity_the_register_tells(scene: Founded) -> None:
    key = key_of(scene, "keys/2")
    good = scene.stores["a"].objects[key]
    trust = Trust.of(writer_only(scene))
    assert trust.check(key, good)
    scene.stores["a"].damage(key, xor4(60))
    with pytest.raises(DamagedData):
        trust.check(key, scene.stores["a"].objects[key])
    assert heal(writer_only(scene), key, "a")
    assert scene.stores["a"].objects[key] == good


@pytest.mark.parametrize("where", ["a", "b", "ab"])
@pytest.mark.parametrize("kind", ["keys/2", "sessions/"])
@pytest.mark.parametrize("change", [xor4(60), truncate(90), lambda _: None])
def test_a_writer_builds_on_no_session_whose_key_is_lost(
    scene: Founded, where: str, kind: str, change: Callable[[bytes], bytes | None]
) -> None:
    key = key_of(scene, kind)
    for name in where:
        scene.stores[name].damage(key, change)
    vault = writer_only(scene)
    commit = scene.backup(FIRST, vault)
    assert commit.body["added_bytes"] >= sum(map(len, FIRST.values()))
    assert all(key in vault.replicas.damaged[name] for name in where)
    for name in scene.stores:
        assert restored(scene.alone(name).open(), commit) == FIRST
    assert scene.backup(FIRST, writer_only(scene)).body["added_bytes"] == 0


def test_a_register_that_names_no_envelope_is_judged_by_the_replicas(
    scene: Founded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in vaults from before registers did: flipped on one replica it shows, on both not."""
    monkeypatch.setattr("cellarer.vault.registers.Commit.envelope", None)
    scene.stores["b"].damage(key_of(scene, "keys/2"), xor4(60))
    commit = scene.backup(FIRST, writer_only(scene))
    assert commit.body["added_bytes"] >= sum(map(len, FIRST.values()))


def test_whole_keys_are_built_upon(scene: Founded) -> None:
    vault = writer_only(scene)
    assert scene.backup(FIRST, vault).body["added_bytes"] == 0
    assert vault.replicas.damaged == {}


def test_envelopes_that_were_sealed_anew_are_built_upon_while_the_replicas_agree(
    scene: Founded,
) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    assert scene.backup(FIRST, writer_only(scene)).body["added_bytes"] == 0
    remove_recipient(scene.open(), second.recipients[0], NOW)
    assert scene.backup(FIRST, writer_only(scene)).body["added_bytes"] == 0
    key = key_of(scene, "keys/2")
    scene.stores["b"].damage(key, xor4(60))
    commit = scene.backup(FIRST, writer_only(scene))
    assert commit.body["added_bytes"] >= sum(map(len, FIRST.values()))


def test_one_who_was_added_tells_damage_from_what_was_never_for_them(scene: Founded) -> None:
    """They open the newer generation only; where that is damaged, the older is no excuse."""
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    (commit,) = scene.open().commits()
    key = next(key for key in scene.stores["a"].objects if key.endswith(f"{commit.session}.1.age"))
    for store in scene.stores.values():
        store.damage(key, xor4(60))
    vault = Vault.open(scene.replicas(), scene.write_key, second)
    with pytest.raises(DamagedData):
        restored(vault, commit)
    for name in scene.stores:
        scene.stores[name].damage(key, lambda _: None)
    assert restored(scene.open(), commit) == FIRST
