"""Today's code reads a vault with write-ahead log as it was first written."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bare_machine import Machine, files
from cellarer.domain.wal import lsn_text
from cellarer.errors import DamagedData, WalAbsent
from cellarer.vault import format as layout
from cellarer.vault.founding import rescue_program
from cellarer.vault.keys import Identity, WriteKey
from cellarer.vault.ledger import entries
from cellarer.vault.log import LogReader, systems
from cellarer.vault.log_object import parse_header
from cellarer.vault.vault import Vault
from make_golden_log import vectors
from scrubbing import run
from stand_ins import Founded, Objects

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vault-with-log"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
SYSTEM = EXPECTED["system"]


def text(name: str) -> str:
    return (GOLDEN / name).read_text(encoding="utf-8")


@pytest.fixture
def golden() -> Founded:
    """The vault on a store in memory, with the keys of its founder."""
    replica = GOLDEN / "replica"
    found = (path for path in replica.rglob("*") if path.is_file())
    objects = {path.relative_to(replica).as_posix(): path.read_bytes() for path in found}
    return Founded(
        {"a": Objects("a", {**objects, layout.RESCUE_KEY: rescue_program()})},
        1,
        WriteKey.from_text(text("write-key.json")),
        Identity.from_text(text("identity.txt")),
        lambda: datetime(2026, 4, 1, tzinfo=UTC),
    )


def test_both_identities_read_all_of_it(golden: Founded) -> None:
    second = Identity.from_text(text("second-identity.txt"))
    opened = Vault.open(golden.replicas(), None, second, founder=EXPECTED["founder"])
    for vault in (golden.open(), opened):
        reader = LogReader(vault, SYSTEM)
        read = {name: reader.read(name) for name in EXPECTED["files"]}
        assert {
            name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in read.items()
        } == EXPECTED["files"]


def test_what_there_is_and_what_is_not(golden: Founded) -> None:
    assert systems(golden.open()) == [SYSTEM]
    reader = LogReader(golden.open(), SYSTEM)
    found = reader.continuity()
    assert [(w.timeline, lsn_text(w.from_lsn), lsn_text(w.to_lsn)) for w in found.windows] == [
        (1, "0/00200000", "0/00400000"),
        (2, "0/00300000", "0/00403000"),
    ]
    assert not any(window.gaps for window in found.windows)
    assert lsn_text(found.reach(1, 0x200028, 2).lsn) == "0/00403000"
    with pytest.raises(DamagedData, match="any more"):
        reader.read("000000010000000000000001")
    with pytest.raises(WalAbsent):
        reader.read("000000020000000000000005")


def test_the_ledger_and_a_scrub_find_it_whole(golden: Founded) -> None:
    assert [entry.fact for entry in entries(golden.open())] == EXPECTED["facts"]
    assert run(golden, deep=True).remaining == []


def test_objects_are_padded_and_say_what_they_are(golden: Founded) -> None:
    stored = {k: d for k, d in golden.stores["a"].objects.items() if k.startswith("wal/")}
    assert len(stored) == 7
    for key, data in stored.items():
        header = parse_header(key, data)
        body = len(data) - header.offset
        assert layout.padded_length(body) == body
        assert hashlib.sha256(data[header.offset :]).hexdigest() == header.body_sha256


def test_rescue_writes_it(golden: Founded, tmp_path: Path) -> None:
    machine = Machine(tmp_path, golden)
    machine.download()
    done = machine.run(f"wal/{SYSTEM}", str(machine.out))
    assert (done.returncode, done.stderr) == (0, "")
    written = files(machine.out)
    whole = {name: data for name, data in written.items() if name in EXPECTED["files"]}
    assert len(written) == 7
    assert len(whole) == 5
    for name, data in whole.items():
        assert [len(data), hashlib.sha256(data).hexdigest()] == EXPECTED["files"][name]


def test_what_follows_from_fixed_keys() -> None:
    assert vectors() == EXPECTED["vectors"]
    specification = (GOLDEN.parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    for name in ("public", "ephemeral", "key", "content"):
        assert EXPECTED["vectors"][name] in specification
