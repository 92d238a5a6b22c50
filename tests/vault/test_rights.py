"""What each key can do, and what it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, UsageError
from cellarer.vault import crypto
from cellarer.vault.index import open_segment
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.known import load_references
from cellarer.vault.ledger import facts, proofs, record_fact, record_proof
from cellarer.vault.manifest import References
from cellarer.vault.pack import read_toc
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.record import open_record
from cellarer.vault.trust import FACTS, Role
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from hostile import whole_fact
from stand_ins import Founded, all_restored, found, noise, restored

MARKER = b"MARKER-of-a-secret"
PATH = "PATH-of-a-secret/table"
CONTENTS = {PATH: (MARKER + b" in text\n") * 500, "noise": noise(1, 90_000) + MARKER}


@pytest.fixture(scope="module")
def written() -> Founded:
    """A vault with one point that only a write key was there to make."""
    scene = found()
    vault = Vault.open(scene.replicas(), scene.write_key, None)
    scene.backup(CONTENTS, vault)
    scene.backup(CONTENTS, vault)
    return scene


def keys_of_a_collector(scene: Founded) -> list[bytes]:
    """The same for a collector, who holds less."""
    assert scene.collect_key
    held = [scene.collect_key.signing_seed, scene.collect_key.index]
    purposes = ["cellarer/1/domain/db", "cellarer/1/records/0", "cellarer/1/admin"]
    return held + [crypto.derive(key, purpose) for key in held for purpose in purposes]


def keys_of_a_writer(write_key: WriteKey) -> list[bytes]:
    """Everything a writer holds, and what it can derive by the purposes that the format knows."""
    held = [write_key.signing_seed, write_key.index, write_key.chunk_ids]
    purposes = ["cellarer/1/domain/db", "cellarer/1/records/0", "cellarer/1/admin"]
    return held + [crypto.derive(key, purpose) for key in held for purpose in purposes]


def attempts(key: bytes, name: str, data: bytes) -> Iterator[bytes]:
    """The ways in which the program opens whole objects, tried on one of them with one key."""
    ways: list[Callable[[], bytes]] = [
        lambda: b"".join(toc.to_bytes() for _, toc in open_segment(key, data)),
        lambda: repr(References.unseal(key, data)).encode(),
        lambda: read_toc(data, key).to_bytes(),
        lambda: crypto.unseal(key, data, name),
    ]
    for way in ways:
        try:
            yield way()
        except DamagedData:
            continue


@pytest.mark.parametrize("right", ["write", "collect"])
def test_a_write_or_collect_key_opens_no_content(written: Founded, right: str) -> None:
    keys = keys_of_a_writer(written.write_key) if right == "write" else keys_of_a_collector(written)
    opened = 0
    for name, data in written.stores["a"].objects.items():
        for key in keys:
            for plain in attempts(key, name, data):
                opened += 1
                assert MARKER not in plain
                assert PATH.encode() not in plain
    assert opened, "the attempts reach the index at least"


def test_a_write_key_cannot_open_a_record_of_its_own_vault(written: Founded) -> None:
    vault = Vault.open(written.replicas(), written.write_key, None)
    for place in load_references(vault, vault.commits()[-1]).records:
        sealed = written.stores["a"].read_range(place.pack, place.offset, place.length)
        for key in (*keys_of_a_writer(written.write_key), *keys_of_a_collector(written)):
            cipher = crypto.RecordCipher(bytes.fromhex(vault.id), place.session, key)
            with pytest.raises(DamagedData):
                open_record(cipher, place.id, sealed)


def test_the_very_same_attempt_opens_records_with_the_identity(written: Founded) -> None:
    vault = written.open()
    plain = b""
    for place in load_references(vault, vault.commits()[-1]).records:
        sealed = written.stores["a"].read_range(place.pack, place.offset, place.length)
        root = vault.session_root(place.session)
        cipher = crypto.RecordCipher(bytes.fromhex(vault.id), place.session, root)
        plain += b"".join(open_record(cipher, place.id, sealed))
    assert MARKER in plain
    assert PATH.encode() in plain


def test_a_write_key_is_no_identity(written: Founded) -> None:
    text = written.write_key.to_text()
    assert "AGE-SECRET-KEY" not in text
    with pytest.raises(KeyUnusable):
        Identity.from_text(text)


def test_nothing_is_stored_in_the_clear(written: Founded) -> None:
    secrets = [
        MARKER,
        PATH.encode(),
        written.identity.secrets[0].text.encode(),
        *(key.hex().encode() for key in keys_of_a_writer(written.write_key)),
        *keys_of_a_writer(written.write_key),
    ]
    for name, data in written.stores["a"].objects.items():
        assert not any(secret in data for secret in secrets), name


def test_a_write_key_lists_and_dedups_but_does_not_read(written: Founded) -> None:
    vault = Vault.open(written.replicas(), written.write_key, None)
    first, second = vault.commits()
    assert second.body["added_bytes"] < 1000 < first.body["added_bytes"]
    with pytest.raises(KeyUnusable, match="identity"):
        SnapshotReader(vault, second)


def test_an_identity_alone_lists_and_reads(written: Founded) -> None:
    vault = Vault.open(written.replicas(), None, written.identity)
    assert list(all_restored(vault).values()) == [CONTENTS, CONTENTS]
    with pytest.raises(UsageError, match="no write key"):
        SnapshotWriter(vault, "db", "test", written.now)


def test_an_identity_alone_records_proofs() -> None:
    scene = found()
    proof = ProofRecord(
        "p", "db", Proof.PROVEN, True, scene.now(), 1.0, (Check("c", True, "", ""),)
    )
    record_proof(Vault.open(scene.replicas(), None, scene.identity), proof)
    for keys in ((scene.write_key, None), (None, scene.identity)):
        assert proofs(Vault.open(scene.replicas(), *keys)) == [proof]


def test_no_key_at_all(written: Founded) -> None:
    with pytest.raises(KeyUnusable, match="needs a key"):
        Vault.open(written.replicas(), None, None)


def test_a_foreign_identity(written: Founded) -> None:
    with pytest.raises(KeyUnusable, match="does not open"):
        Vault.open(written.replicas(), None, Identity.generate())
    vault = Vault.open(written.replicas(), written.write_key, Identity.generate())
    with pytest.raises(KeyUnusable, match="does not open"):
        SnapshotReader(vault, vault.commits()[0])


def test_a_foreign_write_key(written: Founded) -> None:
    with pytest.raises(KeyUnusable, match="another vault"):
        Vault.open(written.replicas(), found().write_key, None)
    for forged in (
        replace(found().write_key, vault=written.write_key.vault),
        replace(written.write_key, admin=found().write_key.admin),
    ):
        with pytest.raises(DamagedData, match="does not know"):
            Vault.open(written.replicas(), forged, None)


def test_a_foreign_index_key(written: Founded) -> None:
    forged = replace(written.write_key, index=crypto.new_key())
    with pytest.raises(CellarerError, match="no replica has"):
        Vault.open(written.replicas(), forged, None).commits()


def test_a_commit_of_an_unknown_signer_is_refused() -> None:
    scene = found()
    commit = scene.backup({"t": b"forged"})
    resign(scene, f"snapshots/{commit.session}", "snapshot", found().write_key.signer)
    with pytest.raises(DamagedData, match="whole") as caught:
        scene.open().commits()
    assert "does not know" in caught.value.detail


def test_a_write_key_that_the_vault_does_not_know_begins_no_session() -> None:
    scene = found()
    forged_key = replace(scene.write_key, signing_seed=found().write_key.signing_seed)
    vault = Vault.open(scene.replicas(), forged_key, None)
    with pytest.raises(KeyUnusable, match="does not trust"):
        scene.backup({"t": b"forged"}, vault)


def resign(scene: Founded, key: str, purpose: str, signer: crypto.Signer) -> None:
    """What somebody could do who holds another key, and a store that overwrites."""
    objects = scene.stores["a"].objects
    objects[key] = signer.sign(purpose, json.loads(objects[key])["body"])


def test_a_commit_under_another_name_is_refused() -> None:
    scene = found()
    first = scene.backup({"t": b"first"})
    second = scene.backup({"t": b"second"})
    objects = scene.stores["a"].objects
    objects[f"snapshots/{second.session}"] = objects[f"snapshots/{first.session}"]
    vault = scene.open()
    assert [commit.session for commit in vault.commits()] == [first.session]
    assert "another snapshot" in vault.unreadable[f"snapshots/{second.session}"].detail


def test_a_ledger_entry_under_another_name_is_refused() -> None:
    scene = found()
    proof = ProofRecord("p", "db", Proof.PROVEN, True, scene.now(), 1.0, ())
    record_proof(scene.open(), proof)
    objects = scene.stores["a"].objects
    key = next(key for key in objects if key.startswith("ledger/"))
    objects[f"{key}0"] = objects[key]
    vault = scene.open()
    assert proofs(vault) == [proof]
    assert list(vault.unreadable) == [f"{key}0"]


# --------------------------------------------------------------------- whose signature counts


def collecting(scene: Founded) -> Vault:
    """Opened with nothing but the collect key."""
    return Vault.open(scene.replicas(), None, None, scene.collect_key)


def only(scene: Founded, role: Role) -> Vault:
    """Opened with the one key that stands for this right."""
    write_key = scene.write_key if role is Role.WRITER else None
    identity = scene.identity if role is Role.ADMINISTRATOR else None
    collect_key = scene.collect_key if role is Role.COLLECTOR else None
    return Vault.open(scene.replicas(), write_key, identity, collect_key)


def test_a_collect_key_lists_and_neither_reads_nor_writes(written: Founded) -> None:
    vault = collecting(written)
    assert [c.source for c in vault.commits()] == ["db", "db"]
    assert load_references(vault, vault.commits()[0]).records
    with pytest.raises(KeyUnusable):
        SnapshotReader(vault, vault.commits()[0])
    with pytest.raises(KeyUnusable, match="identity"):
        vault.session_root(vault.commits()[0].session)
    with pytest.raises(UsageError, match="no write key"):
        SnapshotWriter(vault, "db", "test", written.now)
    with pytest.raises(KeyUnusable, match="does not name chunks"):
        vault.domain_key("db")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("matter", FACTS)
def test_who_may_state_a_fact(matter: str, role: Role) -> None:
    scene = found()
    vault = only(scene, role)
    fact = {**whole_fact(matter), "of": "this test"}
    if role in FACTS[matter]:
        record_fact(vault, fact, scene.now())
        (stated,) = facts(scene.open(), matter)
        assert (stated["type"], stated["of"]) == (matter, "this test")
        return
    with pytest.raises(KeyUnusable, match=f"no key that may sign: {matter}"):
        record_fact(vault, fact, scene.now())
    # Whoever holds the key need not use this program: the same entry, made by hand.
    seal = crypto.sealed_text(vault.index_key, {**fact, "time": "x"}, f"ledger {LEDGER_ENTRY}")
    body: dict[str, object] = {
        "key": LEDGER_ENTRY, "previous": "", "sealed": seal, "vault": vault.id
    }  # fmt: skip
    scene.stores["a"].create(LEDGER_ENTRY, vault.signers(role)[0].sign("ledger", body))
    reader = scene.open()
    assert facts(reader) == []
    assert f"may not sign: {matter}" in reader.unreadable[LEDGER_ENTRY].detail


LEDGER_ENTRY = "ledger/2026-03-01/000000000000-00000000"


def test_an_unknown_type_of_fact_is_skipped() -> None:
    scene = found()
    vault = scene.open()
    seal = crypto.sealed_text(vault.index_key, {"type": "of 2030"}, f"ledger {LEDGER_ENTRY}")
    body: dict[str, object] = {
        "key": LEDGER_ENTRY, "previous": "", "sealed": seal, "vault": vault.id
    }  # fmt: skip
    scene.stores["a"].create(LEDGER_ENTRY, scene.write_key.signer.sign("ledger", body))
    record_fact(vault, whole_fact("damage"), scene.now())
    assert [fact["type"] for fact in facts(vault)] == ["damage"]
    assert vault.unreadable == {}


@pytest.mark.parametrize("role", [Role.COLLECTOR, Role.ADMINISTRATOR])
def test_only_a_writer_commits(role: Role) -> None:
    scene = found()
    first, second = scene.backup({"t": b"first"}), scene.backup({"t": b"second"})
    key = f"snapshots/{second.session}"
    resign(scene, key, "snapshot", only(scene, role).signers(role)[0])
    vault = scene.open()
    assert [commit.session for commit in vault.commits()] == [first.session]
    assert "may not sign: commit" in vault.unreadable[key].detail


@pytest.mark.parametrize("role", [Role.COLLECTOR, Role.ADMINISTRATOR])
def test_only_a_writer_announces(role: Role) -> None:
    scene = found()
    commit = scene.backup({"t": b"first"})
    (signer,) = only(scene, role).signers(role)
    resign(scene, f"sessions/{commit.session}", "session", signer)
    with pytest.raises(DamagedData) as caught:
        restored(scene.open(), commit)
    assert "may not sign: session" in caught.value.detail


@pytest.mark.parametrize("role", Role)
def test_who_may_end_a_session(role: Role) -> None:
    scene = found()
    scene.backup({"t": b"first"})
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    writer.abandon()
    key = f"snapshots/{writer.session}"
    (signer,) = only(scene, role).signers(role)
    body: dict[str, object] = {
        "outcome": "abort", "session": writer.session, "vault": scene.write_key.vault,
        "writer": "x",
    }  # fmt: skip
    scene.stores["a"].objects[key] = signer.sign("snapshot", body)
    vault = scene.open()
    assert len(vault.commits()) == 1
    assert vault.unreadable == {}


def test_the_least_key_signs() -> None:
    scene = found()
    vault = Vault.open(scene.replicas(), scene.write_key, scene.identity, scene.collect_key)
    for matter, role in (
        ("session", Role.WRITER),
        ("damage", Role.WRITER),
        ("forgotten", Role.COLLECTOR),
        ("proof", Role.ADMINISTRATOR),
    ):
        assert vault.signer_for(matter).public == vault.signers(role)[0].public


def test_keys_of_two_vaults_do_not_go_together() -> None:
    scene, other = found(), found()
    with pytest.raises(KeyUnusable, match="another vault"):
        Vault.open(scene.replicas(), scene.write_key, None, other.collect_key)
    with pytest.raises(KeyUnusable, match="another vault"):
        Vault.open(scene.replicas(), None, None, other.collect_key)


def test_a_session_key_of_another_session_is_refused() -> None:
    scene = found()
    first, second = scene.backup({"t": b"first"}), scene.backup({"t": b"second"})
    objects = scene.stores["a"].objects
    objects[f"keys/{second.session}.0.age"] = objects[f"keys/{first.session}.0.age"]
    vault = scene.open()
    assert restored(vault, first) == {"t": b"first"}
    with pytest.raises(DamagedData) as caught:
        restored(vault, second)
    assert "another session" in caught.value.detail


def test_keys_survive_their_files(written: Founded) -> None:
    assert WriteKey.from_text(written.write_key.to_text()) == written.write_key
    assert written.collect_key
    assert CollectKey.from_text(written.collect_key.to_text()) == written.collect_key
    assert Identity.from_text(written.identity.to_text()) == written.identity


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"format": "cellarer-write-key", "version": 1}', "\0", "é"]
)
def test_nonsense_is_no_key(text: str) -> None:
    with pytest.raises(KeyUnusable):
        WriteKey.from_text(text)
    with pytest.raises(KeyUnusable):
        CollectKey.from_text(text)
    with pytest.raises(KeyUnusable):
        Identity.from_text(text)


def test_a_broken_write_key_shows_nothing_of_itself(written: Founded) -> None:
    text = written.write_key.to_text()
    secret = written.write_key.index.hex()
    with pytest.raises(KeyUnusable) as caught:
        WriteKey.from_text(text.replace(secret, secret[:-2]))
    assert secret[:8] not in str(caught.value) + caught.value.hint
    assert secret[:8] not in repr(written.write_key)
    assert "AGE-SECRET-KEY" not in repr(written.identity)
