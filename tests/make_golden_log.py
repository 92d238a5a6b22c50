"""Makes the golden vault with write-ahead log. Run once, never to repair a test.

    PYTHONPATH=src:tests python tests/make_golden_log.py tests/golden/vault-with-log

Refuses where a vault lies already: a change that cannot read the old one is a change of the format.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cellarer.domain.retention import Policy
from cellarer.domain.snapshot import WalRange
from cellarer.flows.keys import add_recipient
from cellarer.flows.points import wal_note
from cellarer.flows.retain import Rules, retain
from cellarer.ports import Stream
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import entries
from cellarer.vault.log_object import content_sum, private_key, public_half
from cellarer.vault.writer import SnapshotWriter
from make_golden_vault import Silent, described
from stand_ins import Founded, found
from wal_files import SEGMENT_BYTES, SYSTEM, history, segment, writer

NAME = "000000010000000000000001"
SESSION = "20260301T120000Z-00c0ffee"


@dataclass
class Story:
    """A vault with WAL, and what has to be read of it."""

    scene: Founded
    second: Identity
    files: dict[str, bytes] = field(default_factory=dict)


def story(state: Path) -> Story:
    """Two timelines, two log keys, pieces, a base backup, and WAL that retention removed."""
    scene = found()
    told = Story(scene, Identity.generate())
    before = segment(1)
    writer(scene, state).put(*before)
    first = [segment(2), segment(3), history(2, (1, "0/380000"))]
    for name, data in first:
        writer(scene, state).put(name, data)
    session = SnapshotWriter(scene.open(), "cluster", "postgres_base", scene.now)
    session.add(Stream("data/PG_VERSION", "file", iter([b"18\n"]), 3))
    start = 2 * SEGMENT_BYTES + 40
    session.commit(wal_note(WalRange(SYSTEM, 1, start, start + 300)))
    add_recipient(scene.open(), told.second.recipients[0], scene.now())
    later = scene.now() + timedelta(minutes=10)
    scene = replace(scene, now=lambda: later)
    second = [segment(3, timeline=2), (f"{segment(3)[0]}.partial", segment(3)[1])]
    putting = writer(scene, state)
    for name, data in second:
        putting.put(name, data)
    tail, data = segment(4, timeline=2)
    putting.put_piece(tail, 0, data[:8192])
    putting.put_piece(tail, 8192, data[8192:12288])
    putting.told(force=True)
    retain(scene.open(), Rules(Policy(last=1), {}, UTC), scene.now, Silent())
    told.files = {**dict(first), **dict(second), tail: data[:12288] + bytes(SEGMENT_BYTES - 12288)}
    assert before[0] not in told.files
    return told


def vectors() -> dict[str, str]:
    """What follows from fixed keys; the test computes it again."""
    root, ephemeral = bytes(range(32, 64)), X25519PrivateKey.from_private_bytes(bytes(range(32)))
    private = private_key(root)
    public, own = public_half(private), public_half(ephemeral)
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    key = crypto.derive(shared, f"cellarer/1/wal/{own}/{public}")
    return {
        "public": public,
        "ephemeral": own,
        "key": key.hex(),
        "content": content_sum(bytes(range(32)), SYSTEM, b"wal"),
        "name": layout.wal_key(SYSTEM, NAME),
    }


def write(directory: Path) -> None:
    """The vault, its keys, what it holds, and the vectors."""
    if (directory / "replica").exists():
        raise SystemExit(f"{directory} holds a vault already; a golden vault is never made anew")
    with tempfile.TemporaryDirectory() as state:
        told = story(Path(state))
    for key, data in told.scene.stores["a"].objects.items():
        if key != layout.RESCUE_KEY:  # today's is the one to be tested
            target = directory / "replica" / key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    vault = told.scene.open()
    expected = {
        "facts": [entry.fact for entry in entries(vault)],
        "files": {name: described(data) for name, data in told.files.items()},
        "founder": told.scene.write_key.admin,
        "system": SYSTEM,
        "vectors": vectors(),
    }
    texts = {
        "identity.txt": told.scene.identity.to_text(),
        "second-identity.txt": told.second.to_text(),
        "write-key.json": told.scene.write_key.to_text(),
        "expected.json": json.dumps(expected, indent=1, sort_keys=True) + "\n",
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
