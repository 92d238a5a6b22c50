"""Every kind of identity founds a vault, reads it, proves it, and is rotated to and from."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

import age_plugin
from cellarer.cli.main import run
from cellarer.domain.snapshot import Proof, ProofRecord
from cellarer.errors import KeyUnusable
from cellarer.flows.keys import add_recipient, remove_recipient, rotate
from cellarer.vault import bech32
from cellarer.vault.age import Person
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.vault import Vault
from stand_ins import all_restored, found

NOW = datetime(2026, 3, 2, tzinfo=UTC)
STREAMS = {"t": b"text" * 100}
PASSPHRASE = "correct horse"


def knowing(secret: str | None) -> Person:
    return Person(lambda question: secret, lambda message: None)


def ssh_key(directory: Path, kind: str, passphrase: str) -> str:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this machine")
    file = directory / f"{kind}{len(passphrase)}"
    words = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(file)]
    subprocess.run([*words, *(["-b", "2048"] if kind == "rsa" else [])], check=True)
    return file.read_text()


@pytest.fixture(params=["x25519", "ed25519", "rsa", "ssh-passphrase", "plugin"])
def identity(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Identity:
    """An identity of each kind."""
    match request.param:
        case "x25519":
            return Identity.generate()
        case "ed25519" | "rsa":
            return Identity.from_text(ssh_key(tmp_path, request.param, ""))
        case "ssh-passphrase":
            return Identity.from_text(ssh_key(tmp_path, "ed25519", "pw pw"), knowing("pw pw"))
    with_plugin(tmp_path, monkeypatch)
    private, public = age_plugin.make()
    return Identity.from_text(f"#    Recipient: {public}\n{private}\n")


def with_plugin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age_plugin.install(directory / "bin")
    monkeypatch.setenv("PATH", f"{directory / 'bin'}:{os.environ['PATH']}")


def proof(point: str) -> ProofRecord:
    return ProofRecord(point, "db", Proof.PROVEN, True, NOW, 1.0, ())


def test_it_founds_reads_and_proves(identity: Identity) -> None:
    scene = found(identity=identity)
    scene.backup(STREAMS, Vault.open(scene.replicas(), scene.write_key, None))
    vault = Vault.open(scene.replicas(), None, identity, founder=scene.write_key.admin)
    assert list(all_restored(vault).values()) == [STREAMS]
    record_proof(vault, proof("p"))
    assert proofs(Vault.open(scene.replicas(), scene.write_key, None)) == [proof("p")]


def test_a_founder_that_is_not_the_vaults_is_refused_whatever_else_is_right() -> None:
    scene = found()
    founder = scene.write_key.admin
    for write_key in (scene.write_key, None):
        opened = Vault.open(scene.replicas(), write_key, scene.identity, founder=founder)
        assert opened.id == scene.open().id
        for wrong in ("00" * 32, "nonsense"):
            with pytest.raises(KeyUnusable, match="another signer of epoch 0"):
                Vault.open(scene.replicas(), write_key, scene.identity, founder=wrong)


def test_it_takes_the_place_of_another_and_makes_room(identity: Identity) -> None:
    scene = found()
    scene.backup(STREAMS)
    rotate(scene.open(), identity, NOW)
    vault = Vault.open(scene.replicas(), scene.write_key, identity)
    assert list(all_restored(vault).values()) == [STREAMS]
    record_proof(vault, proof("p"))
    rotate(vault, scene.identity, NOW)
    with pytest.raises(KeyUnusable):
        all_restored(Vault.open(scene.replicas(), scene.write_key, identity))
    alone = Vault.open(scene.replicas(), None, scene.identity)
    assert list(all_restored(alone).values()) == [STREAMS]
    assert proofs(alone) == [proof("p")]


def test_it_comes_and_goes_as_a_recipient(identity: Identity) -> None:
    scene = found()
    scene.backup(STREAMS)
    add_recipient(scene.open(), identity.recipients[0], NOW)
    vault = Vault.open(scene.replicas(), scene.write_key, identity)
    assert list(all_restored(vault).values()) == [STREAMS]
    record_proof(vault, proof("p"))
    remove_recipient(scene.open(), identity.recipients[0], NOW)
    with pytest.raises(KeyUnusable, match="does not open"):
        all_restored(Vault.open(scene.replicas(), scene.write_key, identity))
    assert proofs(scene.open()) == [proof("p")]


def test_a_recipient_with_a_comment_is_the_same_recipient(identity: Identity) -> None:
    """As `id_ed25519.pub` has one; who was added with it is shut out without, and by a rotation."""
    (recipient,) = identity.recipients
    comment = " me@here" if recipient.startswith("ssh-") else ""
    scene = found()
    scene.backup(STREAMS)
    add_recipient(scene.open(), f" {recipient}{comment}\n", NOW)
    assert scene.open().recipients[1:] == (recipient,)
    vault = Vault.open(scene.replicas(), scene.write_key, identity)
    rotate(vault, Identity.generate(), NOW)
    assert recipient not in scene.open().recipients
    with pytest.raises(KeyUnusable, match="does not open"):
        all_restored(Vault.open(scene.replicas(), scene.write_key, identity))


def test_several_in_one_file() -> None:
    first, second = found(), found()
    both = Identity.from_text(first.identity.to_text() + second.identity.to_text())
    for scene in (first, second):
        scene.backup(STREAMS)
        assert list(all_restored(Vault.open(scene.replicas(), None, both)).values()) == [STREAMS]
    assert both.recipients == (*first.identity.recipients, *second.identity.recipients)


def test_an_identity_with_a_passphrase() -> None:
    """One test for all of it: age makes guessing slow, and that costs seconds each time."""
    scene = found()
    secret = scene.identity.to_text().encode()
    text = pyrage.passphrase.encrypt(secret, PASSPHRASE, armored=True).decode()
    assert Identity.from_text(text, knowing(PASSPHRASE)) == scene.identity
    with pytest.raises(KeyUnusable, match="nobody can be asked") as caught:
        Identity.from_text(text)
    assert "identity_passphrase" in caught.value.hint
    with pytest.raises(KeyUnusable, match="does not open"):
        Identity.from_text(text, knowing("wrong"))


def test_an_ssh_key_with_a_passphrase(tmp_path: Path) -> None:
    text = ssh_key(tmp_path, "ed25519", PASSPHRASE)
    with pytest.raises(KeyUnusable, match="nobody can be asked") as caught:
        Identity.from_text(text)
    assert "identity_passphrase" in caught.value.hint
    with pytest.raises(KeyUnusable, match="does not open"):
        Identity.from_text(text, knowing("wrong"))


def test_a_plugin_asks_for_its_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_plugin(tmp_path, monkeypatch)
    private, public = age_plugin.make()
    text = f"# public key: {public}\n{private}\n"
    scene = found(identity=Identity.from_text(text))
    scene.backup(STREAMS, Vault.open(scene.replicas(), scene.write_key, None))
    monkeypatch.setenv("CELLAR_PIN", "1234")
    for pin in (None, "4321"):
        identity = Identity.from_text(text, knowing(pin))
        with pytest.raises(KeyUnusable, match="does not open"):
            all_restored(Vault.open(scene.replicas(), scene.write_key, identity))
    identity = Identity.from_text(text, knowing("1234"))
    vault = Vault.open(scene.replicas(), scene.write_key, identity)
    assert list(all_restored(vault).values()) == [STREAMS]


def test_a_plugin_that_is_not_here() -> None:
    private, public = age_plugin.make()
    identity = Identity.from_text(f"# public key: {public}\n{private}\n")
    with pytest.raises(KeyUnusable, match="needs its plugin") as caught:
        found(identity=identity)
    assert "age-plugin-cellar" in caught.value.hint
    with pytest.raises(KeyUnusable):
        identity.open(pyrage.encrypt(b"", [pyrage.x25519.Identity.generate().to_public()]), "it")


def test_a_plugins_file_that_does_not_name_its_recipient() -> None:
    private, _ = age_plugin.make()
    with pytest.raises(KeyUnusable, match="does not name its recipient"):
        found(identity=Identity.from_text(private))


@pytest.mark.parametrize(
    "text",
    [
        "AGE-SECRET-KEY-1NONSENSE",
        "AGE-PLUGIN-CELLAR-1NONSENSE",
        "-----BEGIN AGE ENCRYPTED FILE-----\nnonsense\n-----END AGE ENCRYPTED FILE-----\n",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
    ],
)
def test_broken_identities_are_no_keys(text: str) -> None:
    for person in (knowing(None), knowing("x")):
        with pytest.raises(KeyUnusable):
            Identity.from_text(text, person)


@given(st.binary(max_size=60))
def test_bech32_brings_back_what_went_in(data: bytes) -> None:
    text = bech32.encode("age-secret-key-", data)
    assert bech32.decode(text.upper()) == ("age-secret-key-", data)
    for at in range(len("age-secret-key-1"), len(text)):
        mistyped = text[:at] + ("q" if text[at] != "q" else "p") + text[at + 1 :]
        with pytest.raises(ValueError, match="checksum"):
            bech32.decode(mistyped)


def test_bech32_is_that_of_age() -> None:
    secret = str(pyrage.x25519.Identity.generate())
    prefix, data = bech32.decode(secret)
    assert (bech32.encode(prefix, data).upper(), len(data)) == (secret, 32)


def test_init_leaves_nothing_where_the_plugin_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = age_plugin.make()
    identity = tmp_path / "identity.age"
    identity.write_text(f"# recipient: {public}\n{private}\n", encoding="utf-8")
    identity.chmod(0o600)
    config = tmp_path / "cellarer.toml"
    init = ["--config", str(config), "init", "--replica", f"here={tmp_path / 'vault'}"]
    assert run(init) == 5
    assert "age-plugin-cellar" in capsys.readouterr().err
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"identity.age"}
    assert not [path for path in (tmp_path / "vault").rglob("*") if path.is_file()]
