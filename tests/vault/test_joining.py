"""Copies that are damaged at different places make a whole one; others make none."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import DamagedData
from cellarer.vault.joining import joined

BLOCK = 4096


def judge(good: bytes) -> Callable[[bytes], bool]:
    name = hashlib.sha256(good).digest()

    def genuine(data: bytes) -> bool:
        if hashlib.sha256(data).digest() != name:
            raise DamagedData("it is not what it is named for")
        return True

    return genuine


def damaged(good: bytes, blocks: set[int], bit: int) -> bytes:
    changed = bytearray(good)
    for block in blocks:
        changed[block * BLOCK + bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(
    seed=st.integers(),
    owners=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    cut=st.integers(0, 2 * BLOCK),
)
def test_what_each_copy_lost_another_has(seed: int, owners: list[int], cut: int) -> None:
    """Every other block of eight is damaged in one copy at most; one may lack its end."""
    good = random.Random(seed).randbytes(10 * BLOCK + 100)
    copies = [
        damaged(good, {2 * place for place, owner in enumerate(owners) if owner == number}, number)
        for number in range(2)
    ]
    copies[0] = copies[0][: len(good) - cut]
    assert joined(copies, judge(good)) == good


@given(st.integers(0, 7))
def test_a_block_that_is_damaged_in_all_of_them_makes_it_impossible(block: int) -> None:
    good = bytes(8 * BLOCK)
    copies = [damaged(good, {block}, bit) for bit in range(3)]
    assert joined(copies, judge(good)) is None


def test_too_many_places_are_not_tried() -> None:
    good, tried = random.Random(1).randbytes(64 * BLOCK), 0

    def count(data: bytes) -> bool:
        nonlocal tried
        tried += 1
        return data == good

    left = damaged(good, set(range(0, 64, 4)), 0)
    right = damaged(good, set(range(2, 64, 4)), 0)
    assert joined([left, right], count) is None
    assert tried == 0


def test_nothing_is_made_of_nothing() -> None:
    assert joined([], bool) is None


@given(places=st.sets(st.integers(0, 399), min_size=1, max_size=4), owners=st.integers(0, 255))
def test_of_a_small_object_blocks_side_by_side_are_told_apart(
    places: set[int], owners: int
) -> None:
    good = random.Random(1).randbytes(400)
    # What lies in one block of 16 bytes is one damage, of one copy.
    by_block = {place // 16: place for place in places}
    copies = [bytearray(good), bytearray(good)]
    for number, place in enumerate(by_block.values()):
        copies[owners >> number & 1][place] ^= 1
    assert joined([bytes(copy) for copy in copies], judge(good)) == good
