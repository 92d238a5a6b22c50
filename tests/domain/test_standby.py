"""What a standby lacks, and what it must not be handed."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.continuity import continuity
from cellarer.domain.standby import Standing, followed, hidden_behind, left_at, unreplayed
from cellarer.domain.wal import History, Segment, piece_name

SIZE = 1 << 24
FORKED = {2: History(2, ((1, 2 * SIZE + 500),))}
BRANCHES = {2: History(2, ((1, SIZE),)), 3: History(3, ((1, 2 * SIZE),))}


def name(number: int, timeline: int = 1) -> str:
    return Segment(timeline, number).name(SIZE)


def test_the_newest_history_is_followed_where_it_leads_through() -> None:
    assert followed(1, {}) == History(1)
    assert followed(1, FORKED) == FORKED[2]
    # Timeline 3 comes from 1: a server that went to 2 stays there.
    assert followed(2, BRANCHES) == History(2)
    assert followed(1, BRANCHES) == BRANCHES[3]


def test_a_timeline_ends_where_it_was_left() -> None:
    assert left_at(1, FORKED) == 2 * SIZE + 500
    assert left_at(2, FORKED) is None
    assert left_at(1, {}) is None
    assert left_at(2, BRANCHES) is None


def test_a_history_that_is_missing_hides_what_comes_after_it() -> None:
    """Timeline 4 goes on from 3, whose server died before it stored its own history."""
    after = {2: FORKED[2], 4: History(4, (*FORKED[2].switches, (2, 4 * SIZE), (3, 5 * SIZE)))}
    assert followed(2, after) == FORKED[2]
    assert hidden_behind(2, 3 * SIZE, after) == 3
    assert hidden_behind(1, SIZE, after) == 3
    # It left before that: nothing is lost to who went another way.
    assert hidden_behind(2, 4 * SIZE + 1, after) is None
    assert hidden_behind(2, 3 * SIZE, FORKED) is None
    assert hidden_behind(1, SIZE, BRANCHES) is None
    whole = after | {3: History(3, (*FORKED[2].switches, (2, 4 * SIZE)))}
    assert hidden_behind(2, 3 * SIZE, whole) is None
    # A recovery is told the number, and needs no more than that history.
    assert continuity([name(2), name(2, 4)], after, SIZE).newest_timeline(1) == 4


def test_a_standing_is_read_as_it_was_written() -> None:
    for stored in (None, datetime(2026, 3, 1, 12, tzinfo=UTC)):
        standing = Standing("standby", "LSN 0/1", 0.5, stored_at=stored, problem="x")
        assert Standing.from_json(standing.to_json()) == standing


def test_what_lies_behind_a_fork_is_not_lacking() -> None:
    names = [name(2), name(3), name(2, 2)]
    assert unreplayed(names, {}, 1, 2 * SIZE, FORKED, SIZE) == name(2)
    assert unreplayed(names, {}, 1, 2 * SIZE + 500, FORKED, SIZE) == name(2, 2)
    assert unreplayed(names, {}, 2, 3 * SIZE, FORKED, SIZE) is None
    assert unreplayed(names[:2], {}, 1, 2 * SIZE + 500, FORKED, SIZE) is None


@given(st.lists(st.integers(1, SIZE), min_size=1, max_size=6), st.integers(0, SIZE))
def test_pieces_lack_from_the_first_that_goes_further(ends: list[int], at: int) -> None:
    cuts = sorted({0, *ends})
    pieces = list(pairwise(cuts))
    names = [piece_name(name(5), *each) for each in pieces]
    expected = next((piece_name(name(5), *each) for each in pieces if each[1] > at), None)
    assert unreplayed(names, {}, 1, 5 * SIZE + at, {}, SIZE) == expected
    # Where the server came to the end of what it was handed, nothing is left of it.
    assert unreplayed(names, {name(5): cuts[-1]}, 1, 5 * SIZE, {}, SIZE) is None
