"""Today's code reads the golden vault, and its building blocks still give the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.index import open_segment
from cellarer.vault.known import load_references
from cellarer.vault.ledger import proofs
from cellarer.vault.pack import read_toc
from cellarer.vault.vault import Vault
from golden_vaults import expected_of, golden_vault
from make_golden_vault import PADDED, points, vectors
from stand_ins import Founded, restored

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = expected_of("vault")
VECTORS: dict[str, Any] = EXPECTED["vectors"]
KEY = bytes(range(32))


@pytest.fixture
def golden() -> Founded:
    """The golden vault on a store in memory, with its keys."""
    return golden_vault("vault")


def summed(streams: dict[str, bytes]) -> dict[str, list[object]]:
    return {p: [len(d), hashlib.sha256(d).hexdigest()] for p, d in streams.items()}


# ------------------------------------------------------------------------------------- the vault


def test_every_point_is_read_with_the_identity_alone(golden: Founded) -> None:
    vault = Vault.open(golden.replicas(), None, golden.identity)
    found = [
        {
            "session": commit.session,
            "source": commit.source,
            "body": commit.body,
            "streams": summed(restored(vault, commit)),
        }
        for commit in vault.commits()
    ]
    assert found == EXPECTED["points"]


def test_the_write_key_lists_points_and_reads_references(golden: Founded) -> None:
    vault = Vault.open(golden.replicas(), golden.write_key, None)
    commits = vault.commits()
    assert [commit.body for commit in commits] == [p["body"] for p in EXPECTED["points"]]
    counts = [len(load_references(vault, commit).streams) - 1 for commit in commits]
    assert counts == [len(point["streams"]) for point in EXPECTED["points"]]


def test_aborted_session_is_no_point(golden: Founded) -> None:
    key = layout.snapshot_key(EXPECTED["aborted"])
    assert golden.open().open_register(key, golden.stores["a"].objects[key]) is None


def test_chain_of_commits(golden: Founded) -> None:
    commits = golden.open().commits()
    assert [c.body["previous"] for c in commits] == ["", *(c.sha256 for c in commits[:-1])]


def test_ledger(golden: Founded) -> None:
    (proof,) = proofs(golden.open())
    assert [proof.point, proof.proof.word, [c.name for c in proof.checks]] == EXPECTED["proof"]


def test_packs_are_named_by_their_bytes_and_padded(golden: Founded) -> None:
    index_key = golden.write_key.index
    found = golden.stores["a"].objects
    packs = [key for key in found if found[key].startswith(b"CLRPACK1")]
    assert len(packs) == 6
    for key in packs:
        data = found[key]
        assert key.endswith("/" + hashlib.sha256(data).hexdigest())
        lowest = len(data) * 88 // 100
        assert any(layout.padded_length(n) == len(data) for n in range(lowest, len(data) + 1))
        assert len(read_toc(data, index_key).records) >= 1


def test_index_says_what_the_packs_say(golden: Founded) -> None:
    index_key = golden.write_key.index
    found = golden.stores["a"].objects
    segments = [key for key in found if key.startswith(layout.INDEX_PREFIX)]
    indexed = {
        pack: toc.to_bytes()
        for key in segments
        for pack, toc in open_segment(index_key, found[key])
    }
    packs = [key for key in found if found[key].startswith(b"CLRPACK1")]
    assert indexed == {key: read_toc(found[key], index_key).to_bytes() for key in packs}


def test_same_content_is_found_again(golden: Founded) -> None:
    """Chunk boundaries and chunk ids stay, or every upgrade would store everything anew."""
    source, streams = points()[1]
    packs = {key for key in golden.stores["a"].objects if key.startswith("packs/")}
    golden.backup(streams, source=source)
    assert {key for key in golden.stores["a"].objects if key.startswith("packs/")} == packs


# ------------------------------------------------------------------------------- building blocks


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    assert json.loads(json.dumps(vectors()))[name] == VECTORS[name]


def test_vectors_cover_the_same_inputs() -> None:
    assert sorted(vectors()) == sorted(VECTORS)
    assert [row[0] for row in VECTORS["padded_length"]] == list(PADDED)


def test_old_seal_opens() -> None:
    sealed = bytes.fromhex(VECTORS["seal"])
    assert crypto.unseal(KEY, sealed, "cellarer/1/index") == b"sealed text"


def test_old_record_opens() -> None:
    cipher = crypto.RecordCipher(bytes(16), "20260301T120000Z-00c0ffee", bytes(range(32, 64)))
    opened = cipher.open(bytes(range(16)), bytes.fromhex(VECTORS["record"]))
    assert opened == (crypto.ENCODING_RAW, b"record")


def test_old_signature_holds() -> None:
    signed = VECTORS["signed"].encode()
    expected = ({"a": "café", "z": 1}, VECTORS["public"])
    assert crypto.read_signed("snapshot", signed) == expected


def test_canonical_json_is_read_back() -> None:
    data = bytes.fromhex(VECTORS["canonical_json"])
    assert layout.canonical_json(json.loads(data)) == data


@pytest.mark.parametrize("name", ["derive", "keyed_id", "seal", "record", "signed"])
def test_specification_shows_the_vector(name: str) -> None:
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert re.sub(r"\s", "", VECTORS[name]) in re.sub(r"\s", "", text)
