"""The facts about write-ahead log in the ledger, as they are written there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellarer.domain.continuity import Removed, Told
from cellarer.domain.wal import Segment, is_segment_size, is_system, lsn_text, parse_lsn
from cellarer.vault.log_state import LogState


def stored_fact(system: str, state: LogState) -> dict[str, object]:
    """That this was stored of a cluster's WAL."""
    size = state.segment_bytes
    runs = [
        [Segment(timeline, number).name(size) for number in run]
        for timeline, found in sorted(state.runs.items())
        for run in found
    ]
    return {
        "flushed": [[timeline, lsn_text(lsn)] for timeline, lsn in sorted(state.flushed.items())],
        "runs": runs,
        "segment_bytes": size,
        "system": system,
        "type": "wal",
    }


def removed_fact(system: str, before: int, segment_bytes: int) -> dict[str, object]:
    """That retention removes the WAL of a cluster before a position."""
    return {
        "before": lsn_text(before),
        "segment_bytes": segment_bytes,
        "system": system,
        "type": "wal-removed",
    }


def check_fact(fact: Mapping[str, Any]) -> None:
    """Raises `ValueError`, `KeyError` or `TypeError` for a fact about WAL that says nothing."""
    if not isinstance(fact["system"], str) or not is_system(fact["system"]):
        raise ValueError("not the identifier of a cluster")
    if fact["type"] == "wal":
        runs_in(fact)
        flushed_in(fact)
    else:
        removed_in(fact)


def runs_in(fact: Mapping[str, Any]) -> list[Told]:
    """The runs of segments that a fact tells of. Raises `ValueError` for what is none."""
    size, found = _segment_bytes(fact), []
    for names in fact["runs"]:
        first, last = (Segment.parse(name, size) for name in names)
        if first.timeline != last.timeline or last < first:
            raise ValueError("not segments in a row")
        found.append(Told(first.timeline, first.number, last.number))
    return found


def flushed_in(fact: Mapping[str, Any]) -> list[Told]:
    """The positions up to which a fact tells that WAL was stored. Raises `ValueError`."""
    size, found = _segment_bytes(fact), []
    for timeline, text in fact["flushed"]:
        if type(timeline) is not int or timeline < 1:
            raise ValueError("not a timeline")
        lsn = parse_lsn(text)
        number = max(lsn - 1, 0) // size
        found.append(Told(timeline, number, number - 1, lsn))
    return found


def removed_in(fact: Mapping[str, Any]) -> Removed:
    """Up to where a fact tells that retention removes WAL. Raises `ValueError`."""
    return Removed(parse_lsn(fact["before"]), _segment_bytes(fact))


def _segment_bytes(fact: Mapping[str, Any]) -> int:
    size = fact["segment_bytes"]
    if type(size) is not int or not is_segment_size(size):
        raise ValueError("not the size of a segment")
    return size
