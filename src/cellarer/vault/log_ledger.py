"""What the ledger says of write-ahead log: what was stored, and up to where it was removed.

A file of WAL has no other that names it. So whoever stores WAL tells what it stored, and WAL that
was deleted from every replica is known to have been there.
"""

from __future__ import annotations

from collections.abc import Iterable

from cellarer.domain.continuity import Removed, Told
from cellarer.vault.ledger import LedgerEntry, facts_in
from cellarer.vault.log_facts import flushed_in, removed_in, runs_in


def told_in(entries: Iterable[LedgerEntry], system: str) -> list[Told]:
    """What was seen stored of a cluster's WAL, by all who told."""
    found: dict[tuple[int, int, bool], Told] = {}
    for fact in facts_in(entries, "wal"):
        if fact["system"] != system:
            continue
        for told in (*runs_in(fact), *flushed_in(fact)):
            # Each fact tells of what went before as well: of a run the longest is enough.
            run = told.timeline, told.first if not told.flushed else 0, bool(told.flushed)
            known = found.get(run, told)
            found[run] = max(known, told, key=lambda each: (each.last, each.flushed))
    return [*found.values()]


def removed_in_all(entries: Iterable[LedgerEntry], system: str) -> Removed:
    """The position before which retention has removed WAL of a cluster; 0 where it never did."""
    facts = [fact for fact in facts_in(entries, "wal-removed") if fact["system"] == system]
    return max(map(removed_in, facts), default=Removed())


def told_segment_bytes(entries: Iterable[LedgerEntry], system: str) -> int:
    """The size of a cluster's segments, by those who stored them; 0 where nobody told."""
    sizes = [f["segment_bytes"] for f in facts_in(entries, "wal") if f["system"] == system]
    return int(sizes[-1]) if sizes else 0
