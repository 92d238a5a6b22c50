"""Heal what was met damaged, and keep what cannot be healed in mind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from cellarer.errors import CellarerError, DamagedData, StoreError
from cellarer.ports import Progress
from cellarer.vault import format as layout
from cellarer.vault.catchup import CaughtUp
from cellarer.vault.genuine import Trust, good_copy
from cellarer.vault.ledger import entries
from cellarer.vault.losses import needed_by
from cellarer.vault.repair import (
    heal,
    record_damage,
    record_repair,
    replace_object,
    standing_damage,
    standing_unopened,
    whole,
)
from cellarer.vault.vault import Vault


@dataclass
class Healing:
    """What became of the damaged objects of one replica; `failed` has the reason for each."""

    replica: str
    healed: list[str] = field(default_factory=list)
    failed: dict[str, CellarerError] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What to tell whoever runs this."""
        told = []
        if self.healed:
            told.append(
                f"replica {self.replica}: {len(self.healed)} objects were damaged or lost, "
                f"{self.healed[0]} for one; they were healed from another replica"
            )
        for key, error in list(self.failed.items())[:1]:
            told.append(
                f"replica {self.replica}: {len(self.failed)} objects are damaged and could "
                f"not be healed, {key} for one: {error}"
            )
        return told


def heal_registers(vault: Vault, now: Callable[[], datetime]) -> list[tuple[str, str]]:
    """The replicas and registers that were put together again there, of those nobody could read.

    Before all else is healed: what points need is known by them alone. Raises `DamagedData` where
    still not one can be read.
    """
    listings = vault.replicas.listings(layout.SNAPSHOTS_PREFIX)
    try:
        vault.commits()
        damaged = {key for key in vault.unreadable if key.startswith(layout.SNAPSHOTS_PREFIX)}
    except DamagedData:
        damaged = {key for keys in listings.values() for key in keys}
    healed = [
        (replica, key)
        for replica, keys in listings.items()
        for key in sorted(damaged & keys.keys())
        if _put_together(vault, replica, key, now)
    ]
    for _, key in healed:
        vault.unreadable.pop(key, None)
    vault.commits()
    return healed


def _put_together(vault: Vault, replica: str, key: str, now: Callable[[], datetime]) -> bool:
    """Heal a register out of what is left of it there and elsewhere, if that is certain."""
    try:
        held = vault.replicas.named(replica).store.read(key)
        good, certain = good_copy(vault.replicas, Trust.of(vault), key, replica)
        # Of another length it may be how the session ended elsewhere.
        if not certain or len(good) != len(held):
            return False
        record_damage(vault, replica, [key], now())
        replace_object(vault, replica, key, good)
    except (StoreError, DamagedData):
        return False
    record_repair(vault, replica, [key], now())
    return True


def heal_damage(
    vault: Vault,
    met: Mapping[str, Collection[str]],
    now: Callable[[], datetime],
    *,
    repair: bool = True,
) -> list[Healing]:
    """Look again at what was met (replica -> objects) and at what stands damaged, and heal it.

    Damage is written to the ledger before anything is touched, and its repair after; what stays
    damaged is an alarm of `status` until it is repaired. Without `repair` it is written down only.
    """
    told = entries(vault)
    standing = standing_damage(told)
    outcomes = []
    for replica in (replica.name for replica in vault.replicas.replicas):
        known = standing.get(replica, {})
        suspects = sorted({*known, *met.get(replica, ())})
        if not suspects or replica in {*vault.replicas.away, *vault.replicas.aside}:
            continue
        outcome = Healing(replica)
        damaged = [key for key in suspects if not _whole(vault, key, replica, outcome)]
        new = {*damaged, *outcome.failed} - set(known)
        if new:
            record_damage(vault, replica, new, now())
        # What nobody needs a collector may be deleting: it is never brought back.
        needed = needed_by(vault, damaged) if repair else {}
        for key in damaged if repair else ():
            try:
                if key not in needed:
                    raise DamagedData(
                        f"{key} is damaged, and no restore point needs it",
                        hint="`cellarer retain` deletes it",
                    )
                # In their order registers come last: what they name must be there before them.
                if key.startswith(layout.SNAPSHOTS_PREFIX) and outcome.failed:
                    raise next(iter(outcome.failed.values()))
                heal(vault, key, replica)
                outcome.healed.append(key)
            except CellarerError as error:
                outcome.failed[key] = error
        left = {*damaged, *outcome.failed} - set(outcome.healed)
        # That bytes are as they were written does not make them open: a deep scrub tells.
        repaired = {*known, *new} - left - standing_unopened(told, replica)
        if repaired:
            record_repair(vault, replica, repaired, now())
        outcomes.append(outcome)
    return outcomes


def damage_met(vault: Vault, outcomes: Mapping[str, CaughtUp]) -> dict[str, set[str]]:
    """What catching up found damaged, or could not copy for damage: replica -> objects."""
    met = {name: set(outcome.damaged) for name, outcome in outcomes.items()}
    lost = {
        key
        for outcome in outcomes.values()
        for key, error in outcome.failed.items()
        if isinstance(error, DamagedData)
    }
    _add_holders(vault, met, lost)
    return {name: keys for name, keys in met.items() if keys}


def keep_in_mind(vault: Vault, now: Callable[[], datetime]) -> set[str]:
    """Write down what a writer met damaged; the objects that stand damaged then.

    It heals nothing: that takes a right to delete, which hosts that back up should not have.
    """
    met = {name: set(keys) for name, keys in vault.replicas.damaged.items()}
    _add_holders(vault, met, vault.unreadable.keys())
    if not any(met.values()):
        return set()
    heal_damage(vault, met, now, repair=False)
    standing = standing_damage(entries(vault))
    return {key for name, keys in met.items() for key in keys & standing.get(name, {}).keys()}


def tell_of_damage(vault: Vault, progress: Progress, now: Callable[[], datetime]) -> None:
    """Write down what was met damaged, so that `status` tells and no backup builds on it.

    By who did something else, and has done it: it raises nothing.
    """
    try:
        damaged = keep_in_mind(vault, now)
    except CellarerError as error:
        # What was done is done all the same.
        progress.note(f"the vault is damaged, and that could not be written down: {error}")
        return
    if damaged:
        others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        advice = "see `cellarer status`, and run `cellarer scrub --repair`"
        progress.note(f"damaged in the vault: {min(damaged)}{others}; {advice}")


def _add_holders(vault: Vault, met: dict[str, set[str]], keys: AbstractSet[str]) -> None:
    """Add objects that no replica has whole to what was met, where they lie."""
    for prefix in {key.partition("/")[0] + "/" for key in keys if "/" in key}:
        for name, held in vault.replicas.listings(prefix).items():
            met.setdefault(name, set()).update(keys & held.keys())


def _whole(vault: Vault, key: str, replica: str, outcome: Healing) -> bool:
    try:
        return whole(vault, key, replica)
    except CellarerError as error:
        outcome.failed[key] = error
        return True
