"""Small vaults that are scrubbed, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cellarer.domain.snapshot import Proof
from cellarer.flows.points import list_points
from cellarer.flows.scrub import Damage, Scrubbed, Wanted, scrub
from cellarer.flows.verify import verify
from cellarer.vault.vault import Vault
from stand_ins import Founded, found, noise

FIRST = {"t": noise(1, 40_000), "u": b"small"}
SECOND = {"t": noise(1, 40_000) + noise(2, 9_000), "v": noise(3, 20_000)}


class Silent:
    def begin(self, title: str, total_bytes: int | None) -> None: ...
    def advance(self, read_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


def scene_of(replicas: int) -> Founded:
    made = found(replicas=replicas)
    made.backup(FIRST)
    made.backup(SECOND)
    vault = made.open()
    verify(vault, list_points(vault)[0], Proof.SCRUBBED, None, Silent(), made.now)
    return made


def writer_only(scene: Founded) -> Vault:
    return Vault.open(scene.replicas(), scene.write_key, None)


def run(
    scene: Founded,
    *,
    vault: Vault | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    **how: Any,
) -> Scrubbed:
    return scrub(vault or scene.open(), Wanted(**how), Silent(), scene.now, clock)


def key_of(scene: Founded, kind: str) -> str:
    return next(key for key in sorted(scene.stores["a"].objects) if key.startswith(kind))


def told(damages: Iterable[Damage]) -> list[tuple[str, str]]:
    """Replica and object of each."""
    return [(damage.replica, damage.object) for damage in damages]


def content(scene: Founded, name: str) -> dict[str, bytes]:
    """What a replica holds, without the ledger, which grows."""
    objects = scene.stores[name].objects
    return {key: data for key, data in objects.items() if not key.startswith("ledger/")}
