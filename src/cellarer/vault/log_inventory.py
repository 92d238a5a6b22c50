"""Which files of write-ahead log every replica has to hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from cellarer.domain.continuity import Removed
from cellarer.domain.wal import Kind, LogName, Segment, is_system, parse_name
from cellarer.vault import format as layout
from cellarer.vault.ledger import LedgerEntry, entries, facts_in
from cellarer.vault.log_ledger import removed_in_all, told_in, told_segment_bytes
from cellarer.vault.vault import Vault

LOST_AT_MOST = 10_000
"""Names of lost segments for one run; so much is lost then that their number says no more."""


def named(key: str) -> tuple[str, LogName] | None:
    """The cluster and the file of an object below `wal/`; None for what is none."""
    parts = key.split("/")
    if len(parts) != 4 or not is_system(parts[1]):
        return None
    try:
        parsed = parse_name(parts[3])
    except ValueError:
        return None
    return (parts[1], parsed) if layout.wal_key(parts[1], parts[3]) == key else None


def removals(told: Sequence[LedgerEntry]) -> dict[str, Removed]:
    """Up to where retention has removed the WAL of each cluster."""
    systems = {str(fact["system"]) for fact in facts_in(told, "wal-removed")}
    return {system: removed_in_all(told, system) for system in systems}


def wanted(keys: Iterable[str], removed: Mapping[str, Removed]) -> set[str]:
    """Those of some objects that every replica should have.

    Not what retention has removed, nor pieces of a segment that is there whole.
    """
    found = {key: name for key in keys if (name := named(key))}
    return {
        key
        for key, (system, parsed) in found.items()
        if not superseded(system, parsed, found)
        and not removed.get(system, Removed()).covers(key.rpartition("/")[2])
    }


def superseded(system: str, parsed: LogName, keys: Iterable[str]) -> bool:
    """Whether this is a piece of a segment that is among these objects as a whole."""
    return parsed.kind is Kind.PIECE and layout.wal_key(system, parsed.segment) in keys


def must_be_there(keys: Iterable[str], told: Sequence[LedgerEntry]) -> set[str]:
    """The objects of WAL that every replica must hold: what is listed, and what was told of."""
    listed = set(keys)
    return wanted(listed | _lost(listed, told), removals(told))


def needed_log(vault: Vault, keys: Collection[str]) -> set[str]:
    """Those of some objects that are WAL which every replica must hold."""
    log = {key for key in keys if key.startswith(layout.WAL_PREFIX)}
    if not log:
        return set()
    listings = vault.replicas.listings(layout.WAL_PREFIX).values()
    listed = {key for found in listings for key in found}
    return log & must_be_there(listed | log, entries(vault))


def _lost(listed: AbstractSet[str], told: Sequence[LedgerEntry]) -> set[str]:
    """What was told of and is listed nowhere; of very much the first of each run."""
    lost: set[str] = set()
    for system in {str(fact["system"]) for fact in facts_in(told, "wal")}:
        size = told_segment_bytes(told, system)
        first_kept = removed_in_all(told, system).before // size
        for run in told_in(told, system):
            segments = (
                Segment(run.timeline, n) for n in range(max(run.first, first_kept), run.last + 1)
            )
            names = (layout.wal_key(system, segment.name(size)) for segment in segments)
            lost.update(islice((name for name in names if name not in listed), LOST_AT_MOST))
    return lost
