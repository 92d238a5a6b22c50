"""What the ledger is told of WAL counts only where it says something, however it was signed."""

from __future__ import annotations

from typing import Any

import pytest

from cellarer.domain.continuity import Told
from cellarer.domain.wal import Segment
from cellarer.vault.ledger import entries, facts, record_fact
from cellarer.vault.log_inventory import LOST_AT_MOST, must_be_there
from cellarer.vault.log_ledger import removed_in_all, told_in
from cellarer.vault.vault import Vault
from stand_ins import found
from wal_files import SEGMENT_BYTES, SYSTEM, segment

STORED: dict[str, Any] = {
    "flushed": [[1, "0/00380000"]],
    "runs": [[segment(1)[0], segment(2)[0]]],
    "segment_bytes": SEGMENT_BYTES,
    "system": SYSTEM,
    "type": "wal",
}
REMOVED: dict[str, Any] = {
    "before": "0/00200000",
    "segment_bytes": SEGMENT_BYTES,
    "system": SYSTEM,
    "type": "wal-removed",
}


@pytest.mark.parametrize(
    ("fact", "change"),
    [
        (STORED, {"system": "x"}),
        (STORED, {"system": 7}),
        (STORED, {"system": "../../packs"}),
        (STORED, {"segment_bytes": 3}),
        (STORED, {"segment_bytes": "16"}),
        (STORED, {"segment_bytes": 1 << 40}),
        (STORED, {"runs": [[segment(2)[0], segment(1)[0]]]}),
        (STORED, {"runs": [[segment(1)[0], segment(2, timeline=2)[0]]]}),
        (STORED, {"runs": [[segment(1)[0]]]}),
        (STORED, {"runs": [["00000002.history", segment(1)[0]]]}),
        (STORED, {"runs": 5}),
        (STORED, {"flushed": [[0, "0/0"]]}),
        (STORED, {"flushed": [["1", "0/0"]]}),
        (STORED, {"flushed": [[1, "nowhere"]]}),
        (REMOVED, {"before": 7}),
        (REMOVED, {"before": "7"}),
        (REMOVED, {"system": None}),
        (REMOVED, {"segment_bytes": 0}),
    ],
)
def test_a_fact_that_says_nothing_is_refused(fact: dict[str, Any], change: dict[str, Any]) -> None:
    made = found()
    record_fact(made.open(), {**fact, **change}, made.now())
    vault = made.open()
    assert facts(vault) == []
    assert len(vault.unreadable) == 1


def test_facts_add_up() -> None:
    made = found()
    vault = made.open()
    record_fact(vault, STORED, made.now())
    longer = {**STORED, "runs": [[segment(1)[0], segment(5)[0]]], "flushed": [[1, "0/00600000"]]}
    record_fact(vault, longer, made.now())
    record_fact(vault, {**STORED, "system": "7"}, made.now())
    for before in ("0/00300000", "0/00200000"):
        record_fact(vault, {**REMOVED, "before": before}, made.now())
    told = told_in(entries(made.open()), SYSTEM)
    assert Told(1, 1, 5) in told
    assert max(each.flushed for each in told) == 6 * SEGMENT_BYTES
    assert removed_in_all(entries(made.open()), SYSTEM).before == 3 * SEGMENT_BYTES
    expected = {f"wal/{SYSTEM}/00000001/{segment(n)[0]}" for n in (3, 4, 5)}
    there = must_be_there([], entries(made.open()))
    assert {key for key in there if SYSTEM in key} == expected


def test_a_claim_that_is_beyond_measure_costs_no_memory() -> None:
    """A thief of a write key may tell of a million times a million segments."""
    made = found()
    vault = Vault.open(made.replicas(), made.write_key, None)
    last = Segment(1, (1 << 44) - 1).name(SEGMENT_BYTES)
    record_fact(vault, {**STORED, "runs": [[segment(1)[0], last]]}, made.now())
    assert len(must_be_there([], entries(made.open()))) == LOST_AT_MOST
