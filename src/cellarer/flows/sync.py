"""Bring replicas up to date; with a key at hand heal what is damaged there, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from cellarer.flows.repair import damage_met, heal_damage
from cellarer.ports import Progress, phase
from cellarer.vault.catchup import CaughtUp, catch_up
from cellarer.vault.genuine import Trust
from cellarer.vault.ledger import entries
from cellarer.vault.repair import standing_damage
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.vault import Vault


def synchronise(
    replicas: ReplicaSet, vault: Vault | None, progress: Progress, now: Callable[[], datetime]
) -> dict[str, CaughtUp]:
    """Copy to each replica what it lacks; see `catch_up`. `vault` is None without any key.

    Damage that it meets, or that stands since earlier, is healed where that can be done, and what
    needs it is copied then; what cannot be healed is written down, and no backup builds on it.
    """
    trust = Trust.of(vault) if vault else None
    with phase(progress, "bringing replicas up to date", None):
        first = catch_up(replicas, progress.advance, trust)
        met = damage_met(vault, first) if vault else {}
        if vault is None or not (met or standing_damage(entries(vault))):
            return first
        for outcome in heal_damage(vault, met, now):
            for note in outcome.notes():
                progress.note(note)
        second = catch_up(replicas, progress.advance, trust)
    return {name: outcome.after(first[name]) for name, outcome in second.items()}
