"""The index, records, packs and frames, each against a model or against nonsense."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.vault import crypto
from cellarer.vault.chunker import Cuts
from cellarer.vault.format import frame, padded_length, unframe
from cellarer.vault.index import (
    ABSENT,
    RECORD_ROW,
    ChunkIds,
    ChunkIndex,
    RecordPlaces,
    RecordTable,
    enter_pack,
    open_segment,
    seal_segment,
)
from cellarer.vault.manifest import (
    RUN_FIELDS,
    References,
    RunBuilder,
    StreamReferences,
    contents_lines,
    parse_contents,
)
from cellarer.vault.pack import TableOfContents, build_pack, read_toc
from cellarer.vault.record import RecordSealer, SealedRecord, open_record
from stand_ins import noise

KEY = bytes(range(32))
SESSION = "20260301T120000Z-00000001"
VAULT = bytes(16)
# Few first and second halves, so that ids share one of them.
IDS = st.builds(
    lambda high, low: struct.pack(">QQ", high, low),
    st.integers(0, 40),
    st.sampled_from([0, 1, 2**63, 2**64 - 1]),
)


@given(st.lists(st.lists(IDS, max_size=12), max_size=25), st.lists(IDS, min_size=1))
@settings(deadline=None, database=None)
def test_the_index_is_a_dict(batches: list[list[bytes]], asked: list[bytes]) -> None:
    """Where two ids share the first half, the index may know only one; it never mixes them up."""
    index, model = ChunkIndex(), dict[bytes, set[tuple[int, int]]]()
    for number, batch in enumerate(batches):
        ids = ChunkIds(b"".join(batch))
        index.add(ids, np.full(len(batch), number), np.arange(len(batch)))
        for position, chunk_id in enumerate(batch):
            model.setdefault(chunk_id, set()).add((number, position))
    assert len(index) == sum(map(len, batches))
    records, positions = index.find(ChunkIds(b"".join(asked)))
    halves = [chunk_id[:8] for chunk_id in model]
    for chunk_id, record, position in zip(asked, records, positions, strict=True):
        if record == ABSENT:
            assert chunk_id not in model or halves.count(chunk_id[:8]) > 1
        else:
            assert (record, position) in model[chunk_id]


@given(st.lists(st.integers(0, 3000), max_size=400), st.integers(1, 40))
@settings(deadline=None, database=None)
def test_the_index_finds_all_of_many(numbers: list[int], batch_length: int) -> None:
    ids = [hashlib.md5(b"%d" % number).digest() for number in numbers]
    index, model = ChunkIndex(), dict[bytes, set[tuple[int, int]]]()
    for start in range(0, len(ids), batch_length):
        batch = ids[start : start + batch_length]
        entered = ChunkIds(b"".join(batch))
        index.add(entered, np.full(len(batch), start), np.arange(len(batch)))
        for position, chunk_id in enumerate(batch):
            model.setdefault(chunk_id, set()).add((start, position))
    unknown = [hashlib.md5(b"no %d" % number).digest() for number in numbers]
    records, positions = index.find(ChunkIds(b"".join(ids + unknown)))
    for n, chunk_id in enumerate(ids):
        assert (records[n], positions[n]) in model[chunk_id]
    assert (records[len(ids) :] == ABSENT).all()


@given(st.lists(IDS, max_size=30), st.data())
@settings(deadline=None, database=None)
def test_some_of_a_batch_may_be_entered(batch: list[bytes], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
    index, ids = ChunkIndex(), ChunkIds(b"".join(batch))
    index.add(ids, np.zeros(len(batch)), np.arange(len(batch)), np.array(chosen, bool))
    records, positions = index.find(ids)
    entered = [chunk_id for chunk_id, is_chosen in zip(batch, chosen, strict=True) if is_chosen]
    for n, chunk_id in enumerate(batch):
        if records[n] == ABSENT:
            assert chunk_id not in entered or [e[:8] for e in entered].count(chunk_id[:8]) > 1
        else:
            assert batch[positions[n]] == chunk_id
            assert chosen[positions[n]]


@given(st.lists(IDS, max_size=30))
@settings(deadline=None, database=None)
def test_repeats_in_a_batch_name_the_first(batch: list[bytes]) -> None:
    first = ChunkIds(b"".join(batch)).first_occurrences()
    assert first.tolist() == [batch.index(chunk_id) for chunk_id in batch]


def sealer() -> tuple[RecordSealer, crypto.RecordCipher]:
    cipher = crypto.RecordCipher(VAULT, SESSION, KEY)
    return RecordSealer(cipher, SESSION, KEY), cipher


def sealed(sealer: RecordSealer, chunks: list[bytes]) -> SealedRecord:
    ids = b"".join(crypto.keyed_id(KEY, chunk) for chunk in chunks)
    return sealer.seal(ids, np.array([len(chunk) for chunk in chunks]), chunks)


CHUNKS = st.lists(
    st.binary(max_size=200) | st.builds(noise, st.integers(0, 5), st.integers(0, 200_000)),
    min_size=1,
    max_size=5,
)


@given(CHUNKS)
@settings(max_examples=60, deadline=None, database=None)
def test_a_record_opens_to_its_chunks(chunks: list[bytes]) -> None:
    maker, cipher = sealer()
    record = sealed(maker, chunks)
    assert [bytes(chunk) for chunk in open_record(cipher, record.id, record.sealed)] == chunks
    assert record.chunk_lengths.tolist() == list(map(len, chunks))
    other = crypto.RecordCipher(VAULT, SESSION.replace("1200", "1201"), KEY)
    with pytest.raises(DamagedData):
        open_record(other, record.id, record.sealed)
    with pytest.raises(DamagedData):
        open_record(cipher, bytes(16), record.sealed)


def test_no_two_records_share_a_nonce() -> None:
    maker, _ = sealer()
    headers = [sealed(maker, [b"same"]).sealed[: crypto.RECORD_HEADER.size] for _ in range(100)]
    assert len(set(headers)) == len(headers)


@given(st.lists(CHUNKS, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, database=None)
def test_a_pack_and_its_segment_tell_where_everything_is(contents: list[list[bytes]]) -> None:
    maker, cipher = sealer()
    records = [sealed(maker, chunks) for chunks in contents]
    pack = build_pack(records, KEY)
    assert hashlib.sha256(pack.data).hexdigest() == pack.sha256
    assert padded_length(len(pack.data)) == len(pack.data)
    toc = read_toc(pack.data, KEY)
    assert same(toc, pack.toc)
    assert same(TableOfContents.from_bytes(toc.to_bytes() + bytes(9)), toc)
    ((key, in_segment),) = open_segment(KEY, seal_segment(KEY, [(PACK, toc)]))
    assert key == PACK
    assert same(in_segment, toc)
    index, table = ChunkIndex(), RecordTable()
    enter_pack(index, table, key, toc)
    for record, chunks in zip(records, contents, strict=True):
        numbers, positions = index.find(ChunkIds(record.chunk_ids))
        for number, position, chunk in zip(numbers, positions, chunks, strict=True):
            place = table[int(number)]
            part = pack.data[place.offset : place.offset + place.length]
            assert list(open_record(cipher, place.id, part))[position] == chunk


PACK = f"packs/ab/{'ab' * 32}"


def same(one: TableOfContents, other: TableOfContents) -> bool:
    return (
        one.sessions == other.sessions
        and one.chunk_ids == other.chunk_ids
        and bool((one.records == other.records).all())
        and bool((one.chunk_lengths == other.chunk_lengths).all())
    )


@given(st.integers(0, 1 << 40))
def test_padding_hides_the_length_and_costs_little(length: int) -> None:
    padded = padded_length(length)
    assert length <= padded <= length * 1.12
    assert padded_length(padded) == padded
    assert padded <= padded_length(length + 1)


def test_padding_leaves_few_lengths() -> None:
    assert len({padded_length(length) for length in range(1 << 16)}) < 400


def test_references_of_very_many_sessions() -> None:
    """A vault that is backed up every five minutes has 65 536 sessions in 228 days."""
    count = 70_000
    rows = np.array([(bytes(16), n % 9, n, n, n) for n in range(count)], RECORD_ROW)
    # Names that are not used, and in no order, must not matter.
    packs = [f"packs/ab/{'ab' * 31}{n:02x}" for n in reversed(range(12))]
    places = RecordPlaces(
        rows, packs, [f"20260301T120000Z-{n:08x}" for n in reversed(range(count))]
    )
    runs = np.array([(n, 1, 2) for n in range(5)], RUN_FIELDS)
    streams = [
        StreamReferences(bytes(range(16)), Cuts(12), runs),
        StreamReferences(bytes(16), Cuts(14, 7 << 30), runs[:0], 8 << 30),
    ]
    references = References.unseal(KEY, References(places, streams).seal(KEY))
    assert list(references.records) == list(places)
    for found, stream in zip(references.streams, streams, strict=True):
        assert (found.name_id, found.cuts, found.length) == (
            stream.name_id,
            stream.cuts,
            stream.length,
        )
        assert (found.runs == stream.runs).all()


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=20)))
def test_runs_name_the_chunks_in_their_order(batches: list[list[tuple[int, int]]]) -> None:
    builder = RunBuilder()
    for batch in batches:
        records, positions = np.array(batch, np.int64).reshape(-1, 2).T
        builder.extend(records, positions)
    rows = builder.runs()
    named = [(int(r["record"]), int(r["first"]) + n) for r in rows for n in range(int(r["count"]))]
    assert named == [chunk for batch in batches for chunk in batch]
    assert len(rows) <= len(named)


def test_neighbours_are_one_run_across_batches() -> None:
    builder = RunBuilder()
    for start in (0, 10, 20):
        builder.extend(np.full(10, 7), np.arange(start, start + 10))
    assert builder.runs().tolist() == [(7, 0, 30)]


ENTRIES = st.builds(
    Entry,
    st.text(st.characters(codec="utf-8")),
    st.text(st.characters(codec="utf-8")),
    st.integers(0),
    st.builds(
        "{}:{}".format,
        st.sampled_from(["blake3", "sha256"]),
        st.text("0123456789abcdef", min_size=64, max_size=64),
    ),
    st.none() | st.integers(0, 0o7777),
)


@given(st.lists(ENTRIES, max_size=6))
def test_contents_are_read_as_written(entries: list[Entry]) -> None:
    assert parse_contents(b"".join(contents_lines(entries))) == entries


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["records", "chunks", "sessions", "packs", "streams"]), inner
        )
    ),
    max_leaves=8,
)
FRAMED = st.builds(
    frame,
    st.dictionaries(
        st.sampled_from(["records", "chunks", "sessions", "packs", "streams"]), JSON
    ).filter(bool),
    st.binary(max_size=120),
)
NONSENSE = st.binary(max_size=80) | FRAMED


@given(NONSENSE)
@settings(max_examples=200, deadline=None, database=None)
def test_nonsense_is_damage_and_nothing_else(data: bytes) -> None:
    _, cipher = sealer()
    for reads in (
        lambda: unframe(data, "nonsense"),
        lambda: TableOfContents.from_bytes(data),
        lambda: read_toc(data, KEY),
        lambda: parse_contents(data),
        lambda: crypto.unseal(KEY, data, "nonsense"),
        lambda: crypto.read_signed("nonsense", data),
        lambda: open_record(cipher, bytes(16), data),
    ):
        try:
            reads()
        except DamagedData:
            continue


@given(NONSENSE)
@settings(max_examples=200, deadline=None, database=None)
def test_sealed_nonsense_is_damage_and_nothing_else(data: bytes) -> None:
    _, cipher = sealer()
    record = cipher.seal(bytes(16), crypto.ENCODING_ZSTD, data, 0, 0)
    raw = cipher.seal(bytes(16), crypto.ENCODING_RAW, data, 0, 1)
    for reads in (
        lambda: list(open_segment(KEY, crypto.seal(KEY, data, "cellarer/1/index"))),
        lambda: References.unseal(KEY, crypto.seal(KEY, data, "cellarer/1/references")),
        lambda: open_record(cipher, bytes(16), record),
        lambda: open_record(cipher, bytes(16), raw),
    ):
        try:
            reads()
        except DamagedData:
            continue


def test_a_deep_nest_of_brackets_is_damage() -> None:
    with pytest.raises(DamagedData):
        crypto.read_signed("nest", b'{"body":' + b"[" * 200_000)
