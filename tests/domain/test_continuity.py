"""What is missing of write-ahead log, and how far a recovery comes: compared with slow answers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.continuity import Told, continuity, with_number
from cellarer.domain.wal import History, Segment, piece_name

SIZE = 1 << 20
NUMBERS = st.sets(st.integers(0, 30))


def names(numbers: set[int], timeline: int = 1) -> list[str]:
    return [Segment(timeline, number).name(SIZE) for number in numbers]


def gaps_of(numbers: set[int], told: list[Told] | None = None, before: int = 0) -> set[int]:
    """The numbers of the segments in the gaps."""
    found = continuity(names(numbers), {}, SIZE, told or [], before * SIZE)
    return {
        number
        for window in found.windows
        for gap in window.gaps
        for number in range(gap.from_lsn // SIZE, gap.to_lsn // SIZE)
    }


@given(NUMBERS)
def test_what_lies_between_and_is_not_there_is_a_gap(numbers: set[int]) -> None:
    expected = set(range(min(numbers), max(numbers))) - numbers if numbers else set()
    assert gaps_of(numbers) == expected


@given(NUMBERS, st.integers(0, 30), st.integers(0, 30), st.integers(0, 31))
def test_what_was_told_and_not_removed_must_be_there(
    numbers: set[int], a: int, b: int, before: int
) -> None:
    first, last = sorted((a, b))
    kept = {n for n in numbers if n >= before}
    told = {n for n in range(first, last + 1) if n >= before}
    known = kept | told
    expected = set(range(min(known), max(known) + 1)) - kept if known else set()
    assert gaps_of(numbers, [Told(1, first, last)], before) == expected


@given(NUMBERS, st.integers(0, 30))
def test_a_recovery_comes_to_the_first_that_is_missing(numbers: set[int], start: int) -> None:
    end = start
    while end in numbers:
        end += 1
    reach = continuity(names(numbers), {}, SIZE).reach(1, start * SIZE, 1)
    assert reach.lsn == end * SIZE
    assert (reach.gap is not None) == any(n > end for n in numbers)
    if reach.gap is not None:
        assert reach.gap.from_lsn == end * SIZE
        assert reach.gap.to_lsn == min(n for n in numbers if n > end) * SIZE


@given(NUMBERS, NUMBERS, st.integers(1, 30 * SIZE), st.integers(0, 30))
def test_a_recovery_follows_the_timeline(
    first: set[int], second: set[int], switch: int, start: int
) -> None:
    """Each segment is wanted of the timeline on which it ends, as PostgreSQL reads them."""
    switch_number = switch // SIZE
    if start * SIZE > switch:
        return
    histories = {2: History(2, ((1, switch),))}
    found = continuity(names(first) + names(second, 2), histories, SIZE)
    number = start
    while number in (second if number >= switch_number else first):
        number += 1
    expected = number * SIZE
    if number == switch_number and number in first:
        expected = max(switch, expected)
    reach = found.reach(1, start * SIZE, 2)
    assert reach.lsn == expected
    behind = {n for n in first if n < switch_number} | {n for n in second if n >= switch_number}
    if any(n > number for n in behind):
        assert reach.gap is not None


@given(st.integers(1, 29), st.integers(1, SIZE - 1))
def test_a_fork_that_does_not_reach_its_parent_is_a_gap(switch: int, offset: int) -> None:
    histories = {2: History(2, ((1, switch * SIZE + offset),))}
    whole = continuity(names(set(range(switch))) + names({switch, switch + 1}, 2), histories, SIZE)
    assert [window.gaps for window in whole.windows] == [(), ()]
    short = continuity(
        names(set(range(max(switch - 1, 1)))) + names({switch + 1}, 2), histories, SIZE
    )
    missing = {gap.first for window in short.windows for gap in window.gaps}
    expected = {Segment(2, switch).name(SIZE)}
    if switch > 1:
        expected.add(Segment(1, switch - 1).name(SIZE))
    assert missing == expected


def test_pieces_reach_further_than_whole_segments() -> None:
    pieces = [
        piece_name(Segment(1, 5).name(SIZE), start, end)
        for start, end in ((0, 100), (100, 8192), (9000, 9100))
    ]
    found = continuity(names({3, 4}) + pieces, {}, SIZE)
    # What lies behind a hole was stored: the log does not end before it.
    (gap,) = found.windows[0].gaps
    assert (gap.from_lsn, gap.to_lsn) == (5 * SIZE + 8192, 5 * SIZE + 9100)
    reach = found.reach(1, 3 * SIZE, 1)
    assert (reach.lsn, reach.gap) == (5 * SIZE + 8192, gap)
    found = continuity(names({3, 4}) + pieces[:2], {}, SIZE)
    assert found.windows[0].to_lsn == 5 * SIZE + 8192
    assert found.windows[0].gaps == ()
    assert found.reach(1, 3 * SIZE, 1).lsn == 5 * SIZE + 8192
    # In the midst of WAL a segment has to be whole.
    assert len(continuity(names({3, 4, 6}) + pieces, {}, SIZE).windows[0].gaps) == 1


def test_flushed_wal_that_is_gone_is_a_gap() -> None:
    found = continuity(names({3}), {}, SIZE, [Told(1, 4, 3, 4 * SIZE + 500)])
    (gap,) = found.windows[0].gaps
    assert (gap.from_lsn, gap.to_lsn) == (4 * SIZE, 4 * SIZE + 500)
    assert found.reach(1, 3 * SIZE, 1).gap == gap


@given(st.lists(st.integers(0, 60)))
def test_runs_hold_exactly_their_numbers(numbers: list[int]) -> None:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        runs = with_number(runs, number)
    assert {n for first, last in runs for n in range(first, last + 1)} == set(numbers)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(runs))
