"""What is said of a stream: nothing of one that is well or idle, aloud of everything else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.wal_health import Happened, StreamReport, findings, lag

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WELL = StreamReport(
    source="log",
    seen=NOW - timedelta(seconds=5),
    system="7000000000000000001",
    timeline=1,
    streaming=True,
    stored_lsn=1 << 30,
    flush_lsn=1 << 30,
    slot="cellarer",
    slot_status="reserved",
    spool_limit_bytes=4 * 10**9,
)


def ids(report: StreamReport | None) -> set[str]:
    found = findings(report, "log", NOW)
    assert all(each.subject == "sources.log" and each.hint for each in found)
    return {each.id for each in found}


@given(st.timedeltas(timedelta(0), timedelta(days=9000)))
def test_a_server_that_is_idle_for_ever_is_well(idle: timedelta) -> None:
    assert findings(replace(WELL, seen=NOW + idle), "log", NOW + idle) == []
    assert lag(WELL, NOW + idle) == timedelta(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seen": NOW - timedelta(minutes=2)}, "wal-silent"),
        ({"problem": "the server is away", "streaming": False}, "wal-problem"),
        ({"streaming": False}, "wal-connecting"),
        ({"oldest_unstored": NOW - timedelta(minutes=6)}, "wal-lag"),
        ({"slot_status": ""}, "wal-slot-absent"),
        ({"slot_status": "lost"}, "wal-slot-lost"),
        ({"slot_status": "unreserved"}, "wal-slot-lost"),
        ({"held_bytes": 2 * 10**9 + 1}, "wal-held"),
        ({"held_bytes": 10**8, "safe_bytes": 10**7}, "wal-held"),
        ({"full": True}, "wal-held"),
        ({"happened": (Happened(NOW - timedelta(hours=23), "the slot was gone"),)}, "wal-happened"),
    ],
)
def test_what_must_not_stay_so_is_said(changes: dict[str, object], said: str) -> None:
    assert ids(WELL) == set()
    assert ids(replace(WELL, **changes)) == {said}  # type: ignore[arg-type]


def test_what_was_never_seen_is_said() -> None:
    assert ids(None) == {"wal-not-streamed"}


def test_what_is_over_for_long_is_not_said() -> None:
    over = Happened(NOW - timedelta(hours=25), "the slot was gone")
    assert ids(replace(WELL, happened=(over,))) == set()
