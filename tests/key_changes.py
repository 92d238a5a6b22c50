"""What tests of changing keys share."""

from __future__ import annotations

from datetime import UTC, datetime

from cellarer.vault.keys import Identity
from cellarer.vault.vault import Vault
from stand_ins import (
    Founded,
    all_restored,
    noise,
)

NOW = datetime(2026, 3, 2, tzinfo=UTC)
FIRST = {"t": noise(1, 4000), "s": b"text"}
SECOND = {"t": noise(2, 4000)}


def founder_of(scene: Founded) -> str:
    return scene.write_key.admin


def read_by(scene: Founded, identity: Identity) -> dict[str, dict[str, bytes]]:
    """Everything, by an identity and the founder's public key alone."""
    return all_restored(Vault.open(scene.replicas(), None, identity, founder=founder_of(scene)))
