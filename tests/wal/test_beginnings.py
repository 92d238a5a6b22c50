"""Where receiving begins, how far pieces go, and where the log in a file ends."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.wal import Segment, piece_name
from cellarer.errors import SourceFailed, UsageError
from cellarer.postgres.wal_files import PAGE_BYTES, data_end, system_of
from cellarer.wal.beginning import seed, timeline_at
from cellarer.wal.shipping import piece_ends

SIZE = 1 << 24
HISTORY = (
    b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000100\tno recovery target specified\n"
)


@pytest.mark.parametrize(
    ("lsn", "timeline"),
    [(0, 1), (0x2FFFFFF, 1), (0x3000000, 2), (0x50000FF, 2), (0x5000100, 3), (1 << 40, 3)],
)
def test_a_position_lies_on_one_timeline(lsn: int, timeline: int) -> None:
    assert timeline_at(lsn, 3, {3: HISTORY}) == timeline
    assert timeline_at(lsn, 1, {}) == 1


def name(number: int, timeline: int = 1) -> str:
    return Segment(timeline, number).name(SIZE)


@pytest.mark.parametrize(
    ("there", "begins"),
    [
        ([], 5),
        ([name(3)], 5),
        ([f"{name(4)}.partial"], 5),
        ([name(5)], 6),
        ([name(7)], 8),
        ([f"{name(5)}.partial"], None),
        ([name(5), f"{name(6)}.partial"], None),
    ],
)
def test_what_is_there_is_gone_on_from(
    tmp_path: Path, there: list[str], begins: int | None
) -> None:
    seed(tmp_path, there, Segment(1, 5), SIZE)
    made = [path.name for path in tmp_path.iterdir()]
    assert made == ([] if begins is None else [f"{name(begins)}.partial"])


def test_pieces_count_up_to_the_first_hole() -> None:
    names = [piece_name(name(1), *each) for each in ((0, 10), (10, 30), (25, 40), (50, 60))]
    assert piece_ends([*names, piece_name(name(2), 5, 9), name(3)]) == {name(1): 40, name(2): 0}


@given(st.integers(0, 1 << 40))
def test_one_segment_follows_another(number: int) -> None:
    segment = Segment(1, number % (1 << 32))
    assert segment.following().start(SIZE) == segment.end(SIZE)
    assert segment.following().name(SIZE) == name(segment.number + 1)


@given(st.integers(1, 5 * PAGE_BYTES), st.data())
def test_the_end_is_behind_the_last_byte_that_was_written(length: int, data: st.DataObject) -> None:
    """Log has a header on every page, so no page before the end is empty."""
    start = data.draw(st.integers(0, length))
    written = bytearray(length)
    for page in range(0, length, PAGE_BYTES):
        written[page] = 0xD1
    written[-1] = 1
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(written) + bytes(6 * PAGE_BYTES))
        file.flush()
        assert data_end(Path(file.name), start) == length


def test_whose_the_log_is_is_not_known_where_there_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        system_of(tmp_path, "archive_command")
    assert "archive_command runs in the data directory" in caught.value.hint


def test_what_keeps_from_looking_whose_the_log_is_is_told(tmp_path: Path) -> None:
    (tmp_path / "global" / "pg_control").mkdir(parents=True)
    with pytest.raises(SourceFailed, match="pg_control cannot be read") as caught:
        system_of(tmp_path, "archive_command")
    assert "runs PostgreSQL" in caught.value.hint
