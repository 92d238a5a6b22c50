"""A writer who signs what he likes, and a store that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellarer.errors import DamagedData
from cellarer.vault import crypto
from cellarer.vault import format as layout
from stand_ins import Founded

SESSION = "20260301T120000Z-00c0ffee"
_COUNTS = (
    "kept", "swept_bytes", "swept_objects", "packs", "dead_bytes", "repacked_bytes", "round",
    "bytes", "damaged", "needed_objects", "looked_objects", "extended_objects",
)  # fmt: skip


def put(scene: Founded, key: str, data: bytes) -> None:
    for store in scene.stores.values():
        store.objects[key] = data


def commit_of(
    scene: Founded, inner: Mapping[str, object], session: str = SESSION, **body: Any
) -> str:
    """A COMMIT with this inner record, signed by the writer; its name."""
    key = layout.snapshot_key(session)
    sealed = crypto.sealed_text(scene.write_key.index, inner, f"snapshot {session}")
    whole = {
        "outcome": "commit",
        "sealed": sealed,
        "session": session,
        "vault": scene.write_key.vault,
        "writer": scene.write_key.writer,
        **body,
    }
    put(scene, key, scene.write_key.signer.sign("snapshot", whole))
    return key


def inner_of(scene: Founded) -> dict[str, Any]:
    return dict(scene.open().commits()[-1].body)


def refused(scene: Founded, key: str) -> DamagedData:
    """The others are listed as before, and this one is told of."""
    before = {k for k in scene.stores["a"].objects if k.startswith("snapshots/")} - {key}
    vault = scene.open()
    assert {layout.snapshot_key(commit.session) for commit in vault.commits()} == before
    return vault.unreadable[key]


def whole_fact(matter: str) -> dict[str, object]:
    """A fact of this type, with what one type or another needs."""
    return {
        **dict.fromkeys(_COUNTS, 1),
        "checks": [], "depth": "stored", "locked_until": "2026-03-01T00:00:00Z", "passed": True,
        "objects": 1 if matter == "scrub" else [], "point": "p", "proof": "proven", "reason": "r",
        "points": {"scrub": [1, "00"], "giving-up": ["p"]}.get(matter, {}), "removed": [],
        "replica": "a", "seconds": 1, "source": "db", "through": "packs/", "type": matter,
        "system": "7561234567890123456", "segment_bytes": 1 << 20, "runs": [], "flushed": [],
        "before": "0/00100000", "run": "r",
    }  # fmt: skip
