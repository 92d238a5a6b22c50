"""Makes the golden vault. It is run once for each version of the format, never to repair a test.

    PYTHONPATH=src:tests python tests/make_golden_vault.py tests/golden/vault

Refuses where a vault lies already: a change that cannot read the old one is a change of the format.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.chunker import Chunker, Cuts
from cellarer.vault.ledger import record_proof
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, found, noise


def rows(first: int, last: int, changed: frozenset[int] = frozenset()) -> bytes:
    """COPY text of so many customers, as a table holds them."""
    return b"".join(
        b"%d\t%s\t%s\n" % (n, hashlib.sha1(b"%d" % n).hexdigest()[:12].encode(),
                            b"moved" if n in changed else b"new")
        for n in range(first, last)
    )  # fmt: skip


def points() -> list[tuple[str, Mapping[str, bytes]]]:
    """Source and streams of each point: a first one, a changed one, one of another source."""
    names = {
        "roles.sql": b"CREATE ROLE shop;\n",
        "shop/data/public/caf\u00e9 %2F\u2028\u732b": b"1\t\xff\x00\r\n" * 3,
        "shop/data/public/empty": b"",
    }
    first = {**names, "shop/data/public/customers": rows(0, 1200)}
    second = {**names, "shop/data/public/customers": rows(0, 1300, frozenset({40, 1100}))}
    twice = noise(7, 900)
    return [("shop", first), ("shop", second), ("files", {"logo.png": twice, "copy.png": twice})]


def abort(vault: Founded) -> str:
    """A session that begins, is closed with an ABORT, and never becomes a point."""
    writer = SnapshotWriter(vault.open(), "shop", "test", vault.now)
    writer.abandon()
    body: dict[str, object] = {
        "outcome": "abort",
        "session": writer.session,
        "vault": vault.write_key.vault,
        "writer": vault.write_key.writer,
    }
    data = vault.write_key.signer.sign("snapshot", body)
    for store in vault.stores.values():
        store.create(layout.snapshot_key(writer.session), data)
    return writer.session


def proof(vault: Founded, point: str) -> ProofRecord:
    """An entry for the ledger."""
    checks = (Check("restore", True, "", ""), Check("rows of customers", True, "1200", "1200"))
    entry = ProofRecord(point, "shop", Proof.PROVEN, True, vault.now(), 1.5, checks)
    record_proof(vault.open(), entry)
    return entry


def vectors() -> dict[str, object]:
    """Outputs of the building blocks for fixed inputs; the test computes them again."""
    key, root = bytes(range(32)), bytes(range(32, 64))
    record_id, session = bytes(range(16)), "20260301T120000Z-00c0ffee"
    cipher = crypto.RecordCipher(bytes(16), session, root)
    text = '\u00e9\u2028\u007f"\\/\n\u0001'
    value = {"b": [1, True, None], "a": text, "\uffff": 2, "\U0001f408": 3}
    nonce = bytes(range(100, 112))
    original = secrets.token_bytes
    secrets.token_bytes = lambda length: nonce[:length]  # type: ignore[assignment, misc]
    try:
        sealed = crypto.seal(key, b"sealed text", "cellarer/1/index", padding=5)
    finally:
        secrets.token_bytes = original
    signer = crypto.Signer(key)
    return {
        "derive": crypto.derive(key, "cellarer/1/domain/shop").hex(),
        "keyed_id": crypto.keyed_id(key, b"chunk").hex(),
        "seal": sealed.hex(),
        "record": cipher.seal(record_id, crypto.ENCODING_RAW, b"record", 3, 258).hex(),
        "signed": signer.sign("snapshot", {"z": 1, "a": "caf\u00e9"}).decode(),
        "public": signer.public,
        "canonical_json": layout.canonical_json(value).hex(),
        "padded_length": [[n, layout.padded_length(n)] for n in PADDED],
        "chunks": {str(bits): chunk_lengths(bits) for bits in (12, 14)},
    }


def chunk_lengths(bits: int) -> list[int]:
    """How the chunker cuts 200 kB that are the same everywhere."""
    chunker = Chunker(Cuts(bits))
    data = hashlib.shake_256(b"cellarer").digest(200_000)
    return [n for batch in (*chunker.feed(data), *chunker.finish()) for n in batch.lengths]


PADDED = (0, 1, 2, 7, 8, 9, 100, 1000, 1025, 65_537, 999_999, 16 << 20, (16 << 20) + 1, 10**12)


def described(data: bytes) -> list[object]:
    """Size and SHA-256."""
    return [len(data), hashlib.sha256(data).hexdigest()]


def write(directory: Path) -> None:
    """The vault, its keys, what it holds, and the vectors."""
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "replica").exists():
        raise SystemExit(f"{directory} holds a vault already; a golden vault is never made anew")
    vault = found()
    commits = [(vault.backup(streams, source=source), streams) for source, streams in points()]
    aborted = abort(vault)
    proven = proof(vault, commits[0][0].session)
    for key, data in vault.stores["a"].objects.items():
        if key == layout.RESCUE_KEY:
            continue  # today's rescue.py is the one to be tested
        target = directory / "replica" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (directory / "identity.txt").write_text(vault.identity.to_text(), encoding="utf-8")
    (directory / "write-key.json").write_text(vault.write_key.to_text(), encoding="utf-8")
    expected = {
        "aborted": aborted,
        "points": [
            {
                "session": commit.session,
                "source": commit.source,
                "body": commit.body,
                "streams": {path: described(data) for path, data in streams.items()},
            }
            for commit, streams in commits
        ],
        "proof": [proven.point, proven.proof.word, [c.name for c in proven.checks]],
        "vectors": vectors(),
    }
    text = json.dumps(expected, indent=1, sort_keys=True)
    (directory / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
