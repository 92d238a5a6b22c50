"""Makes the golden vault. It is run once for each version of the format, never to repair a test.

    PYTHONPATH=src:tests python tests/make_golden_vault.py tests/golden/vault-with-rounds

`tests/golden/vault` was made by an earlier form of this, from `points()`; `make_golden_moves.py`
makes one with repacks. Refuses where a vault lies already: a change that cannot read the old one
is a change of the format.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path

from cellarer.domain.retention import Policy
from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.flows.keys import add_recipient, rotate_write_key
from cellarer.flows.retain import Rules, hold, retain
from cellarer.ports import Stream
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.chunker import Chunker, Cuts
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import entries, record_proof
from cellarer.vault.repair import record_damage, record_repair
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, blocks, found, noise


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


def growing(last: int) -> bytes:
    """Rows of a table that grows at its end, and long enough for a finer end."""
    return b"".join(b"%d\tcustomer number %d\n" % (n, n) for n in range(last))


class Silent:
    """Progress that nobody watches."""

    def begin(self, title: str, total_bytes: int | None) -> None: ...
    def advance(self, read_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


def backup(scene: Founded, source: str, contents: Mapping[str, bytes]) -> Commit:
    """A snapshot whose first stream grows at its end."""
    writer = SnapshotWriter(scene.open(), source, "test", scene.now)
    for number, (path, data) in enumerate(contents.items()):
        writer.add(Stream(path, "test", blocks(data), len(data), grows_at_end=not number))
    return writer.commit()


@dataclass
class Story:
    """A vault that much happened to, and what has to be read of it.

    `keys` are files beside it, `more` is what is expected of this vault and of no other.
    """

    scene: Founded
    founder: str
    points: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)


def story(directory: Path) -> Story:
    """A year of a vault in a minute. New keys are written into `directory`."""
    scene, second = found(), Identity.generate()
    told = Story(scene, scene.write_key.admin)
    told.keys["retired-write-key.json"] = scene.write_key.to_text()
    told.keys["second-identity.txt"] = second.to_text()
    big = "shop/data/public/customers"
    first = {big: growing(14_000), "roles.sql": b"CREATE ROLE shop;\n"}
    noisy = noise(3, 9000)
    told.more["forgotten"] = backup(scene, "shop", {**first, "gone": noisy}).session
    writer = SnapshotWriter(scene.open(), "shop", "test", scene.now)
    writer.abandon()
    told.more["aborted"] = writer.session
    changed = {**first, big: growing(14_500), "caf\u00e9 \u732b": b"\0"}
    proven = backup(scene, "shop", changed)
    told.points[proven.session] = changed
    vault = scene.open()
    checks = (Check("restore", True, "", ""), Check("rows of customers", True, "14500", "14500"))
    entry = ProofRecord(proven.session, "shop", Proof.PROVEN, True, scene.now(), 1.5, checks)
    record_proof(vault, entry)
    record_damage(vault, "a", [str(proven.body["references"])], scene.now())
    record_repair(vault, "a", [str(proven.body["references"])], scene.now())
    hold(vault, proven.session, "for the auditor", scene.now())
    add_recipient(vault, second.recipients[0], scene.now())
    third = {"logo.png": noise(7, 900), "copy.png": noise(7, 900), "empty": b""}
    told.points[backup(scene, "files", third).session] = third
    scene.write_key = rotate_write_key(scene.open(), directory / "write-key.json", scene.now())
    fourth = {**changed, big: growing(15_000)}
    told.points[backup(scene, "shop", fourth).session] = fourth
    keeper = Vault.open(scene.replicas(), None, None, scene.collect_key)
    retain(keeper, Rules(Policy(last=1), {}, UTC), scene.now, Silent())
    return told


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


def write(directory: Path, tell: Callable[[Path], Story]) -> None:
    """A vault as a story makes it, its keys, what it holds, and the vectors."""
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "replica").exists():
        raise SystemExit(f"{directory} holds a vault already; a golden vault is never made anew")
    told = tell(directory)
    scene = told.scene
    for key, data in scene.stores["a"].objects.items():
        if key == layout.RESCUE_KEY:
            continue  # today's rescue.py is the one to be tested
        target = directory / "replica" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    assert scene.collect_key is not None
    texts = {
        **told.keys,
        "identity.txt": scene.identity.to_text(),
        "write-key.json": scene.write_key.to_text(),
        "collect-key.json": scene.collect_key.to_text(),
        "expected.json": json.dumps(expected(told), indent=1, sort_keys=True) + "\n",
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")


def expected(told: Story) -> dict[str, object]:
    """What every later version has to find."""
    vault = told.scene.open()
    return {
        **told.more,
        "facts": [entry.fact for entry in entries(vault)],
        "founder": told.founder,
        "points": [
            {
                "session": commit.session,
                "source": commit.source,
                "body": commit.body,
                "streams": {p: described(d) for p, d in told.points[commit.session].items()},
            }
            for commit in vault.commits()
        ],
        "vectors": vectors(),
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]), story)
