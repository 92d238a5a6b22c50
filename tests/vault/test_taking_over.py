"""Streams that a snapshot takes over from the one before, and those that change in pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.ports import Held, Stream
from cellarer.vault.chunker import Chunker, Cuts, page_cuts
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.vault import Commit
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, all_restored, blocks, found, noise, restored
from vault.collecting import collect, drop, repack
from vault.wasteful import KEPT, WHOLE, wasteful

PAGE = 8192
LONG = noise(3, (4 << 20) + 4)
CONTENT = {"a": noise(1, 150_000), "b": noise(2, 90_000)}


class WasRead(AssertionError):
    """A stream was read that was to be taken over."""


class Unread:
    """Blocks that nobody may ask for."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        raise WasRead


def entries(scene: Founded, commit: Commit) -> dict[str, Entry]:
    return {entry.path: entry for entry in SnapshotReader(scene.open(), commit).entries()}


def again(
    scene: Founded,
    last: Commit,
    content: Mapping[str, bytes | None],
    claims: Mapping[str, Entry] | None = None,
) -> Commit:
    """A snapshot of streams that claim to be as in `last`; None stands for what is not read."""
    claims = entries(scene, last) if claims is None else claims
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    try:
        for path, data in content.items():
            claim = Held(last.session, claims[path].size_bytes, claims[path].sum)
            given = Unread() if data is None else blocks(data)
            writer.add(Stream(path, "test", given, unchanged=claim))
        return writer.commit()
    finally:
        writer.abandon()


def test_a_stream_that_is_unchanged_is_not_read() -> None:
    scene = found(replicas=2)
    first = scene.backup(CONTENT)
    second = again(scene, first, {"b": None, "a": None})
    third = again(scene, second, {"a": None})
    vault = scene.open()
    assert restored(vault, second) == CONTENT
    assert restored(vault, third) == {"a": CONTENT["a"]}
    assert second.body["added_bytes"] < 1000
    assert second.body["read_bytes"] == first.body["read_bytes"]
    before, after = entries(scene, first), entries(scene, second)
    assert {p: e.sum for p, e in before.items()} == {p: e.sum for p, e in after.items()}


def test_a_claim_about_another_point_than_the_newest_is_not_taken() -> None:
    scene = found()
    first = scene.backup(CONTENT)
    claims = entries(scene, first)
    scene.backup({"a": b"other"})
    with pytest.raises(WasRead):
        again(scene, first, {"a": None})
    assert restored(scene.open(), again(scene, first, CONTENT, claims)) == CONTENT


def test_a_claim_about_a_point_that_was_given_up_is_not_taken() -> None:
    scene = found()
    scene.backup({"b": b"kept"})
    first = scene.backup(CONTENT)
    claims = entries(scene, first)
    drop(scene, first.session)
    with pytest.raises(WasRead):
        again(scene, first, {"a": None}, claims)


def test_a_stream_that_was_not_in_the_point_is_read() -> None:
    scene = found()
    first = scene.backup({"a": CONTENT["a"]})
    claims = entries(scene, first) | {"b": entries(scene, first)["a"]}
    second = again(scene, first, {"a": None, "b": CONTENT["b"]}, claims)
    assert restored(scene.open(), second) == CONTENT


@pytest.mark.usefixtures("small_packs")
@pytest.mark.parametrize("kind", ["packs/", "sessions/", "keys/"])
def test_what_was_lost_is_read_again(kind: str) -> None:
    scene = found()
    first = scene.backup({"b": CONTENT["b"]})
    claims = entries(scene, first)
    store = scene.stores["a"]
    for key in [k for k in store.objects if k.startswith(kind) and "vault" not in k]:
        if kind == "packs/" or first.session in key:
            store.delete(key)
    with pytest.raises(WasRead):
        again(scene, first, {"b": None}, claims)
    second = again(scene, first, {"b": CONTENT["b"]}, claims)
    assert restored(scene.open(), second) == {"b": CONTENT["b"]}


@pytest.mark.usefixtures("small_packs")
def test_what_was_repacked_is_taken_over_from_where_it_lies() -> None:
    scene, kept = wasteful(replicas=2)
    first = next(c for c in scene.open().commits() if c.session == kept)
    claims = entries(scene, first)
    repack(scene)
    collect(scene)
    second = again(scene, first, dict.fromkeys(KEPT), claims)
    drop(scene, kept)
    collect(scene)
    assert all_restored(scene.open()) == {second.session: KEPT}


def test_a_claim_that_is_not_true_is_found_by_reading() -> None:
    scene = found()
    first = scene.backup(CONTENT)
    lie = {"a": entries(scene, first)["b"]}
    second = again(scene, first, {"a": None}, lie)
    with pytest.raises(DamagedData, match="not what was backed up"):
        restored(scene.open(), second)


def test_unreadable_references_cost_a_reading_and_nothing_else() -> None:
    scene = found()
    first = scene.backup(CONTENT)
    claims = entries(scene, first)
    objects, key = scene.stores["a"].objects, str(first.body["references"])
    objects[key] = objects[key][:-40]
    second = again(scene, first, CONTENT, claims)
    assert restored(scene.open(), second) == CONTENT


def pages(data: bytes, scene: Founded, path: str = "base/1/2") -> Commit:
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    try:
        writer.add(Stream(path, "relation", blocks(data, 100_000), page_bytes=PAGE))
        return writer.commit()
    finally:
        writer.abandon()


def test_a_page_that_changed_costs_a_page() -> None:
    scene = found()
    data = bytearray(WHOLE["t"] + noise(9, 160_000 + 77))
    pages(bytes(data), scene)
    for page in (0, 7, 30):
        data[page * PAGE + 500] ^= 1
    second = pages(bytes(data), scene)
    assert 3 * PAGE <= second.body["added_bytes"] < 3 * PAGE + 1000
    assert restored(scene.open(), second) == {"base/1/2": bytes(data)}


@given(st.lists(st.binary(max_size=3000), max_size=12), st.sampled_from([64, 512, 1024]))
def test_every_chunk_but_the_last_is_a_page(given_blocks: list[bytes], size: int) -> None:
    chunker = Chunker(page_cuts(size, None))
    batches = [b for block in given_blocks for b in chunker.feed(block)] + [*chunker.finish()]
    joined = b"".join(bytes(b.buffer[: sum(b.lengths)]) for b in batches)
    lengths = [n for b in batches for n in b.lengths]
    assert joined == b"".join(given_blocks)
    assert all(n == size for n in lengths[:-1])
    assert all(0 < n <= size for n in lengths)


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 4096, 8192, 1 << 20, (1 << 20) + 1]), max_size=4))
def test_pages_do_not_depend_on_blocks(sizes: list[int]) -> None:
    content = LONG[: sum(sizes)]
    ends = list(itertools.accumulate(sizes, initial=0))
    chunker = Chunker(page_cuts(8192, None))
    batches = [b for a, z in itertools.pairwise(ends) for b in chunker.feed(content[a:z])]
    chunks = []
    for batch in [*batches, *chunker.finish()]:
        cuts = itertools.accumulate(batch.lengths, initial=0)
        chunks += [bytes(batch.buffer[start:end]) for start, end in itertools.pairwise(cuts)]
    assert chunks == list(blocks(content, 8192))


def test_a_block_of_whole_pages_is_not_copied() -> None:
    chunker, block = Chunker(page_cuts(8192, None)), bytes(1 << 20)
    for _ in range(2):
        [batch] = chunker.feed(block)
        assert batch.buffer.obj is block
        assert batch.lengths == [8192] * 128
    assert not list(chunker.finish())


def test_pages_keep_their_size_until_it_is_far_off() -> None:
    small = page_cuts(8192, None)
    assert page_cuts(16384, small) == small
    assert page_cuts(32768, small) == page_cuts(32768, None)
    assert page_cuts(8192, Cuts(13)) == small
