"""What each key can do, and what it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, UsageError
from cellarer.vault import crypto
from cellarer.vault.index import open_segment
from cellarer.vault.keys import Identity, WriteKey
from cellarer.vault.known import load_references
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.manifest import References
from cellarer.vault.pack import read_toc
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.record import open_record
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
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


def test_a_write_key_opens_no_content(written: Founded) -> None:
    opened = 0
    for name, data in written.stores["a"].objects.items():
        for key in keys_of_a_writer(written.write_key):
            for plain in attempts(key, name, data):
                opened += 1
                assert MARKER not in plain
                assert PATH.encode() not in plain
    assert opened, "the attempts reach the index at least"


def test_a_write_key_cannot_open_a_record_of_its_own_vault(written: Founded) -> None:
    vault = Vault.open(written.replicas(), written.write_key, None)
    for place in load_references(vault, vault.commits()[-1]).records:
        sealed = written.stores["a"].read_range(place.pack, place.offset, place.length)
        for key in keys_of_a_writer(written.write_key):
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
        written.identity.secret.encode(),
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
    stranger = found()
    forged_key = replace(scene.write_key, signing_seed=stranger.write_key.signing_seed)
    vault = Vault.open(scene.replicas(), forged_key, None)
    scene.backup({"t": b"forged"}, vault)
    with pytest.raises(DamagedData, match="whole") as caught:
        scene.open().commits()
    assert "does not know" in caught.value.detail


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
    assert Identity.from_text(written.identity.to_text()) == written.identity


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"format": "cellarer-write-key", "version": 1}', "\0", "é"]
)
def test_nonsense_is_no_key(text: str) -> None:
    with pytest.raises(KeyUnusable):
        WriteKey.from_text(text)
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
