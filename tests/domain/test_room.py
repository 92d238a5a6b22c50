"""A disk is full before the backup fails for it."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.room import RECENT_POINTS, room
from cellarer.domain.snapshot import RestorePoint

NOW = datetime(2026, 11, 24, tzinfo=UTC)
sizes = st.integers(0, 1 << 44)


def points(stored: list[int]) -> list[RestorePoint]:
    return [RestorePoint(f"p{n}", "db", "t", NOW, 1.0, 0, 0, s, 1) for n, s in enumerate(stored)]


@given(st.lists(sizes, max_size=20), sizes)
def test_the_largest_recent_point_is_the_measure(stored: list[int], free_bytes: int) -> None:
    largest = max(stored[:RECENT_POINTS], default=0)
    found = [finding.level for finding in room("r", free_bytes, points(stored))]
    if free_bytes < largest:
        assert found == ["error"]
    elif free_bytes < 2 * largest:
        assert found == ["warning"]
    else:
        assert found == []
