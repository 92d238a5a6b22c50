"""Today's code reads a vault whose records were moved, and whose identity was replaced."""

from __future__ import annotations

import hashlib
import json

import pytest

from cellarer.errors import KeyUnusable
from cellarer.vault import format as layout
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.known import load_references
from cellarer.vault.ledger import entries
from cellarer.vault.moved import tables_on
from cellarer.vault.moves import NOWHERE, Moves, PackNames, as_places
from cellarer.vault.vault import Vault
from golden_vaults import expected_of, golden_vault, text_of
from make_golden_moves import WHOLE, scattered
from make_golden_vault import vectors
from stand_ins import Founded, all_restored, restored
from vault.collecting import collect, keeper, names, repack

NAME = "vault-with-moves"
EXPECTED = expected_of(NAME)
OLD_IDENTITY = "retired-identity.txt"


@pytest.fixture
def golden() -> Founded:
    """The vault on a store in memory, with the keys of its last epoch."""
    return golden_vault(NAME)


def opened_by(golden: Founded, holder: str) -> Vault:
    """The vault with one key and no other."""
    keys: dict[str, tuple[WriteKey | None, Identity | None, CollectKey | None]] = {
        "reader": (None, golden.identity, None),
        "writer": (golden.write_key, None, None),
        "collector": (None, None, golden.collect_key),
    }
    return Vault.open(golden.replicas(), *keys[holder])


EVERYONE = ["reader", "writer", "collector"]


def test_every_point_is_read_with_the_identity_alone(golden: Founded) -> None:
    vault = opened_by(golden, "reader")
    found = {
        commit.session: {
            path: [len(data), hashlib.sha256(data).hexdigest()]
            for path, data in restored(vault, commit).items()
        }
        for commit in vault.commits()
    }
    assert found == {point["session"]: point["streams"] for point in EXPECTED["points"]}


def test_the_packs_that_were_left_are_gone(golden: Founded) -> None:
    vault = opened_by(golden, "writer")
    named = {p for c in vault.commits() for p in load_references(vault, c).records.packs}
    assert named - golden.stores["a"].objects.keys()


def test_records_moved_once_twice_and_three_times(golden: Founded) -> None:
    vault, packs = opened_by(golden, "collector"), PackNames()
    moves = Moves(packs, tables_on(vault, "a", golden.stores["a"].objects.keys()))
    times: set[int] = set()
    for commit in vault.commits():
        places = as_places(packs, load_references(vault, commit).records)
        columns = moves.trace(places).columns
        times |= set(sum((column["pack"] != NOWHERE).astype(int) for column in columns) - 1)
    assert times == {0, 1, 2, 3}


@pytest.mark.parametrize("holder", EVERYONE)
def test_everyone_lists_points_and_repacks_and_reads_the_ledger(
    golden: Founded, holder: str
) -> None:
    vault = opened_by(golden, holder)
    assert [c.body for c in vault.commits()] == [point["body"] for point in EXPECTED["points"]]
    assert [repacked.session for repacked in vault.repacks()] == EXPECTED["repacks"]
    assert [entry.fact for entry in entries(vault)] == EXPECTED["facts"]
    assert layout.snapshot_key(EXPECTED["aborted"]) in golden.stores["a"].objects
    assert vault.unreadable == {}
    assert (vault.configuration.epoch, vault.configuration.generation) == (2, 1)


def test_the_identity_that_was_replaced_reads_nothing(golden: Founded) -> None:
    old = Identity.from_text(text_of(NAME, OLD_IDENTITY))
    with pytest.raises(KeyUnusable):
        Vault.open(golden.replicas(), None, old)
    vault = Vault.open(golden.replicas(), golden.write_key, old)
    with pytest.raises(KeyUnusable):
        all_restored(vault)


def test_what_is_stored_is_found_where_it_lies_now(golden: Founded) -> None:
    before = names(golden.stores["a"], "packs/")
    commit = golden.backup(scattered(5_000), source="shop")
    assert commit.body["added_bytes"] == 0
    assert names(golden.stores["a"], "packs/") == before
    assert restored(golden.open(), commit) == scattered(5_000)
    assert golden.backup({"t": WHOLE}, source="shop").body["added_bytes"] > 0


@pytest.mark.usefixtures("small_packs")
def test_it_is_collected_and_repacked_on(golden: Founded) -> None:
    held = all_restored(golden.open())
    assert collect(golden)["a"].swept_objects == 0, "nothing was left over"
    assert repack(golden).problem is None
    collect(golden)
    assert all_restored(golden.open()) == held
    assert keeper(golden).unreadable == {}


def test_vectors_are_those_of_the_first_golden_vault() -> None:
    assert EXPECTED["vectors"] == expected_of("vault")["vectors"]
    assert EXPECTED["vectors"] == json.loads(json.dumps(vectors()))
