"""Which packs are worth writing anew, and why: a pure plan.

A pack stays whole while one of its records is needed. What is dead in it takes room until the
living records are copied into new packs; then nobody needs the old one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

WASTEFUL_SHARE = 0.3
"""A pack of which so much is dead is written anew: 10 bytes are copied to win at least 4."""

SMALL_SHARE = 0.25
"""A pack below this share of a full one is small."""

SMALL_PACKS = 16
"""So many small packs of one class are worth becoming few. Four full ones at most come of them, so
nothing is copied again and again."""


@dataclass(frozen=True)
class PackUse:
    """A pack with the bytes of records that restore points need, and of those that none needs.

    `lacking` are replicas that deleted the pack before a point that needs it could reach them.
    """

    pack: str
    live_bytes: int
    dead_bytes: int
    lacking: tuple[str, ...] = ()

    @property
    def record_bytes(self) -> int:
        """All its records."""
        return self.live_bytes + self.dead_bytes

    @property
    def dead_share(self) -> float:
        """What part of the records is dead."""
        return self.dead_bytes / max(self.record_bytes, 1)

    @property
    def prefix(self) -> str:
        """Its class: data, or what manifests need."""
        return self.pack.partition("/")[0]


@dataclass(frozen=True)
class Repacking:
    """A pack that is written anew, and why."""

    pack: str
    live_bytes: int
    dead_bytes: int
    reason: str


@dataclass(frozen=True)
class RepackPlan:
    """What is written anew, the most rewarding first, and the dead bytes left for a later run."""

    packs: tuple[Repacking, ...] = ()
    left_dead_bytes: int = 0

    @property
    def live_bytes(self) -> int:
        """What is copied."""
        return sum(each.live_bytes for each in self.packs)


def plan_repack(uses: Iterable[PackUse], full_bytes: int, budget_bytes: int) -> RepackPlan:
    """Choose among packs of which something is needed.

    `full_bytes` is the size at which a pack is closed. Packs are taken until `budget_bytes` of
    living records are; the last one may go beyond by less than a pack.
    """
    ordered = sorted(uses, key=lambda use: (not use.lacking, -use.dead_share, use.pack))
    small = Counter(use.prefix for use in ordered if _small(use, full_bytes))
    chosen: list[Repacking] = []
    spent = left = 0
    for use in ordered:
        reason = _reason(use, small[use.prefix] if _small(use, full_bytes) else 0)
        if not reason:
            continue
        if spent >= budget_bytes:
            left += use.dead_bytes
            continue
        chosen.append(Repacking(use.pack, use.live_bytes, use.dead_bytes, reason))
        spent += use.live_bytes
    return RepackPlan(tuple(chosen), left)


def _small(use: PackUse, full_bytes: int) -> bool:
    return use.record_bytes < SMALL_SHARE * full_bytes


def _reason(use: PackUse, small: int) -> str:
    if use.lacking:
        return f"a restore point needs it, and it was deleted on {', '.join(use.lacking)}"
    if use.dead_share >= WASTEFUL_SHARE:
        return f"{use.dead_share:.0%} of it is dead"
    if small >= SMALL_PACKS:
        return f"one of {small} small packs"
    return ""
