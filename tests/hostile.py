"""A writer who signs what he likes, and a store that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellarer.errors import DamagedData
from cellarer.vault import crypto
from cellarer.vault import format as layout
from stand_ins import Founded

SESSION = "20260301T120000Z-00c0ffee"


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
