"""Names and numbers of write-ahead log."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cellarer.domain.wal import (
    History,
    Kind,
    Section,
    Segment,
    compose,
    covered,
    first_page,
    history_name,
    lsn_text,
    parse_lsn,
    parse_name,
    piece_name,
    segment_at,
)

SIZES = st.sampled_from([1 << power for power in range(20, 31)])
LSNS = st.integers(0, (1 << 64) - 1)
TIMELINES = st.integers(1, (1 << 32) - 1)


@given(LSNS)
def test_a_position_is_read_as_it_was_written(lsn: int) -> None:
    assert parse_lsn(lsn_text(lsn)) == lsn


def test_positions_as_servers_write_them() -> None:
    assert parse_lsn("0/0") == 0
    assert parse_lsn("16/B374D848") == (0x16 << 32) + 0xB374D848
    assert lsn_text(0x1_0000_0028) == "1/00000028"
    for text in ("", "/", "1", "1/", "/1", "1/123456789", "g/0", "-1/0", " 0/0", "0/0\n"):
        with pytest.raises(ValueError, match="position"):
            parse_lsn(text)


@given(TIMELINES, LSNS, SIZES)
def test_a_segment_is_named_and_read(timeline: int, lsn: int, size: int) -> None:
    segment = segment_at(timeline, lsn, size)
    assert segment.start(size) <= lsn < segment.end(size)
    assert Segment.parse(segment.name(size), size) == segment
    assert parse_name(segment.name(size)).kind is Kind.SEGMENT


@given(TIMELINES, LSNS, LSNS, SIZES)
def test_names_of_a_timeline_sort_as_its_wal(timeline: int, a: int, b: int, size: int) -> None:
    first, second = segment_at(timeline, a, size), segment_at(timeline, b, size)
    assert (first < second) == (first.name(size) < second.name(size))


def test_names_as_servers_write_them() -> None:
    assert segment_at(1, 0x1_FF00_0000).name() == "0000000100000001000000FF"
    assert Segment(1, 0x200).name() == "000000010000000200000000"
    kinds = {
        "000000010000000100000001": Kind.SEGMENT,
        "000000010000000100000001.partial": Kind.PARTIAL,
        "000000010000000100000001.00000028.backup": Kind.BACKUP,
        "00000002.history": Kind.HISTORY,
        "000000010000000100000001.00000000-00002000": Kind.PIECE,
    }
    assert {name: parse_name(name).kind for name in kinds} == kinds


@pytest.mark.parametrize(
    "name",
    [
        "", "x", "00000001000000010000000", "0000000100000001000000011", "../00000002.history",
        "00000000.history", "000000000000000100000001", "00000002.history\n",
        "00000001000000010000000a", "000000010000000100000001.00000000-00000000",
        "000000010000000100000001.00002000-00001000", "000000010000000100000001.bak",
        "000000010000000100000001.00000000-FFFFFFFF",
    ],
)  # fmt: skip
def test_other_names_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        parse_name(name)


def test_a_name_may_not_fit_the_size_of_segments() -> None:
    with pytest.raises(ValueError, match="no segment of"):
        Segment.parse("000000010000000100000100")
    assert Segment.parse("000000010000000100000100", 1 << 20).number == (1 << 12) + 0x100


@given(st.integers(0, 1 << 20), st.integers(1, 1 << 20))
def test_pieces_are_named_and_read(start: int, length: int) -> None:
    found = parse_name(piece_name("000000010000000100000001", start, start + length))
    assert (found.kind, found.start, found.end) == (Kind.PIECE, start, start + length)
    assert found.segment == "000000010000000100000001"


def test_a_history_is_read_as_servers_write_it() -> None:
    text = "1\t0/A000198\tno recovery target specified\n\n# note\n2\t0/B0000A0\tbefore 2026\n"
    history = History.parse(3, text)
    assert history.switches == ((1, 0xA000198), (2, 0xB0000A0))
    assert history.sections() == [
        Section(1, 0, 0xA000198), Section(2, 0xA000198, 0xB0000A0), Section(3, 0xB0000A0, None),
    ]  # fmt: skip
    assert history_name(3) == "00000003.history"


@pytest.mark.parametrize("text", ["x\t0/0\t\n", "1\n", "3\t0/1\tx\n", "2\t0/1\tx\n1\t0/2\tx\n",
                                  "1\t0/2\tx\n2\t0/1\tx\n", "1\tnowhere\tx\n"])  # fmt: skip
def test_other_histories_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"history|position"):
        History.parse(3, text)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_first_page_or_none(data: bytes) -> None:
    first_page(data)


@given(st.binary(max_size=200), st.data())
def test_pieces_of_the_same_bytes_fit_together(data: bytes, draw: st.DataObject) -> None:
    offsets = st.integers(0, len(data))
    ranges = [sorted(pair) for pair in draw.draw(st.lists(st.tuples(offsets, offsets), max_size=8))]
    whole = compose((start, data[start:end]) for start, end in ranges)
    assert whole == data[: covered((start, end) for start, end in ranges)]
    # Nothing that is reached without a hole is left out.
    reached = 0
    while any(start <= reached < end for start, end in ranges):
        reached += 1
    assert len(whole) == reached


@given(st.binary(min_size=2, max_size=50), st.data())
def test_pieces_that_differ_are_refused(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(1, len(data) - 1))
    other = bytes([data[at - 1] ^ 1]) + data[at:]
    assume(at - 1 + len(other) <= len(data))
    with pytest.raises(ValueError, match="differ"):
        compose([(0, data), (at - 1, other)])
