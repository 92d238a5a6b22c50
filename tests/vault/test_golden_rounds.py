"""Today's code reads a vault with retired keys, tombstones and a finished round."""

from __future__ import annotations

import hashlib
import json

import pytest

from cellarer.errors import KeyUnusable
from cellarer.vault.chunker import NOWHERE
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.known import load_references
from cellarer.vault.ledger import entries
from cellarer.vault.roundlog import read_rounds
from cellarer.vault.tombstones import tombstones
from cellarer.vault.vault import Vault
from golden_vaults import expected_of, golden_vault, text_of
from make_golden_vault import vectors
from stand_ins import Founded, restored

NAME = "vault-with-rounds"
EXPECTED = expected_of(NAME)


@pytest.fixture
def golden() -> Founded:
    """The vault on a store in memory, with the keys of its founder."""
    return golden_vault(NAME)


def opened_by(golden: Founded, holder: str) -> Vault:
    """The vault with one key and no other."""
    keys: dict[str, tuple[WriteKey | None, Identity | None, CollectKey | None]] = {
        "founder": (None, golden.identity, None),
        "second": (None, Identity.from_text(text_of(NAME, "second-identity.txt")), None),
        "writer": (golden.write_key, None, None),
        "retired writer": (WriteKey.from_text(text_of(NAME, "retired-write-key.json")), None, None),
        "collector": (None, None, golden.collect_key),
    }
    return Vault.open(golden.replicas(), *keys[holder], founder=EXPECTED["founder"])


EVERYONE = ["founder", "second", "writer", "retired writer", "collector"]


@pytest.mark.parametrize("holder", ["founder", "second"])
def test_every_point_is_read_with_either_identity(golden: Founded, holder: str) -> None:
    vault = opened_by(golden, holder)
    found = {
        commit.session: {
            path: [len(data), hashlib.sha256(data).hexdigest()]
            for path, data in restored(vault, commit).items()
        }
        for commit in vault.commits()
    }
    assert found == {point["session"]: point["streams"] for point in EXPECTED["points"]}


@pytest.mark.parametrize("holder", EVERYONE)
def test_everyone_lists_the_points_and_reads_the_ledger(golden: Founded, holder: str) -> None:
    vault = opened_by(golden, holder)
    assert [c.body for c in vault.commits()] == [point["body"] for point in EXPECTED["points"]]
    assert [entry.fact for entry in entries(vault)] == EXPECTED["facts"]
    assert vault.unreadable == {}
    assert vault.configuration.epoch == 2


@pytest.mark.parametrize("holder", EVERYONE)
def test_what_was_given_up_and_what_was_aborted(golden: Founded, holder: str) -> None:
    vault = opened_by(golden, holder)
    assert tombstones(vault) == {EXPECTED["forgotten"]}
    everything = {commit.session for commit in vault.commits(forgotten=True)}
    assert everything == {EXPECTED["forgotten"], *(p["session"] for p in EXPECTED["points"])}
    assert f"snapshots/{EXPECTED['aborted']}" in golden.stores["a"].objects
    (done,) = read_rounds(vault, vault.replicas.replicas[0])
    assert done.done


def test_streams_with_a_finer_end(golden: Founded) -> None:
    vault = opened_by(golden, "writer")
    finer = [
        stream.cuts.finer_from
        for commit in vault.commits()
        for stream in load_references(vault, commit).streams
        if stream.cuts.finer_from != NOWHERE
    ]
    assert len(finer) == 2


def test_the_new_key_goes_on_and_the_retired_one_does_not(golden: Founded) -> None:
    assert golden.backup({"more": b"text"}).session in {c.session for c in golden.open().commits()}
    with pytest.raises(KeyUnusable):
        opened_by(golden, "retired writer").signer_for("session")


def test_vectors_are_those_of_the_first_golden_vault() -> None:
    assert EXPECTED["vectors"] == expected_of("vault")["vectors"]
    assert EXPECTED["vectors"] == json.loads(json.dumps(vectors()))
