"""A store that serves what it likes, and a writer who signs what he likes.

Whatever they make is refused by name, or is harmless; nothing of it is ever given out for content,
and none of it makes a reader run out of memory.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.ports import ObjectInfo
from cellarer.targets.directory import DirectoryTarget
from cellarer.vault import crypto, writer
from cellarer.vault import format as layout
from cellarer.vault.index import open_segment
from cellarer.vault.ledger import entries
from cellarer.vault.manifest import References, contents_lines
from cellarer.vault.pack import TableOfContents
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.record import open_record
from hostile import SESSION, commit_of, inner_of, put, refused
from stand_ins import Founded, Objects, all_restored, found, noise, restored

KEY = bytes(range(32))
MODERATE_BYTES = 300 << 20
HEX = "ab" * 32


class Unwatched:
    """Progress that nobody sees."""

    def begin(self, what: str, total_bytes: int | None) -> None: ...
    def advance(self, done_bytes: int) -> None: ...
    def note(self, message: str) -> None: ...
    def end(self) -> None: ...


@contextmanager
def moderate_memory() -> Iterator[None]:
    """No more is allocated at once than a record and its table need."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MODERATE_BYTES


@pytest.fixture(scope="module")
def made() -> Founded:
    scene = found()
    scene.backup({"t": noise(1, 20_000), "s": b"text"})
    scene.backup({"t": noise(1, 20_000) + b"more", "s": b"text"})
    return scene


@pytest.fixture
def scene(made: Founded) -> Founded:
    return made.copy()


# ----------------------------------------------------------------------------- names and paths


@pytest.mark.parametrize(
    "path",
    ["../escaped", "/etc/escaped", "a/../../escaped", "a//b", ".", "a/\0b", "..", "a/.."],
)
def test_a_path_never_leaves_the_target(tmp_path: Path, path: str) -> None:
    scene = found()
    commit = scene.backup({"good": b"good", path: b"bad"})
    reader = SnapshotReader(scene.open(), commit)
    target = DirectoryTarget(tmp_path / "deep" / "target")
    target.prepare(overwrite=False)
    with pytest.raises(DamagedData):
        target.restore(reader, (), Unwatched())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


BAD_NAMES = [
    "packs/../../x", "packs/ab/../../x", "/etc/passwd", f"packs/aa/{HEX}", f"config/ab/{HEX}",
    f"packs/ab/{HEX}\0", f"packs/ab/{HEX}/x", f"packs/ab/{HEX.upper()}", "", 7, None, ["packs"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_of_packs_are_looked_at_before_they_are_used(scene: Founded, name: object) -> None:
    key = commit_of(scene, {**inner_of(scene), "references": name})
    assert "not a record of a snapshot" in str(refused(scene, key))
    header = {"packs": [name], "records": 0, "sessions": [], "streams": 0}
    with pytest.raises(DamagedData):
        References.unseal(KEY, sealed(header, b"", "references"))
    with pytest.raises(DamagedData):
        list(open_segment(KEY, sealed({"packs": [[name, 0]]}, b"", "index")))


@pytest.mark.parametrize(
    "name", ["../x", "", "20260301T120000Z-00C0FFEE", SESSION + "/..", 7, None]
)
def test_names_of_sessions_are_looked_at_before_they_are_used(name: object) -> None:
    header = {"packs": [], "records": 0, "sessions": [name], "streams": 0}
    with pytest.raises(DamagedData):
        References.unseal(KEY, sealed(header, b"", "references"))
    toc: dict[str, object] = {"chunks": 0, "records": 0, "sessions": [name]}
    with pytest.raises(DamagedData):
        TableOfContents.from_bytes(layout.frame(toc))


class Liar(Objects):
    """A store whose listing names more than there is, some of it twice and with other sizes."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        whole = list(super().list(prefix))
        yield from whole
        if prefix == layout.COLLECTIONS_PREFIX:
            return  # what is no round there ends a backup: nobody knows what it condemns
        for extra in ("../../x", "packs/../../x", "x" * 400, "", SESSION, ".hidden", "a/b/c"):
            yield ObjectInfo(prefix + extra, 100)
        yield from reversed(whole)
        yield from (ObjectInfo(info.key, info.size_bytes) for info in whole)


def test_a_listing_with_names_that_mean_nothing_and_twice(scene: Founded) -> None:
    liar = Liar("a", scene.stores["a"].objects)
    vault = scene.open(scene.replicas(lambda name, store: liar))
    expected = all_restored(scene.open())
    assert all_restored(vault) == expected
    assert f"snapshots/{SESSION}" in vault.unreadable
    scene.backup({"t": b"new"}, vault)


# ------------------------------------------------------------------------------ lengths and bombs


def sealed(header: Mapping[str, object], arrays: bytes, what: str) -> bytes:
    return crypto.seal(KEY, layout.frame(dict(header), arrays), f"cellarer/1/{what}")


NUMBERS: st.SearchStrategy[object] = st.sampled_from(
    [-1, 0, 1, 2, 3, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, 10**30, 1.5, 1e308, True, None, "1",
     [], {}]
)  # fmt: skip


@given(records=NUMBERS, streams=NUMBERS, finer=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS)),
       arrays=st.binary(max_size=200))  # fmt: skip
@settings(max_examples=300, deadline=None, database=None)
def test_references_of_any_numbers(
    records: object, streams: object, finer: list[object], arrays: bytes
) -> None:
    header = {"finer": finer, "packs": [f"packs/ab/{HEX}"], "records": records,
              "sessions": [SESSION], "streams": streams}  # fmt: skip
    try:
        found = References.unseal(KEY, sealed(header, arrays, "references"))
    except DamagedData:
        return
    assert len(found.records) == records
    assert len(found.streams) == streams
    runs = sum(len(stream.runs) for stream in found.streams)
    assert len(arrays) == 32 * len(found.records) + 21 * len(found.streams) + 12 * runs


@given(records=NUMBERS, chunks=NUMBERS, arrays=st.binary(max_size=200))
@settings(max_examples=300, deadline=None, database=None)
def test_tables_of_contents_of_any_numbers(records: object, chunks: object, arrays: bytes) -> None:
    header = {"chunks": chunks, "records": records, "sessions": [SESSION]}
    try:
        toc = TableOfContents.from_bytes(layout.frame(header, arrays))
    except DamagedData:
        return
    assert len(toc.records) == records
    assert len(toc.chunk_lengths) * 16 == len(toc.chunk_ids)
    assert all(row["session"] == 0 for row in toc.records)


@given(at=st.integers(0, 600), value=st.integers(0, (1 << 32) - 1) | st.just((1 << 32) - 1))
@settings(max_examples=300, deadline=None, database=None)
def test_any_length_in_any_frame_may_be_any_number(at: int, value: int) -> None:
    """Four bytes anywhere in references and segments, as a writer seals them."""
    for what, plain in FRAMES.items():
        place = at % (len(plain) - 3)
        changed = plain[:place] + struct.pack(">I", value) + plain[place + 4 :]
        data = crypto.seal(KEY, changed, f"cellarer/1/{what}")
        try:
            if what == "references":
                References.unseal(KEY, data)
            else:
                list(open_segment(KEY, data))
        except DamagedData:
            continue


def frames() -> dict[str, bytes]:
    """The plain form of the references and of a segment of a point."""
    scene = found()
    commit = scene.backup({"t": noise(1, 9000), "s": b"s"})
    objects, key = scene.stores["a"].objects, scene.write_key.index
    segment = next(k for k in objects if k.startswith("index/"))
    return {
        "references": crypto.unseal(
            key, objects[commit.body["references"]], "cellarer/1/references"
        ),
        "index": crypto.unseal(key, objects[segment], "cellarer/1/index"),
    }


FRAMES = frames()


@pytest.mark.parametrize("length", [(1 << 32) - 1, 1 << 31, 5])
def test_a_frame_whose_header_is_longer_than_it_is(length: int) -> None:
    with pytest.raises(DamagedData):
        layout.unframe(struct.pack(">I", length) + b"{}", "a frame")


def test_json_nested_too_deep_is_refused(scene: Founded) -> None:
    deep = b'{"body":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b'},"signature":"","signed_by":""}'
    for key in ("snapshots/" + SESSION, "ledger/2026-03-01/120000000000-00000000"):
        put(scene, key, deep)
    assert "not readable" in str(refused(scene, "snapshots/" + SESSION))
    vault = scene.open()
    assert entries(vault) == []
    assert len(vault.unreadable) == 1


@pytest.mark.parametrize("depth", [100, 900, 990, 5000])
def test_a_signed_object_of_any_depth(scene: Founded, depth: int) -> None:
    value: object = 0
    for _ in range(depth):
        value = [value]
    try:
        key = commit_of(scene, {**inner_of(scene), "note": value})
    except RecursionError:
        return
    scene.open().commits()
    scene.stores["a"].delete(key)


def bomb(*, claims: bool) -> bytes:
    """A zstd frame of 2 GiB of zeros in some kilobytes, which claims its size or none."""
    size = 2 << 30
    frame = zstandard.ZstdCompressor(level=1).compressobj(size=size if claims else -1)
    block = bytes(1 << 20)
    parts = [frame.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, frame.flush()])


@pytest.fixture(scope="module")
def bombs() -> list[bytes]:
    """One that says how large it is, and one that does not."""
    return [bomb(claims=True), bomb(claims=False)]


def test_a_sealed_object_that_unpacks_to_gigabytes(bombs: list[bytes]) -> None:
    for packed in bombs:
        padded = struct.pack(">I", len(packed)) + packed
        nonce = bytes(12)
        data = nonce + AESGCM(KEY).encrypt(nonce, padded, b"cellarer/1/index")
        with moderate_memory(), pytest.raises(DamagedData, match="impossible size"):
            crypto.unseal(KEY, data, "cellarer/1/index")


def test_a_record_that_unpacks_to_gigabytes(bombs: list[bytes]) -> None:
    cipher = crypto.RecordCipher(bytes(16), SESSION, KEY)
    for packed in bombs:
        data = cipher.seal(bytes(16), crypto.ENCODING_ZSTD, packed, 0, 0)
        with moderate_memory(), pytest.raises(DamagedData, match="impossible size"):
            open_record(cipher, bytes(16), data)


def test_a_frame_that_holds_more_than_it_claims() -> None:
    packed = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 20)))
    assert zstandard.frame_content_size(bytes(packed)) == 1 << 20
    place = bytes(packed).index(struct.pack("<I", 1 << 20))
    packed[place : place + 4] = struct.pack("<I", 1000)
    with pytest.raises(DamagedData):
        crypto.decompress(bytes(packed), 1 << 20, "a frame")


@pytest.mark.parametrize("count", [(1 << 32) - 1, 1 << 31, 16_000_000, 3])
def test_a_record_that_claims_more_chunks_than_it_holds(count: int) -> None:
    cipher = crypto.RecordCipher(bytes(16), SESSION, KEY)
    data = cipher.seal(bytes(16), crypto.ENCODING_RAW, struct.pack(">II", count, 1) + b"x", 0, 0)
    with moderate_memory(), pytest.raises(DamagedData, match="chunk table"):
        open_record(cipher, bytes(16), data)


def test_a_record_of_millions_of_empty_chunks() -> None:
    cipher = crypto.RecordCipher(bytes(16), SESSION, KEY)
    count = (60 << 20) // 4
    plain = struct.pack(">I", count) + bytes(4 * count)
    packed = zstandard.ZstdCompressor().compress(plain)
    data = cipher.seal(bytes(16), crypto.ENCODING_ZSTD, packed, 0, 0)
    with moderate_memory():
        opened = open_record(cipher, bytes(16), data)
        assert bytes(opened.joined(0, count)) == b""


def test_lengths_that_add_up_beyond_64_bits_do_not_come_round(scene: Founded) -> None:
    cipher = crypto.RecordCipher(bytes(16), SESSION, KEY)
    lengths = np.full(1 << 12, (1 << 32) - 1, ">u4")
    plain = struct.pack(">I", len(lengths)) + lengths.tobytes() + b"content"
    data = cipher.seal(bytes(16), crypto.ENCODING_RAW, plain, 0, 0)
    with pytest.raises(DamagedData):
        open_record(cipher, bytes(16), data)


def test_a_stream_longer_than_its_entry_says_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may name the same record again and again, which would fill any disk."""
    scene = found()

    def short(given: Any) -> Iterator[bytes]:
        return contents_lines(Entry(e.path, e.kind, 10, e.sum) for e in given)

    monkeypatch.setattr(writer, "contents_lines", short)
    commit = scene.backup({"t": b"0123456789" * 100_000})
    blocks = SnapshotReader(scene.open(), commit).read("t")
    given: list[bytes] = []
    with pytest.raises(DamagedData, match="not what was backed up"):
        given.extend(blocks)
    assert sum(map(len, given)) <= 10


LINES = [
    {"path": 7}, {"path": "\ud800"}, {"size": -1}, {"size": "1"}, {"size": 1.5}, {"size": True},
    {"mode": -1}, {"mode": 1 << 40}, {"mode": "x"}, {"mtime": 5}, {"mtime": "2026-01-01T00:00:00"},
    {"kind": None}, {"kind": ["x"]}, {"blake3": None}, [], None, "text", 5,
]  # fmt: skip


@pytest.mark.parametrize("change", LINES)
def test_contents_of_any_kind(monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    scene = found()

    def changed(given: Any) -> Iterator[bytes]:
        for line in contents_lines(given):
            value = {**json.loads(line), **change} if isinstance(change, dict) else change
            yield json.dumps(value).encode() + b"\n"

    monkeypatch.setattr(writer, "contents_lines", changed)
    commit = scene.backup({"t": b"text"})
    with pytest.raises(DamagedData):
        restored(scene.open(), commit)
