"""A vault in which much is dead: a point needs a little of each of many packs."""

from __future__ import annotations

from stand_ins import Founded, Objects, found, noise
from vault.collecting import collect, drop

WHOLE = {"t": noise(1, 240_000), "s": b"text"}


def scattered(width: int) -> dict[str, bytes]:
    """A part of all packs of `WHOLE`."""
    return {"t": b"".join(WHOLE["t"][at : at + width] for at in range(0, 240_000, 48_000))}


KEPT, LESS = scattered(16_000), scattered(9_000)


def size(store: Objects) -> int:
    return sum(len(data) for key, data in store.objects.items() if key.startswith("packs/"))


def wasteful(replicas: int = 1) -> tuple[Founded, str]:
    """A vault with one point that needs a little of each of many packs."""
    scene = found(replicas=replicas)
    first = scene.backup(WHOLE).session
    kept = scene.backup(KEPT).session
    drop(scene, first)
    collect(scene)
    return scene, kept


def content(store: Objects) -> set[str]:
    return {key for key in store.objects if not key.startswith(("collections/", "ledger/"))}
