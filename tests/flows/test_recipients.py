"""Recipients and write keys that come and go, while everything stored stays readable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cellarer.domain.snapshot import Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, UsageError
from cellarer.flows.keys import (
    add_recipient,
    list_keys,
    remove_recipient,
    rotate,
    rotate_write_key,
)
from cellarer.ports import Store
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.catchup import catch_up
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import proofs, record_fact, record_proof
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from key_changes import FIRST, NOW, SECOND, founder_of, read_by
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    all_restored,
    found,
)
from vault.collecting import drop


@pytest.fixture
def scene() -> Founded:
    made = found(replicas=2)
    made.backup(FIRST)
    return made


# -------------------------------------------------------------------------------------- recipients


def test_one_that_is_added_reads_what_was_and_what_comes(scene: Founded) -> None:
    second = Identity.generate()
    done = add_recipient(scene.open(), second.recipients[0], NOW)
    assert (done.sessions, done.resealed, done.kept) == (
        1,
        2,
        {},
    )  # the vault's and the session's
    scene.backup(SECOND)
    for identity in (scene.identity, second):
        assert list(read_by(scene, identity).values()) == [FIRST, SECOND]
    assert scene.open().recipients == (*scene.identity.recipients, *second.recipients)


def test_one_that_is_added_needs_to_be_told_whom_to_trust(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    with pytest.raises(KeyUnusable) as caught:
        Vault.open(scene.replicas(), None, second)
    assert "vault.founder" in caught.value.hint
    assert Vault.open(scene.replicas(), scene.write_key, second).commits()


def test_one_that_is_added_may_state_proofs_and_change_keys(scene: Founded) -> None:
    second, third = Identity.generate(), Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    vault = Vault.open(scene.replicas(), scene.write_key, second)
    proof = ProofRecord("p", "db", Proof.PROVEN, True, NOW, 1.0, ())
    record_proof(vault, proof)
    assert proofs(scene.open()) == [proof]
    add_recipient(vault, third.recipients[0], NOW)
    assert list(read_by(scene, third).values()) == [FIRST]


def test_adding_twice_changes_nothing(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    before = scene.copy()
    assert add_recipient(scene.open(), second.recipients[0], NOW).resealed == 0
    assert scene.stores["a"].objects == before.stores["a"].objects


def test_one_that_is_removed_reads_no_more(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    scene.backup(SECOND)
    remove_recipient(scene.open(), second.recipients[0], NOW)
    scene.backup(FIRST)
    assert list(read_by(scene, scene.identity).values()) == [FIRST, SECOND, FIRST]
    with pytest.raises(KeyUnusable, match="does not open"):
        read_by(scene, second)
    for store in scene.stores.values():
        for key, data in store.objects.items():
            if key.startswith("keys/"):
                with pytest.raises(KeyUnusable):
                    second.open(data, key)


def test_the_key_that_a_removed_one_could_sign_with_is_worth_nothing(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    thief = Vault.open(scene.replicas(), scene.write_key, second)
    before = ProofRecord("p", "db", Proof.PROVEN, True, NOW, 1.0, ())
    record_proof(thief, before)
    signer = thief.signer_for("proof")
    remove_recipient(scene.open(), second.recipients[0], NOW)
    assert proofs(scene.open()) == [before]
    thief.signer_for = lambda matter: signer  # type: ignore[method-assign]
    record_fact(thief, {"type": "retention", "kept": 0, "removed": []}, NOW)
    vault = scene.open()
    assert proofs(vault) == [before]
    (refused,) = vault.too_late
    assert refused.startswith("ledger/")
    assert vault.unreadable == {}
    body = {**vault.configuration.body, "epoch": 3, "previous": vault.configuration.sha256}
    for store in scene.stores.values():
        store.create(layout.config_key(3), signer.sign("config", body))
    assert scene.open().configuration.epoch == 2
    with pytest.raises(DamagedData, match="can be trusted"):
        scene.backup(SECOND)


def test_the_last_and_the_acting_recipient_stay(scene: Founded) -> None:
    own = scene.identity.recipients[0]
    with pytest.raises(UsageError, match="the one to be removed"):
        remove_recipient(scene.open(), own, NOW)
    add_recipient(scene.open(), Identity.generate().recipients[0], NOW)
    with pytest.raises(UsageError, match="the one to be removed"):
        remove_recipient(scene.open(), own, NOW)
    with pytest.raises(UsageError, match="no recipient"):
        remove_recipient(found().open(), "age1nobody", NOW)
    scene = found()
    add_recipient(scene.open(), Identity.generate().recipients[0], NOW)
    with pytest.raises(UsageError, match="is no recipient"):
        # Though there are older envelopes, which somebody's removal may have left.
        remove_recipient(scene.open(), Identity.generate().recipients[0], NOW)


def test_the_founder_is_removed_by_another(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)
    by_second = Vault.open(scene.replicas(), scene.write_key, second)
    remove_recipient(by_second, scene.identity.recipients[0], NOW)
    assert list(read_by(scene, second).values()) == [FIRST]
    with pytest.raises(KeyUnusable):
        read_by(scene, scene.identity)
    vault = Vault.open(scene.replicas(), scene.write_key, None)
    assert vault.recipients == second.recipients
    scene.backup(SECOND, vault)
    assert list(read_by(scene, second).values()) == [FIRST, SECOND]


def test_a_write_key_alone_changes_no_keys(scene: Founded) -> None:
    vault = Vault.open(scene.replicas(), scene.write_key, None, scene.collect_key)
    recipient = Identity.generate().recipients[0]
    for act in (
        lambda: add_recipient(vault, recipient, NOW),
        lambda: rotate(vault, Identity.generate(), NOW),
        lambda: rotate_write_key(vault, Path("/nowhere/w.key"), NOW),
    ):
        with pytest.raises(KeyUnusable, match="needs an identity"):
            act()
    with pytest.raises(KeyUnusable, match="not an age recipient"):
        add_recipient(scene.open(), "age1nonsense", NOW)


def test_a_replica_that_is_away_stops_a_change(scene: Founded) -> None:
    replicas = scene.replicas(
        lambda name, store: FaultyStore(
            store, Faults(lambda n: Fault.REFUSE if name == "b" else None)
        )
    )
    with pytest.raises(CellarerError, match="every replica"):
        add_recipient(scene.open(replicas), Identity.generate().recipients[0], NOW)
    assert scene.open().configuration.epoch == 0


def test_a_store_that_keeps_what_it_has_is_told_of(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)

    def locked(method: str) -> bool:
        return method == "delete"

    replicas = scene.replicas(
        lambda name, store: FaultyStore(store, Faults(lambda n: Fault.REFUSE, locked))
    )
    done = remove_recipient(scene.open(replicas), second.recipients[0], NOW)
    assert {name: count for name, (count, _) in done.kept.items()} == {"a": 5, "b": 5}
    assert list(read_by(scene, scene.identity).values()) == [FIRST]
    done = remove_recipient(scene.open(), second.recipients[0], NOW)
    assert (done.resealed, done.kept) == (0, {})


def test_a_planted_envelope_is_no_key(scene: Founded) -> None:
    """Who may add objects seals something of his own to the new recipient, under the next name."""
    second = Identity.generate()
    (commit,) = scene.open().commits()
    planted = {"root": "00" * 32, "session": commit.session, "vault": scene.write_key.vault}
    sealed = crypto.seal_to_recipients(
        layout.canonical_json(planted), (*scene.identity.recipients, *second.recipients)
    )
    for store in scene.stores.values():
        store.create(layout.envelope_key(commit.session, 1), sealed)
    with pytest.raises(DamagedData, match="could not be sealed"):
        add_recipient(scene.open(), second.recipients[0], NOW)
    assert list(read_by(scene, scene.identity).values()) == [FIRST]


def test_a_planted_envelope_of_a_point_that_was_given_up_but_built_upon(scene: Founded) -> None:
    """What it sealed is in a point of today: who cannot read the one cannot read the other."""
    (first,) = scene.open().commits()
    second, new = scene.backup(FIRST), Identity.generate()
    assert second.body["added_bytes"] < len(FIRST["t"])
    drop(scene, first.session)
    for store in scene.stores.values():
        store.create(layout.envelope_key(first.session, 1), b"no envelope")
    with pytest.raises(DamagedData, match="could not be sealed"):
        rotate(scene.open(), new, NOW)
    assert list(read_by(scene, scene.identity | new).values()) == [FIRST]


def test_a_removed_one_is_not_brought_back_by_a_replica_that_keeps(scene: Founded) -> None:
    second = Identity.generate()
    add_recipient(scene.open(), second.recipients[0], NOW)

    def keeps(name: str, store: Objects) -> Store:
        refuse = Faults(lambda n: Fault.REFUSE if name == "b" else None, lambda m: m == "delete")
        return FaultyStore(store, refuse)

    remove_recipient(scene.open(scene.replicas(keeps)), second.recipients[0], NOW)
    catch_up(scene.replicas(), lambda copied: None)
    with pytest.raises(KeyUnusable):
        read_by(scene.alone("a"), second)
    scene.stores["c"] = Objects("c")
    catch_up(scene.replicas(), lambda copied: None)
    with pytest.raises(KeyUnusable):
        read_by(scene.alone("c"), second)
    assert list(read_by(scene.alone("c"), scene.identity).values()) == [FIRST]


def test_a_session_that_began_before_is_sealed_anew_later(scene: Founded) -> None:
    second = Identity.generate()
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    for store in scene.stores.values():  # its envelope comes after the change has listed them
        store.objects["late"] = store.objects.pop(f"keys/{writer.session}.0.age")
    add_recipient(scene.open(), second.recipients[0], NOW)
    for store in scene.stores.values():
        store.objects[f"keys/{writer.session}.0.age"] = store.objects.pop("late")
    writer.commit()
    assert list_keys(scene.open()).behind == (writer.session,)
    add_recipient(scene.open(), second.recipients[0], NOW)
    assert list_keys(scene.open()).behind == ()
    assert list(read_by(scene, second).values()) == [FIRST, {}]


# ---------------------------------------------------------------------------------------- rotation


def test_a_new_identity_takes_the_place_of_the_old(scene: Founded) -> None:
    new = Identity.generate()
    rotate(scene.open(), new, NOW)
    packs = {k: v for k, v in scene.copy().stores["a"].objects.items() if k.startswith("packs/")}
    scene.backup(SECOND)
    # With nothing but the new identity: it signed the newest epoch itself.
    vault = Vault.open(scene.replicas(), None, new)
    assert list(all_restored(vault).values()) == [FIRST, SECOND]
    assert vault.recipients == new.recipients
    assert packs.items() <= scene.stores["a"].objects.items()
    with pytest.raises(KeyUnusable):
        read_by(scene, scene.identity)
    again = Identity.generate()
    rotate(vault, again, NOW)
    assert list(all_restored(Vault.open(scene.replicas(), None, again)).values()) == [FIRST, SECOND]


def test_an_identity_does_not_take_its_own_place(scene: Founded) -> None:
    with pytest.raises(UsageError, match="already"):
        rotate(scene.open(), scene.identity, NOW)
    new = Identity.generate()
    rotate(scene.open(), new, NOW)
    after = replace(scene, identity=new)
    with pytest.raises(UsageError, match="already"):
        rotate(after.open(), new, NOW)
    for store in scene.stores.values():  # a store that kept one of the older envelopes
        store.objects["keys/vault.0.age"] = store.objects["keys/vault.1.age"]
    assert rotate(after.open(), new, NOW).kept == {}
    assert "keys/vault.0.age" not in scene.stores["a"].objects


def test_the_founder_that_is_shown_is_the_one_of_this_vault(scene: Founded) -> None:
    """Others will trust that key; a host whose own identity came later looks all the way back."""
    new = Identity.generate()
    rotate(scene.open(), new, NOW)
    vault = Vault.open(scene.replicas(), None, new)
    assert list_keys(vault).founder == founder_of(scene)
    body = json.loads(scene.stores["a"].objects[layout.config_key(0)])["body"]
    forged = Identity.generate().signers[0].sign("config", body)
    for store in scene.stores.values():
        store.objects[layout.config_key(0)] = forged
    with pytest.raises(DamagedData, match="next one names"):
        list_keys(Vault.open(scene.replicas(), None, new))


def test_proofs_stay_valid_when_the_identity_rotates(scene: Founded) -> None:
    proof = ProofRecord("p", "db", Proof.PROVEN, True, NOW, 1.0, ())
    record_proof(scene.open(), proof)
    new = Identity.generate()
    rotate(scene.open(), new, NOW)
    vault = Vault.open(scene.replicas(), None, new)
    assert proofs(vault) == [proof]
    later = replace(proof, point="q")
    record_proof(vault, later)
    assert set(proofs(Vault.open(scene.replicas(), scene.write_key, None))) == {proof, later}


def test_an_old_identity_signs_no_configuration(scene: Founded) -> None:
    rotate(scene.open(), Identity.generate(), NOW)
    vault = Vault.open(scene.replicas(), scene.write_key, None)
    newest = vault.configuration
    body = {**newest.body, "epoch": 3, "previous": newest.sha256}
    for store in scene.stores.values():
        store.create(layout.config_key(3), scene.identity.signers[0].sign("config", body))
    vault = Vault.open(scene.replicas(), scene.write_key, None)
    assert vault.configuration.sha256 == newest.sha256
    assert list(vault.unreadable) == [layout.config_key(3)]


def test_an_epoch_that_does_not_follow_is_refused(scene: Founded) -> None:
    before = scene.open().configuration
    body = {**before.body, "epoch": 1, "previous": "00" * 32}
    for store in scene.stores.values():
        store.create(layout.config_key(1), scene.identity.signers[0].sign("config", body))
    vault = scene.open()
    assert vault.configuration.epoch == 0
    assert "does not follow" in vault.unreadable[layout.config_key(1)].detail
