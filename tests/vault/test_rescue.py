"""The break-glass reader, alone: no cellarer, its three libraries, and the `age` program."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bare_machine import (
    LIBRARIES,
    Machine,
    damaged,
    files,
    made_in,
    run_alone,
)
from cellarer.domain.snapshot import Entry
from cellarer.vault import crypto, rescue, writer
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity
from cellarer.vault.manifest import contents_lines
from stand_ins import flip, found, noise
from vault.collecting import collect, drop, repack

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def machine(tmp_path: Path, small_packs: None) -> Machine:
    return made_in(tmp_path)


def test_lists_the_points(machine: Machine) -> None:
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(machine.expected)
    assert [line[2:] for line in lines] == [
        ["db", "test", str(len(contents)), str(sum(map(len, contents.values())))]
        for contents in machine.expected.values()
    ]


def test_writes_every_point_byte_for_byte(machine: Machine) -> None:
    packs = [key for key in machine.founded.stores["a"].objects if key.startswith("packs/")]
    assert len(packs) > 3, "the test wants records in several packs"
    for session, contents in machine.expected.items():
        done = machine.run(session, str(machine.out / session))
        assert (done.returncode, done.stderr) == (0, "")
        assert files(machine.out / session) == contents


def test_finds_records_where_repacks_put_them(tmp_path: Path, small_packs: None) -> None:
    scene = found()
    whole = noise(1, 200_000)
    contents = [
        {"t": whole},
        {"t": b"".join(whole[at : at + 16_000] for at in range(0, 200_000, 40_000))},
        {"t": b"".join(whole[at : at + 6_000] for at in range(0, 200_000, 40_000))},
    ]
    points = [scene.backup(each).session for each in contents]
    for gone in points[:2]:
        drop(scene, gone)
        collect(scene)
        assert repack(scene).plan.packs
        collect(scene)
    made = Machine(tmp_path, scene)
    made.download()
    done = made.run(points[2], str(made.out))
    assert (done.returncode, done.stderr) == (0, "")
    assert files(made.out) == contents[2]


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("vault", "identity.txt"),
        ("vault-with-rounds", "identity.txt"),
        ("vault-with-rounds", "second-identity.txt"),
        ("vault-with-moves", "identity.txt"),
    ],
)
def test_reads_the_golden_vaults(tmp_path: Path, name: str, identity: str) -> None:
    directory = GOLDEN / name
    expected = json.loads((directory / "expected.json").read_text(encoding="utf-8"))
    founder = expected["founder"] if identity.startswith("second") else ""
    script = Path(rescue.__file__)
    given = [str(directory / "replica"), str(directory / identity)]
    listed = run_alone(tmp_path, script, given, founder=founder).stdout.splitlines()
    sessions = [point["session"] for point in expected["points"]]
    assert [line.split("\t")[0] for line in listed if "forgotten" not in line] == sessions
    for point in expected["points"]:
        out = tmp_path / point["session"]
        arguments = [*given, point["session"], str(out)]
        assert run_alone(tmp_path, script, arguments, founder=founder).returncode == 0
        written = files(out).items()
        found_sums = {p: [len(data), hashlib.sha256(data).hexdigest()] for p, data in written}
        assert found_sums == point["streams"]


# ----------------------------------------------------------------------------------------- damage


def middle(machine: Machine, key: str) -> Callable[[bytes], bytes]:
    return flip(len(machine.founded.stores["a"].objects[key]) // 2 * 8)


def test_flipped_bit_spoils_only_the_streams_it_is_in(machine: Machine) -> None:
    session, contents = next(iter(machine.expected.items()))
    packs = [key for key in machine.founded.stores["a"].objects if key.startswith("packs/")]
    damaged(machine, packs[0], flip(100 * 8))
    done = machine.run(session, str(machine.out))
    assert done.returncode == 1
    assert "does not authenticate" in done.stderr
    written = files(machine.out)
    assert 0 < len(written) < len(contents)
    assert written == {path: contents[path] for path in written}
    assert all(f"error: {path!r}" in done.stderr for path in contents.keys() - written.keys())


@pytest.mark.parametrize("kind", ["config", "keys", "sessions", "snapshots", "meta"])
def test_flipped_bit_anywhere_is_seen(machine: Machine, kind: str) -> None:
    commit = machine.commits[0]
    key = {
        "config": layout.config_key(0),
        "keys": layout.envelope_key(commit.session),
        "sessions": layout.session_key(commit.session),
        "snapshots": layout.snapshot_key(commit.session),
        "meta": commit.body["references"],
    }[kind]
    damaged(machine, key, middle(machine, key))
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not machine.out.exists() or files(machine.out) == {}


def test_damaged_register_hides_no_other_point(machine: Machine) -> None:
    key = layout.snapshot_key(machine.commits[0].session)
    damaged(machine, key, middle(machine, key))
    done = machine.run()
    assert done.returncode == 1
    assert key in done.stderr
    listed = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert listed == list(machine.expected)[1:]


def test_sum_that_differs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is whole, and yet the stream is not what its source gave."""

    def lies(entries: Iterable[Entry]) -> Iterator[bytes]:
        return contents_lines(
            replace(e, sum="blake3:" + "0" * 64) if e.path == "bad" else e for e in entries
        )

    monkeypatch.setattr(writer, "contents_lines", lies)
    commit = machine.founded.backup({"good": b"good", "bad": b"bad"})
    machine.download()
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert "size or sum differ" in done.stderr
    assert files(machine.out) == {"good": b"good"}


def test_missing_pack(machine: Machine) -> None:
    key = next(k for k in machine.founded.stores["a"].objects if k.startswith("packs/"))
    damaged(machine, key, lambda data: None)
    done = machine.run(machine.commits[0].session, str(machine.out))
    assert done.returncode == 1
    assert key in done.stderr


# ----------------------------------------------------------------------------------------- deceit


def test_references_of_another_point_are_refused(machine: Machine) -> None:
    """They open, and what they name is whole; but they are not what the register signed."""
    one, other = (commit.body["references"] for commit in machine.commits[:2])
    damaged(machine, one, lambda data: machine.founded.stores["a"].objects[other])
    done = machine.run(machine.commits[0].session, str(machine.out))
    assert done.returncode == 1
    assert "not those of the point" in done.stderr


def test_session_key_that_was_not_announced_is_refused(machine: Machine) -> None:
    session = machine.commits[0].session
    vault = machine.founded.open()
    forged = {"root": "00" * 32, "session": session, "vault": vault.id}
    sealed = crypto.seal_to_recipients(layout.canonical_json(forged), vault.recipients)
    damaged(machine, layout.envelope_key(session), lambda data: sealed)
    done = machine.run(session, str(machine.out))
    assert done.returncode == 1
    assert "not the one it announced" in done.stderr


def test_configuration_of_another_founder_is_refused(machine: Machine) -> None:
    body = json.loads(machine.founded.stores["a"].objects[layout.config_key(0)])["body"]
    forged = Identity.generate().signers[0].sign("config", body)
    damaged(machine, layout.config_key(0), lambda data: forged)
    done = machine.run()
    assert done.returncode == 1
    assert "not trusted" in done.stderr


@pytest.mark.parametrize("path", ["../evil", "a/../../evil", "/evil", "a//evil", "a/./evil", ".."])
def test_no_stream_leaves_the_directory(machine: Machine, path: str) -> None:
    commit = machine.founded.backup({path: b"evil", "good": b"good"})
    machine.download()
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert "not safe" in done.stderr
    assert files(machine.out) == {"good": b"good"}
    assert list(machine.directory.rglob("evil")) == []


# ---------------------------------------------------------------------------------- other mistakes


def test_aborted_session_is_no_point(machine: Machine) -> None:
    session = layout.new_session(datetime(2026, 5, 1, tzinfo=UTC))
    key = machine.founded.write_key
    body: dict[str, object] = {
        "outcome": "abort", "session": session, "vault": key.vault, "writer": key.writer,
    }  # fmt: skip
    data = key.signer.sign("snapshot", body)
    machine.founded.stores["a"].create(layout.snapshot_key(session), data)
    machine.download()
    assert session not in machine.run().stdout
    done = machine.run(session, str(machine.out))
    assert done.returncode == 1
    assert "aborted" in done.stderr


def test_another_identity(machine: Machine) -> None:
    text = Identity.generate().to_text()
    (machine.directory / "identity.txt").write_text(text, encoding="utf-8")
    done = machine.run()
    assert done.returncode == 1
    assert "the identity is of another vault" in done.stderr


def test_without_age(machine: Machine) -> None:
    done = machine.run(path=str(machine.directory))
    assert done.returncode == 1
    assert "install" in done.stderr


def test_never_writes_into_what_is_there(machine: Machine) -> None:
    machine.out.mkdir()
    done = machine.run(machine.commits[0].session, str(machine.out))
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert files(machine.out) == {}


def test_wrong_arguments_show_the_usage(machine: Machine) -> None:
    done = machine.run("only-a-point")
    assert done.returncode == 2
    assert "python rescue.py VAULT IDENTITY POINT OUT" in done.stderr


# -------------------------------------------------------------------------------- what is promised


def test_every_vault_holds_it(machine: Machine) -> None:
    shipped = machine.founded.stores["a"].objects[layout.RESCUE_KEY]
    assert shipped == Path(rescue.__file__).read_bytes()


def test_needs_only_what_it_says() -> None:
    source = Path(rescue.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
        )
    }
    assert imported <= set(sys.stdlib_module_names) | set(LIBRARIES)
