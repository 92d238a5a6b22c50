"""Acts of collecting, for tests: a keeper, a backup under way, one whose host dies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from cellarer.ports import Stream
from cellarer.vault.collect import Collected, Collector
from cellarer.vault.repack import Repacked, Repacker
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import (
    Founded,
    Objects,
    blocks,
    noise,
)

FIRST = {"t": noise(1, 120_000), "s": b"text"}
SECOND = {"t": noise(1, 30_000) + noise(2, 30_000), "s": b"other"}
THIRD = {"t": noise(3, 20_000)}


def keeper(scene: Founded, replicas: object = None) -> Vault:
    """The vault as a host opens it that may collect and nothing else."""
    return Vault.open(replicas or scene.replicas(), None, None, scene.collect_key)  # type: ignore[arg-type]


def collect(
    scene: Founded, vault: Vault | None = None, now: Callable[[], datetime] | None = None
) -> dict[str, Collected]:
    vault = vault or keeper(scene)
    collector = Collector(vault, now or scene.now)
    return {replica.name: collector.collect(replica) for replica in vault.replicas.replicas}


def repack(scene: Founded, vault: Vault | None = None, budget_bytes: int = 1 << 30) -> Repacked:
    repacker = Repacker(vault or keeper(scene), scene.now, budget_bytes)
    return repacker.run(lambda copied_bytes: None)


def drop(scene: Founded, session: str) -> None:
    forget(keeper(scene), session, "no rule wants it", scene.now())


def names(store: Objects, prefix: str) -> set[str]:
    return {key for key in store.objects if key.startswith(prefix)}


def begin(scene: Founded, contents: dict[str, bytes], vault: Vault | None = None) -> SnapshotWriter:
    """A backup that has read everything and not committed yet."""
    writer = SnapshotWriter(vault or scene.open(), "db", "test", scene.now)
    for path, data in contents.items():
        writer.add(Stream(path, "test", blocks(data), len(data)))
    return writer


def die(writer: SnapshotWriter) -> None:
    """Its host loses power: nobody closes the session."""
    writer._undecided = False
    writer.abandon()
