"""What to read of a file, decided from what the log tells: compared with what it means."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellarer.ports import Held
from cellarer.postgres.base_changes import pieces_to_read
from cellarer.postgres.base_files import Locator, locator_of
from cellarer.postgres.base_pages import Layout
from cellarer.postgres.wal_summaries import _ROW, ChangedBlocks

PAGE, SEGMENT_PAGES = 8192, 16
LAYOUT = Layout(PAGE, SEGMENT_PAGES * PAGE, True, 0)

places = st.tuples(st.sampled_from([1663, 20000]), st.sampled_from([5, 6]))
told = st.lists(
    st.tuples(
        places,
        st.sampled_from([0, 100, 100, 100, 101]),
        st.integers(0, 3 * SEGMENT_PAGES),
        st.booleans(),
    ),
    max_size=40,
)


def changed(rows: list[tuple[tuple[int, int], int, int, bool]]) -> ChangedBlocks:
    found = np.zeros(len(rows), _ROW)
    for row, ((tablespace, database), relation, block, limit) in zip(found, rows, strict=True):
        row["tablespace"], row["database"], row["relation"] = tablespace, database, relation
        row["block"], row["limit"] = (0, 1) if relation == 0 else (block, limit)
    blocks = ChangedBlocks()
    for part in (found[:3], found[3:]):
        blocks.add(part)
    blocks.settle()
    return blocks


@given(
    rows=told,
    segment=st.integers(0, 2),
    pages_then=st.integers(0, SEGMENT_PAGES),
    pages_now=st.integers(0, SEGMENT_PAGES),
    in_piece=st.sampled_from([1, 2, 4]),
    unsettled=st.sets(st.integers(0, SEGMENT_PAGES), max_size=3),
)
def test_whatever_may_differ_is_read_and_nothing_else(
    rows: list[tuple[tuple[int, int], int, int, bool]],
    segment: int,
    pages_then: int,
    pages_now: int,
    in_piece: int,
    unsettled: set[int],
) -> None:
    path = "data/base/5/100" + (f".{segment}" if segment else "")
    base = Held("p", pages_then * PAGE, f"blake3-{in_piece * PAGE}:00")
    size = pages_now * PAGE
    partly = pieces_to_read(path, base, size, changed(rows), LAYOUT, sorted(unsettled))
    ours = [row for row in rows if row[0] == (1663, 5)]
    if any(relation == 0 for _, relation, _, _ in ours):
        assert partly is None
        return
    touched = {block for _, relation, block, limit in ours if relation == 100 and not limit}
    cut = min((block for _, rel, block, limit in ours if rel == 100 and limit), default=1 << 30)
    expected = set()
    for page in range(pages_now):
        block = page + segment * SEGMENT_PAGES
        if block in touched or block >= cut or page >= pages_then or page in {0, *unsettled}:
            expected.add(page // in_piece)
    if pages_now < pages_then and pages_now % in_piece:
        expected.add(pages_now // in_piece)  # it has another length now
    assert partly is not None
    assert partly.numbers == sorted(expected)


def test_only_files_of_main_forks_have_pages_that_the_log_tells_of() -> None:
    assert locator_of("data/base/5/100") == Locator(1663, 5, 100)
    assert locator_of("data/base/5/100.12") == Locator(1663, 5, 100)
    assert locator_of("data/global/1260") == Locator(1664, 0, 1260)
    assert locator_of("tablespaces/777/PG_18_202506291/5/100.1") == Locator(777, 5, 100)
    assert locator_of("data/pg_tblspc/777/PG_18_202506291/5/100") == Locator(777, 5, 100)
    for other in ("100_vm", "100_fsm", "100_init", "pg_filenode.map", "PG_VERSION", "t3_100"):
        assert locator_of(f"data/base/5/{other}") is None
    assert locator_of("data/pg_xact/0000") is None
    assert locator_of("data/global/pg_control") is None


def test_a_file_that_is_no_whole_number_of_pages_is_read_as_a_whole() -> None:
    nothing, base = changed([]), Held("p", 4 * PAGE, "blake3-8192:00")
    assert pieces_to_read("data/base/5/100", base, 4 * PAGE, nothing, LAYOUT) is not None
    assert pieces_to_read("data/base/5/100", base, 4 * PAGE - 1, nothing, LAYOUT) is None
    odd = Held("p", 4 * PAGE - 1, "blake3-8192:00")
    assert pieces_to_read("data/base/5/100", odd, 4 * PAGE, nothing, LAYOUT) is None
    for old in ("blake3:00", "sha256:00", "blake3-512:00"):
        known = Held("p", 4 * PAGE, old)
        assert pieces_to_read("data/base/5/100", known, 4 * PAGE, nothing, LAYOUT) is None
