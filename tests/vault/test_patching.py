"""Streams of which a snapshot takes over all but some pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bare_machine import Machine, files
from cellarer.domain.snapshot import Entry
from cellarer.errors import SourceFailed
from cellarer.ports import Held, Patched, Pieces, Stream
from cellarer.vault import writer as writing
from cellarer.vault.hashers import stream_hasher
from cellarer.vault.manifest import contents_lines
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.vault import Commit
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, blocks, found, noise, restored
from vault.collecting import collect, drop, repack
from vault.test_taking_over import Unread, WasRead

PIECE = 512
PATH = "base/1/2"
WHOLE = noise(1, 300 * PIECE + 77)


def stored(scene: Founded, *streams: Stream) -> Commit:
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    try:
        for stream in streams:
            writer.add(stream)
        return writer.commit()
    finally:
        writer.abandon()


def stream(data: bytes, path: str = PATH) -> Stream:
    """One that later ones may be patches of."""
    given = blocks(data, 100_000)
    return Stream(path, "relation", given, page_bytes=PIECE, summed_by_pages=True)


def entry(scene: Founded, commit: Commit, path: str = PATH) -> Entry:
    entries = SnapshotReader(scene.open(), commit).entries()
    return next(entry for entry in entries if entry.path == path)


def piece(data: bytes | bytearray, number: int) -> bytes:
    return bytes(data[number * PIECE : (number + 1) * PIECE])


def differing(before: bytes | bytearray, after: bytes | bytearray) -> list[int]:
    count = -(-len(after) // PIECE)
    return [n for n in range(count) if piece(before, n) != piece(after, n)]


def patch(
    scene: Founded,
    last: Commit,
    data: bytes,
    numbers: Sequence[int],
    together: int = 3,
    path: str = PATH,
    **more: Any,
) -> Stream:
    """A stream that is what `last` holds, but for some pieces, given a few at a time."""
    held = entry(scene, last, path)
    base = Held(last.session, held.size_bytes, held.sum)

    def pieces() -> Iterator[Pieces]:
        for start in range(0, len(numbers), together):
            some = numbers[start : start + together]
            yield Pieces(some, b"".join(piece(data, number) for number in some))

    claim = replace(Patched(base, len(data), PIECE, pieces()), **more)
    return replace(stream(data, path), blocks=Unread(), patched=claim)


@settings(deadline=None, max_examples=40)
@given(
    before=st.integers(0, 20 * PIECE),
    after=st.integers(0, 20 * PIECE),
    changed=st.sets(st.integers(0, 19), max_size=6),
    again=st.sets(st.integers(0, 19), max_size=6),
    together=st.integers(1, 5),
)
def test_a_patched_stream_is_the_stream(
    before: int, after: int, changed: set[int], again: set[int], together: int
) -> None:
    scene = found()
    first = bytearray(WHOLE[:before])
    second = bytearray((WHOLE[:before] + bytes(PIECE * 20))[:after])
    for number in changed:
        second[number * PIECE : number * PIECE + 1] = b"\1"[: len(piece(second, number))]
    third = bytearray(second)
    for number in again:
        third[number * PIECE : number * PIECE + 1] = b"\2"[: len(piece(third, number))]
    last = stored(scene, stream(bytes(first)))
    for was, now in ((first, second), (second, third)):
        numbers = differing(was, now)
        commit = stored(scene, patch(scene, last, bytes(now), numbers, together))
        assert restored(scene.open(), commit) == {PATH: bytes(now)}
        assert commit.body["read_bytes"] == len(now)
        assert commit.body["added_bytes"] <= len(numbers) * PIECE + 500
        assert entry(scene, commit).sum == entry(scene, stored(scene, stream(bytes(now)))).sum
        last = stored(scene, patch(scene, scene.open().commits()[-1], bytes(now), []))


def test_only_what_the_newest_point_holds_is_patched() -> None:
    scene = found()
    other = stored(scene, stream(WHOLE))
    last = stored(scene, stream(WHOLE), replace(stream(WHOLE, "plain"), summed_by_pages=False))
    held = entry(scene, last)
    bases = {
        "an older point": Held(other.session, held.size_bytes, held.sum),
        "another length": Held(last.session, held.size_bytes + PIECE, held.sum),
        "another sum": Held(last.session, held.size_bytes, f"blake3-{PIECE}:{'0' * 64}"),
        "another kind": Held(last.session, held.size_bytes, "blake3:" + held.sum[-64:]),
    }
    for base in bases.values():
        with pytest.raises(WasRead):
            stored(scene, patch(scene, last, WHOLE, [1], base=base))
    with pytest.raises(WasRead):
        stored(scene, patch(scene, last, WHOLE, [1], piece_bytes=2 * PIECE))
    with pytest.raises(WasRead):
        stored(scene, patch(scene, last, WHOLE, [1], path="plain"))
    assert restored(scene.open(), stored(scene, patch(scene, last, WHOLE, [1]))) == {PATH: WHOLE}


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        (len(WHOLE) + 1, []),
        (len(WHOLE) + 3 * PIECE, [300, 301, 302]),
        (len(WHOLE) - 1, []),
        (200 * PIECE - 5, []),
    ],
)
def test_pieces_of_another_length_have_to_be_given(size: int, numbers: list[int]) -> None:
    scene = found()
    last = stored(scene, stream(WHOLE))
    data = (WHOLE + noise(2, 4 * PIECE))[:size]
    with pytest.raises(SourceFailed, match="only parts"):
        stored(scene, patch(scene, last, data, numbers))
    assert scene.open().commits()[-1].session == last.session


def test_pieces_that_are_too_short_make_no_point() -> None:
    scene = found()
    last = stored(scene, stream(WHOLE))
    with pytest.raises(SourceFailed, match="changed its length"):
        stored(scene, patch(scene, last, WHOLE[: 299 * PIECE], [2, 299], size_bytes=len(WHOLE)))


@pytest.mark.usefixtures("small_packs")
def test_what_was_lost_is_read_as_a_whole() -> None:
    scene = found()
    last = stored(scene, stream(WHOLE))
    claim = patch(scene, last, WHOLE, [1])
    store = scene.stores["a"]
    store.delete(next(key for key in store.objects if key.startswith("packs/")))
    with pytest.raises(WasRead):
        stored(scene, claim)


@pytest.mark.usefixtures("small_packs")
def test_what_was_repacked_is_patched_where_it_lies() -> None:
    scene = found(replicas=2)
    first = stored(scene, stream(WHOLE), stream(noise(7, 200 * PIECE), "gone"))
    last = stored(scene, patch(scene, first, WHOLE, []))
    drop(scene, first.session)
    repack(scene)
    collect(scene)
    data = WHOLE[:PIECE] + noise(8, PIECE) + WHOLE[2 * PIECE :]
    assert restored(scene.open(), stored(scene, patch(scene, last, data, [1]))) == {PATH: data}


def test_a_stream_that_has_grown_much_is_cut_into_larger_pieces() -> None:
    scene = found()
    last = stored(scene, stream(WHOLE))
    twice = replace(patch(scene, last, WHOLE, [1]), page_bytes=2 * PIECE)
    last = stored(scene, twice)
    with pytest.raises(WasRead):
        stored(scene, replace(patch(scene, last, WHOLE, [1]), page_bytes=4 * PIECE))


def test_pieces_that_are_alike_are_stored_once() -> None:
    scene = found()
    last = stored(scene, stream(WHOLE))
    data = bytes(100 * PIECE) + WHOLE[100 * PIECE :]
    second = stored(scene, patch(scene, last, data, range(100), together=60))
    assert second.body["added_bytes"] < PIECE + 500
    assert restored(scene.open(), second) == {PATH: data}


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=8), size=st.integers(0, len(WHOLE)))
def test_a_sum_over_pieces_does_not_depend_on_blocks(cuts: list[int], size: int) -> None:
    ends = sorted({0, size, *(cut for cut in cuts if cut < size)})
    once, parts = (stream_hasher(f"blake3-{PIECE}", bytes(32)) for _ in range(2))
    once.update(WHOLE[:size])
    for start, end in itertools.pairwise(ends):
        parts.update(WHOLE[start:end])
        parts.hexdigest()
    assert parts.hexdigest() == once.hexdigest()
    other = stream_hasher(f"blake3-{PIECE}", bytes(32))
    other.update(WHOLE[:size] + b"\0")
    assert other.hexdigest() != once.hexdigest()


@pytest.mark.parametrize("honest", [True, False])
def test_it_is_read_without_this_program_and_compared_with_its_sum(
    honest: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lies(entries: Sequence[Entry]) -> Iterator[bytes]:
        kind, _, total = entries[0].sum.partition(":")
        return contents_lines([replace(entries[0], sum=f"{kind}:{total[::-1]}")])

    scene = found()
    last = stored(scene, stream(WHOLE))
    data = WHOLE[:PIECE] + noise(8, PIECE) + WHOLE[2 * PIECE : -5]
    if not honest:
        monkeypatch.setattr(writing, "contents_lines", lies)
    point = stored(scene, patch(scene, last, data, [1, 300]))
    made = Machine(tmp_path, scene)
    made.download()
    done = made.run(point.session, str(made.out))
    assert done.returncode == (0 if honest else 1)
    assert files(made.out) == ({PATH: data} if honest else {})
