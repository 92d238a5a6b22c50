"""The framing of archives, against a second reading that is slow and to the letter."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellarer.errors import DamagedData
from cellarer.postgres.archive import (
    ArchiveReader,
    decode_segment,
    encode_segment,
    parse_toc,
    rows,
    table_path,
)

END_MARKER = b"\\.\n\n\n"
INTEGER = Struct("<BI")


@dataclass(frozen=True)
class Block:
    """What a data block is made of, for the archives that tests write by themselves."""

    large_objects: bool
    content: bytes


def text(value: bytes | None) -> bytes:
    return INTEGER.pack(1, 1) if value is None else INTEGER.pack(0, len(value)) + value


def framed(payloads: Iterable[bytes]) -> bytes:
    return b"".join(INTEGER.pack(0, len(payload)) + payload for payload in payloads)


def toc_of(blocks: list[Block]) -> bytes:
    """Header and entries in version 1.16, written from the description of the format."""
    header = b"PGDMP" + bytes([1, 16, 0, 4, 8, 1, 0]) + 7 * INTEGER.pack(0, 0)
    header += text(b"db") + text(b"18.4") + text(b"18.4") + INTEGER.pack(0, len(blocks))
    for number, block in enumerate(blocks, 1):
        description = b"BLOBS" if block.large_objects else b"TABLE DATA"
        header += INTEGER.pack(0, number) + INTEGER.pack(0, 1) + text(b"0") + text(b"0")
        header += text(b"t%d" % number) + text(description) + INTEGER.pack(0, 3)
        header += 3 * text(None) + text(b"public") + 2 * text(None) + INTEGER.pack(0, 0)
        header += text(b"owner") + text(b"false") + text(None) + bytes([1]) + bytes(8)
    return header


def archive_of(blocks: list[Block]) -> bytes:
    archive = toc_of(blocks)
    for number, block in enumerate(blocks, 1):
        archive += bytes([3 if block.large_objects else 1]) + INTEGER.pack(0, number)
        archive += block.content + bytes(5)
    return archive


class Dripping(io.RawIOBase):
    """A pipe that gives its bytes in pieces cut anywhere."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data, self._sizes = data, sizes

    def read(self, size: int = -1) -> bytes:
        count = self._sizes.pop(0) if self._sizes else 1 << 20
        taken, self._data = self._data[:count], self._data[count:]
        return taken


def read_whole(archive: bytes) -> None:
    for _entry, content in ArchiveReader(io.BytesIO(archive)).blocks():
        b"".join(content)


row_texts = st.one_of(
    # Every length whose bytes look like terminators or row ends is a few bytes away from these.
    st.sampled_from([1, 2, 9, 10, 11, 255, 256, 257, 2560, 2570, 65535, 65536, 65537]).map(
        lambda length: b"x" * (length - 1) + b"\n"
    ),
    st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"\x01") + b"\n"),
)
tables = st.lists(row_texts, max_size=6).map(
    lambda texts: Block(large_objects=False, content=framed([*texts, END_MARKER]))
)
objects = st.tuples(
    st.tuples(st.sampled_from([0, 1]), st.integers(1, 2**31)),
    st.lists(st.one_of(st.binary(min_size=1, max_size=20), st.just(bytes(16384))), max_size=3),
)
large_objects = st.lists(objects, max_size=4).map(
    lambda found: Block(
        large_objects=True,
        content=b"".join(INTEGER.pack(*oid) + framed(frames) + bytes(5) for oid, frames in found),
    )
)
archives = st.lists(st.one_of(tables, large_objects), max_size=5)
cuts = st.lists(st.integers(1, 40), max_size=200)


@given(archives, cuts)
@settings(deadline=None)
@example([Block(False, framed([b"x" * ((1 << 24) - 1) + b"\n", END_MARKER]))], [])
def test_blocks_are_found_wherever_reads_are_cut(blocks: list[Block], sizes: list[int]) -> None:
    archive = archive_of(blocks)
    reader = ArchiveReader(Dripping(archive, list(sizes)))
    found = [(e.holds_large_objects, b"".join(content)) for e, content in reader.blocks()]
    assert found == [(block.large_objects, block.content) for block in blocks]


@given(archives, cuts, st.data())
@settings(deadline=None)
def test_unread_blocks_are_skipped(
    blocks: list[Block], sizes: list[int], data: st.DataObject
) -> None:
    reader = ArchiveReader(Dripping(archive_of(blocks), list(sizes)))
    for (entry, content), block in zip(reader.blocks(), blocks, strict=True):
        assert entry.holds_large_objects == block.large_objects
        for _count in range(data.draw(st.integers(0, 2))):
            next(content, b"")


@given(archives.filter(bool), st.data())
def test_an_archive_that_breaks_off_is_damaged(blocks: list[Block], data: st.DataObject) -> None:
    archive = archive_of(blocks)
    kept = data.draw(st.integers(0, len(archive) - 1))
    with pytest.raises(DamagedData):
        read_whole(archive[:kept])


def walked(content: bytes) -> list[bytes]:
    """The frames of table data, one by one."""
    frames = []
    while content:
        _sign, length = INTEGER.unpack_from(content)
        frames.append(content[INTEGER.size : INTEGER.size + length])
        content = content[INTEGER.size + length :]
    return frames


@given(tables, cuts)
def test_rows_are_whole_and_all_there(block: Block, sizes: list[int]) -> None:
    expected = walked(block.content)[:-1]
    pipe = Dripping(block.content, list(sizes))
    pieces = list(rows(iter(pipe.read, b"")))
    assert b"".join(pieces) == b"".join(expected)
    ends = {0}
    for row in expected:
        ends.add(max(ends) + len(row))
    position = 0
    for piece in pieces:
        position += len(piece)
        assert position in ends


@given(tables, st.data())
def test_rows_that_break_off_are_damaged(block: Block, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(block.content) - 1))
    with pytest.raises(DamagedData):
        list(rows([block.content[:kept]]))


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [(0, 0, "does not begin"), (6, 17, "not known"), (6, 13, "not known"), (8, 8, "integers")],
)
def test_foreign_headers_are_refused(at: int, value: int, match: str) -> None:
    raw = bytearray(toc_of([]))
    raw[at] = value
    with pytest.raises(DamagedData) as caught:
        parse_toc(bytes(raw))
    assert match in str(caught.value)


def test_bytes_behind_a_table_of_contents_are_refused() -> None:
    with pytest.raises(DamagedData, match="damaged"):
        parse_toc(toc_of([]) + b"\0")


TABLE = (1, framed([END_MARKER]))
OBJECTS = (3, b"")


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param([(1, TABLE)], id="the last block is missing"),
        pytest.param([(2, OBJECTS)], id="the first block is missing"),
        pytest.param([(1, TABLE), (1, TABLE), (2, OBJECTS)], id="a block twice"),
        pytest.param([(1, TABLE), (2, OBJECTS), (3, TABLE)], id="a block of no entry"),
        pytest.param([(1, OBJECTS), (2, OBJECTS)], id="large objects for a table"),
        pytest.param([(1, (1, framed([b"cut"]))), (2, OBJECTS)], id="half a row"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks: list[tuple[int, tuple[int, bytes]]]) -> None:
    archive = toc_of([Block(False, TABLE[1]), Block(True, OBJECTS[1])])
    for number, (kind, content) in blocks:
        archive += bytes([kind]) + INTEGER.pack(0, number) + content + bytes(5)
    with pytest.raises(DamagedData, match="damaged"):
        read_whole(archive)


# ---------------------------------------------------------------------------------------- segments


@given(st.text(min_size=1), st.text(min_size=1))
def test_segments_are_reversible_and_safe(one: str, other: str) -> None:
    segment = encode_segment(one)
    assert decode_segment(segment) == one
    assert "/" not in segment
    assert segment not in {".", ".."}
    assert not any(ord(character) < 32 or ord(character) == 127 for character in segment)
    assert (table_path("d", one, other) == table_path("d", other, one)) == (one == other)


def test_names_stay_readable() -> None:
    assert encode_segment("My table, ünïcödé 表.v2. 100") == "My table, ünïcödé 表.v2. 100"
    assert encode_segment("a/b%c\n\x7f") == "a%2Fb%25c%0A%7F"
    assert encode_segment("..") == "%2E%2E"
