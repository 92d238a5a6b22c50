"""The break-glass reader and vaults whose keys were changed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bare_machine import (
    Machine,
    damaged,
    files,
    made_in,
)
from cellarer.flows.keys import add_recipient, rotate, rotate_write_key
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity


@pytest.fixture
def machine(tmp_path: Path, small_packs: None) -> Machine:
    return made_in(tmp_path)


def test_reads_with_the_identity_that_took_the_place_of_another(
    machine: Machine, tmp_path: Path
) -> None:
    new = Identity.generate()
    rotate(machine.founded.open(), new, NOW)
    rotated = replace(machine.founded, identity=new)
    replaced = rotate_write_key(rotated.open(), tmp_path / "w.key", NOW)
    after = replace(machine, founded=replace(rotated, write_key=replaced))
    commit = after.founded.backup({"t": b"after"})
    after.download()
    for session, contents in {**machine.expected, commit.session: {"t": b"after"}}.items():
        done = after.run(session, str(after.out / session))
        assert (done.returncode, done.stderr) == (0, "")
        assert files(after.out / session) == contents


def test_an_identity_that_was_added_is_told_whom_to_trust(machine: Machine) -> None:
    second, founder = Identity.generate(), machine.founded.write_key.admin
    add_recipient(machine.founded.open(), second.recipients[0], NOW)
    machine.download()
    (machine.directory / "identity.txt").write_text(second.to_text(), encoding="utf-8")
    done = machine.run()
    assert done.returncode == 1
    assert "CELLARER_FOUNDER" in done.stderr
    done = machine.run(founder=founder)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(machine.expected)
    assert machine.run(founder="00" * 32).returncode == 1


def test_a_commit_of_a_retired_key_is_refused_unless_it_was_there(
    machine: Machine, tmp_path: Path
) -> None:
    session = machine.commits[0].session
    stolen = machine.founded.write_key
    rotate_write_key(machine.founded.open(), tmp_path / "w.key", NOW)
    key = layout.snapshot_key(session)
    body = json.loads(machine.founded.stores["a"].objects[key])["body"]
    forged = stolen.signer.sign("snapshot", {**body, "extra": 1})
    damaged(machine, key, lambda data: forged)
    done = machine.run()
    assert done.returncode == 1
    assert "retired" in done.stderr
    assert len(done.stdout.splitlines()) == len(machine.expected) - 1


NOW = datetime(2026, 5, 1, tzinfo=UTC)
