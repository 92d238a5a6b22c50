"""Chains: their order whatever the clocks say, and what is missing from them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.history import gaps, heads, in_order


@dataclass(frozen=True)
class Entry:
    """An entry whose hash is its number."""

    sha256: str
    previous: str
    clock: str


@st.composite
def chains(draw: st.DrawFn, right_clocks: bool = False) -> list[Entry]:
    """Entries in the order of their making, each naming one that was there, or nothing."""
    entries: list[Entry] = []
    for number in range(draw(st.integers(0, 12))):
        previous = draw(st.sampled_from(["", *(entry.sha256 for entry in entries)]))
        time = number if right_clocks else draw(st.integers(0, 30))
        entries.append(Entry(f"h{number}", previous, f"{time:06} {number:03}"))
    return entries


@given(chains(), st.randoms(use_true_random=False))
def test_each_comes_after_the_one_it_names(entries: list[Entry], chance: random.Random) -> None:
    shuffled = list(entries)
    chance.shuffle(shuffled)
    ordered = in_order(shuffled)
    assert sorted(ordered, key=str) == sorted(entries, key=str)
    place = {entry.sha256: number for number, entry in enumerate(ordered)}
    assert all(place.get(entry.previous, -1) < place[entry.sha256] for entry in entries)
    assert ordered == in_order(entries)


@given(chains(right_clocks=True))
def test_right_clocks_and_the_chain_agree(entries: list[Entry]) -> None:
    assert in_order(reversed(entries)) == entries


@given(chains(), st.data())
def test_what_is_taken_away_is_missed(entries: list[Entry], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(entries))) if entries else set()
    left = [entry for entry in entries if entry not in gone]
    hashes = {entry.sha256 for entry in gone}
    assert gaps(entries) == []
    assert gaps(left) == [entry for entry in left if entry.previous in hashes]
    noticed_by_heads = heads(entries) - {entry.sha256 for entry in left}
    assert bool(gone) == bool(noticed_by_heads or gaps(left))


@given(chains())
def test_everything_is_before_some_head(entries: list[Entry]) -> None:
    by_hash = {entry.sha256: entry for entry in entries}
    reached: set[str] = set()
    waiting = [*heads(entries)]
    while waiting:
        entry = by_hash.get(waiting.pop())
        if entry is not None:
            reached.add(entry.sha256)
            waiting.append(entry.previous)
    assert reached == set(by_hash)
