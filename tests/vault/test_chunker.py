"""Cuts depend on the bytes alone, stay where they are, and are part of the format."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.vault.chunker import (
    CHUNKS_PER_SNAPSHOT,
    CHUNKS_PER_STREAM,
    FEWEST_PER_STREAM,
    FINEST_BITS,
    LARGEST_BITS,
    NOWHERE,
    SMALL_STREAM_BYTES,
    SMALLEST_BITS,
    Batch,
    Chunker,
    Cuts,
    choose_cuts,
)
from stand_ins import blocks, noise

INPUT = noise(7, 6_000_000)


def chunks(
    pieces: list[bytes], bits: int = SMALLEST_BITS, finer_from: int = NOWHERE
) -> list[bytes]:
    chunker = Chunker(Cuts(bits, finer_from))
    found = [chunk for piece in pieces for batch in chunker.feed(piece) for chunk in cut(batch)]
    return found + [chunk for batch in chunker.finish() for chunk in cut(batch)]


def cut(batch: Batch) -> list[bytes]:
    ends = itertools.accumulate(batch.lengths, initial=0)
    return [bytes(batch.buffer[start:end]) for start, end in itertools.pairwise(ends)]


def in_blocks(data: bytes, block_bytes: int) -> list[bytes]:
    return list(blocks(data, block_bytes))


@pytest.mark.parametrize("bits", range(SMALLEST_BITS, LARGEST_BITS + 1))
def test_chunks_join_to_the_stream_and_keep_their_bounds(bits: int) -> None:
    found = chunks([INPUT], bits)
    assert b"".join(found) == INPUT
    size = 1 << bits
    assert all(size // 4 <= len(chunk) <= size * 4 for chunk in found[:-1])
    # Of the largest there are too few for a mean.
    assert bits == LARGEST_BITS or 0.8 * size < len(INPUT) / len(found) < 1.6 * size


@pytest.mark.parametrize("bits", [SMALLEST_BITS, LARGEST_BITS])
@pytest.mark.parametrize("block_bytes", [997, 65_536, 1 << 20, (1 << 20) + 1, 5_999_999])
def test_cuts_do_not_depend_on_blocks(bits: int, block_bytes: int) -> None:
    assert chunks(in_blocks(INPUT, block_bytes), bits) == chunks([INPUT], bits)


@given(st.lists(st.integers(0, 3_000_000), max_size=8), st.integers(0, 3_000_000))
@settings(max_examples=25, deadline=None, database=None)
def test_cuts_do_not_depend_on_any_blocks(borders: list[int], length: int) -> None:
    data = INPUT[:length]
    ends = [0, *sorted(min(border, length) for border in borders), length]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    assert chunks(pieces) == chunks([data])


@given(
    st.lists(st.integers(0, 3_000_000), max_size=8),
    st.integers(0, 3_000_000),
    st.integers(0, 3_100_000),
)
@settings(max_examples=25, deadline=None, database=None)
def test_the_finer_end_begins_where_it_shall(
    borders: list[int], length: int, finer_from: int
) -> None:
    data = INPUT[:length]
    ends = [0, *sorted(min(border, length) for border in borders), length]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    found = chunks(pieces, SMALLEST_BITS, finer_from)
    coarse = chunks([data[:finer_from]])
    assert found == coarse + chunks([data[finer_from:]], FINEST_BITS)


@pytest.mark.parametrize("data", [b"", b"x", bytes(3_000_000), b"row\n" * 700_000])
def test_streams_without_any_content_to_cut_by(data: bytes) -> None:
    found = chunks(in_blocks(data, 100_000))
    assert b"".join(found) == data
    assert found == chunks([data])


@pytest.mark.parametrize("at", [0, 1_000_000, 5_999_999])
@pytest.mark.parametrize("inserted", [b"!", noise(8, 20_000)])
def test_an_insertion_changes_few_chunks(at: int, inserted: bytes) -> None:
    before = set(chunks([INPUT]))
    after = chunks([INPUT[:at] + inserted + INPUT[at:]])
    fresh = [chunk for chunk in after if chunk not in before]
    assert sum(map(len, fresh)) < len(inserted) + 40_000


@pytest.mark.parametrize(
    ("bits", "count", "first", "digest"),
    [
        (
            9,
            6190,
            [739, 1102, 535, 599],
            "91d73d1e0c6b1d6b9c2e3e89071bcce3e012423ebf333a25a52a461e750ed910",
        ),
        (
            11,
            1550,
            [1904, 2089, 2733, 2432],
            "6d4f618f79a05d8e44fbdec3d9d9839920fbeb2c3f9e64db12a4fc1b1a652d1c",
        ),
        (
            14,
            196,
            [33667, 9646, 37677, 27047],
            "6da62de65290333e3847cf4d5cbac0ce52cd7c3ed1be604778fcbbadb0eb166c",
        ),
        (
            17,
            22,
            [151508, 137510, 203676, 221723],
            "fed9f40a4e7c89e1a35e1fd9a9eb19755029b672df9cd6305be2e236c89547d0",
        ),
    ],
)
def test_cuts_of_format_1(bits: int, count: int, first: list[int], digest: str) -> None:
    """Other cuts would store everything anew; they need a new version of the format."""
    lengths = [len(chunk) for chunk in chunks([golden_input()], bits)]
    assert len(lengths) == count
    assert lengths[:4] == first
    assert hashlib.sha256(",".join(map(str, lengths)).encode()).hexdigest() == digest


def golden_input() -> bytes:
    """4 MiB from SHA-256 in counter mode: the same in every language."""
    return b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(1 << 17))


def test_small_streams_get_small_chunks_and_large_ones_large() -> None:
    border = CHUNKS_PER_STREAM << 12
    for length, bits in (
        (0, SMALLEST_BITS),
        (SMALL_STREAM_BYTES, SMALLEST_BITS),
        (SMALL_STREAM_BYTES + 1, 12),
        (border, 12),
        (2 * border, 13),
        (1 << 60, LARGEST_BITS),
    ):
        assert choose_cuts(length, False, None) == Cuts(bits)


LENGTHS = st.integers(0, 1 << 45)
BITS = st.sampled_from(range(SMALLEST_BITS, LARGEST_BITS + 1))


@given(LENGTHS, BITS, st.booleans())
def test_the_size_of_chunks_stays_until_it_is_far_off(
    length: int, previous: int, grows: bool
) -> None:
    ideal = choose_cuts(length, grows, None)
    kept = choose_cuts(0, grows, (Cuts(previous), length))
    assert kept.bits == (previous if abs(ideal.bits - previous) <= 1 else ideal.bits)
    assert choose_cuts(0, grows, (kept, length)) == kept


@given(st.integers(1 << 20, 1 << 45), st.floats(0.5, 3))
def test_the_finer_end_stays_until_it_is_far_off(length: int, growth: float) -> None:
    cuts = choose_cuts(length, True, None)
    assert 0.12 < (length - cuts.finer_from) / length < 0.13
    now = int(length * growth)
    later = choose_cuts(0, True, (cuts, now))
    assert now / 16 - 1 <= now - later.finer_from <= now / 4 + 1
    if 0.94 < growth < 1.16:
        assert later.finer_from == cuts.finer_from
    assert choose_cuts(0, True, (later, now)) == later


@given(LENGTHS)
def test_only_a_stream_that_grows_at_its_end_has_a_finer_one(length: int) -> None:
    assert choose_cuts(length, False, None).finer_from == NOWHERE
    finer = choose_cuts(length, True, None).finer_from
    assert (finer == NOWHERE) == (length < 1 << 18)


@given(
    st.lists(st.tuples(st.integers(1, 40_000_000), st.integers(1, 1 << 20)), max_size=60),
    st.booleans(),
)
def test_many_long_streams_share_the_chunks_of_a_snapshot(
    streams: list[tuple[int, int]], grows: bool
) -> None:
    """Up to 60 terabytes: as coarse as chunks get there, their number is bounded by the length."""
    chunks, total = 0, 0
    for a, b in streams:
        length = a * b % (1 << 40)
        cuts = choose_cuts(length, grows, None, chunks)
        fine = 0 if cuts.finer_from == NOWHERE else length - cuts.finer_from
        chunks += ((length - fine) >> cuts.bits) + (fine >> max(cuts.bits - 3, FINEST_BITS))
        total += length
    coarsest = 2 * (total >> LARGEST_BITS)
    assert chunks <= max(CHUNKS_PER_SNAPSHOT, coarsest) + 60 * 2 * FEWEST_PER_STREAM
