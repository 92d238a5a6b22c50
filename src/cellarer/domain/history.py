"""Chains of entries that name the one before: their order, and what is missing from them.

Two writers that did not see one another name the same entry, so a chain may fork. The clock is the
writer's and may be wrong; who names an entry comes after it whatever the clocks say.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Chained(Protocol):
    """An entry: the hash of its bytes, the hash of the entry before (or ""), and its time.

    `clock` sorts by the time on the writer's clock, and differs between any two entries.
    """

    @property
    def sha256(self) -> str:
        """The hash of its bytes."""

    @property
    def previous(self) -> str:
        """The hash of the one before."""

    @property
    def clock(self) -> str:
        """Its time, and something that tells it from others of the same time."""


C = TypeVar("C", bound=Chained)


def in_order(entries: Iterable[C]) -> list[C]:
    """Oldest first: each after the one that it names, by the clock where the chain does not say."""
    by_hash = {entry.sha256: entry for entry in entries}
    followers: dict[str, list[C]] = {}
    ready: list[tuple[str, str]] = []
    for entry in by_hash.values():
        if entry.previous in by_hash:
            followers.setdefault(entry.previous, []).append(entry)
        else:
            ready.append((entry.clock, entry.sha256))
    heapq.heapify(ready)
    ordered: list[C] = []
    while ready:
        _, sha256 = heapq.heappop(ready)
        ordered.append(by_hash[sha256])
        for follower in followers.get(sha256, ()):
            heapq.heappush(ready, (follower.clock, follower.sha256))
    return ordered


def gaps(entries: Sequence[C]) -> list[C]:
    """The entries that name one which is not there."""
    present = {"", *(entry.sha256 for entry in entries)}
    return [entry for entry in entries if entry.previous not in present]


def heads(entries: Sequence[Chained]) -> set[str]:
    """The hashes of the entries that no other names: while these are there, all before them are."""
    return {entry.sha256 for entry in entries} - {entry.previous for entry in entries}
