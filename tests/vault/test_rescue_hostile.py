"""The break-glass reader where a writer, or whoever may add objects, sides with the fire."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bare_machine import Machine, files, made_in
from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.flows.keys import add_recipient
from cellarer.vault import crypto, writer
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity
from cellarer.vault.manifest import contents_lines
from hostile import commit_of, inner_of, put
from key_changes import NOW
from vault.collecting import collect, repack
from vault.wasteful import KEPT, wasteful


@pytest.fixture
def machine(tmp_path: Path, small_packs: None) -> Machine:
    return made_in(tmp_path)


def reads_on(machine: Machine) -> str:
    """Everything is listed and restored as before; what was told on the way."""
    machine.download()
    listed = machine.run()
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == list(machine.expected)
    for session, contents in machine.expected.items():
        done = machine.run(session, str(machine.out / session))
        assert done.returncode == 0, done.stderr
        assert files(machine.out / session) == contents
    return listed.stderr


def sealed_envelope(machine: Machine, value: dict[str, str]) -> bytes:
    return crypto.seal_to_recipients(
        layout.canonical_json(value), machine.founded.identity.recipients
    )


@pytest.mark.parametrize("generation", [1, 2, 99])
@pytest.mark.parametrize("vault", ["", "00" * 16])
def test_keys_that_somebody_sealed_as_a_generation_to_come(
    machine: Machine, generation: int, vault: str
) -> None:
    keys = {"chunk_ids": "11" * 32, "index": "22" * 32}
    forged = {**keys, "vault": vault or machine.founded.write_key.vault}
    key = layout.envelope_key("vault", generation)
    put(machine.founded, key, sealed_envelope(machine, forged))
    session = machine.commits[0].session
    root = {"root": "00" * 32, "session": session, "vault": machine.founded.write_key.vault}
    put(machine.founded, layout.envelope_key(session, 1), sealed_envelope(machine, root))
    put(machine.founded, f"keys/{session}.next.age", b"no envelope")
    assert reads_on(machine) == ""


def test_newer_keys_that_do_not_fit_send_it_to_the_older(machine: Machine) -> None:
    """Somebody was faster than the administrator who adds a recipient, and took the name."""
    session = machine.commits[0].session
    root = {"root": "00" * 32, "session": session, "vault": machine.founded.write_key.vault}
    put(machine.founded, layout.envelope_key(session, 1), sealed_envelope(machine, root))
    with pytest.raises(DamagedData, match="could not be sealed"):
        add_recipient(machine.founded.open(), Identity.generate().recipients[0], NOW)
    assert reads_on(machine) == ""


@pytest.mark.parametrize("data", [b"no configuration", b"[]", b'{"signed_by": []}'])
def test_an_epoch_that_somebody_added_is_told_of_and_no_more(machine: Machine, data: bytes) -> None:
    put(machine.founded, layout.config_key(1), data)
    assert "config/00000001" in reads_on(machine)


def test_an_epoch_of_nobody(machine: Machine) -> None:
    before = machine.founded.stores["a"].objects[layout.config_key(0)]
    body = {**json.loads(before)["body"], "epoch": 1}
    body["previous"] = hashlib.sha256(before).hexdigest()
    forged = Identity.generate().signers[0].sign("config", body)
    put(machine.founded, layout.config_key(1), forged)
    assert "config/00000001" in reads_on(machine)


INNERS = [
    {"streams": "x\x1b[2J"}, {"finished": "2026\n2026"}, {"kind": "\u202e"},
]  # fmt: skip


@pytest.mark.parametrize("change", [*INNERS, {}, [], 5])
def test_a_commit_that_says_nonsense_hides_no_other(machine: Machine, change: object) -> None:
    inner: Any = {**inner_of(machine.founded), **change} if isinstance(change, dict) else change
    if not change:
        inner = {"nothing": 1}
    key = commit_of(machine.founded, inner, session="20260101T000000Z-00c0ffee")
    machine.download()
    done = machine.run()
    assert done.returncode == 1
    assert key in done.stderr
    assert "Traceback" not in done.stderr
    listed = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert listed[-len(machine.expected) :] == list(machine.expected)
    assert "\x1b" not in done.stdout


def test_a_commit_in_the_name_of_another_writer(machine: Machine) -> None:
    key = commit_of(machine.founded, inner_of(machine.founded), writer="w-ffffffff")
    machine.download()
    done = machine.run()
    assert done.returncode == 1
    assert key in done.stderr


@pytest.mark.parametrize("name", ["../identity.txt", "/etc/hostname", "packs/../../identity.txt"])
def test_nothing_is_read_outside_of_the_vault(machine: Machine, name: str) -> None:
    key = commit_of(machine.founded, {**inner_of(machine.founded), "references": name})
    machine.download()
    done = machine.run(key.partition("/")[2], str(machine.out))
    assert done.returncode == 1
    assert "no name of an object" in done.stderr


def test_a_stream_longer_than_its_entry_says_ends_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(given: Any) -> Iterator[bytes]:
        return contents_lines(
            Entry(e.path, e.kind, 10, e.sum) if e.path == "t" else e for e in given
        )

    monkeypatch.setattr(writer, "contents_lines", short)
    commit = machine.founded.backup({"t": b"0123456789" * 100_000, "s": b"whole"})
    machine.download()
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert "more of it" in done.stderr
    assert files(machine.out) == {"s": b"whole"}


@pytest.mark.parametrize("change", [{"path": 7}, {"blake3": None}, {"size": "1"}, [], None, 5])
def test_contents_of_any_kind(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    def changed(given: Any) -> Iterator[bytes]:
        for line in contents_lines(given):
            value = {**json.loads(line), **change} if isinstance(change, dict) else change
            yield json.dumps(value).encode() + b"\n"

    monkeypatch.setattr(writer, "contents_lines", changed)
    commit = machine.founded.backup({"t": b"text"})
    machine.download()
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert files(machine.out) == {}


def test_a_table_of_moves_that_says_nonsense_hides_no_other(
    tmp_path: Path, small_packs: None
) -> None:
    scene, kept = wasteful()
    assert repack(scene).plan.packs
    collect(scene)
    assert scene.collect_key is not None
    for number, plain in enumerate((b"", b"nonsense", layout.frame({"moves": 1}, bytes(20)))):
        session = f"20260101T00000{number}Z-00c0ffee"
        data = crypto.seal(scene.write_key.index, plain, "cellarer/1/moves")
        name = layout.object_key(layout.META_PREFIX, hashlib.sha256(data).hexdigest())
        purpose = f"snapshot {session}"
        body: dict[str, object] = {
            "outcome": "repack",
            "sealed": crypto.sealed_text(scene.write_key.index, {"moves": name}, purpose),
            "session": session,
            "vault": scene.write_key.vault,
            "writer": scene.collect_key.signer.public,
        }
        put(scene, name, data)
        register = scene.collect_key.signer.sign("snapshot", body)
        put(scene, layout.snapshot_key(session), register)
    made = Machine(tmp_path, scene)
    made.download()
    done = made.run(kept, str(made.out))
    assert (done.returncode, done.stderr) == (0, "")
    assert files(made.out) == KEPT
