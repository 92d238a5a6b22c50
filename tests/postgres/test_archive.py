"""The archive format, against what pg_dump of 15 and 18 writes and what pg_restore reads."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql

from cellarer.errors import DamagedData
from cellarer.postgres.archive import (
    ArchiveReader,
    TocEntry,
    data_offsets,
    data_paths,
    decode_segment,
    encode_segment,
    fill_offsets,
    parse_toc,
    rows,
    table_path,
    write_archive,
)
from cellarer.postgres.cluster import Cluster

NASTY = Path(__file__).with_name("nasty.sql")
END_MARKER = b"\\.\n\n\n"
HEADER_TIME = range(11, 51)  # when the dump was taken, behind 1 or 5 bytes of compression


# ------------------------------------------------------------------------- with the real programs


def program(cluster: Cluster, name: str, *arguments: str, given: bytes = b"") -> bytes:
    path = cluster.installation.program(name)
    return subprocess.run([path, *arguments], input=given, stdout=subprocess.PIPE, check=True).stdout


def piped(cluster: Cluster, dsn: str, *options: str) -> bytes:
    return program(cluster, "pg_dump", "-Fc", "-Z0", *options, f"--dbname={dsn}")


def take_apart(archive: bytes) -> tuple[ArchiveReader, list[tuple[TocEntry, bytes]]]:
    reader = ArchiveReader(io.BytesIO(archive))
    return reader, [(entry, b"".join(content)) for entry, content in reader.blocks()]


def put_together(archive: bytes) -> bytes:
    reader, blocks = take_apart(archive)
    return b"".join(write_archive(reader.toc, ((entry, [data]) for entry, data in blocks)))


@pytest.fixture
def nasty(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(NASTY.read_text())  # type: ignore[arg-type]
    return database


@pytest.fixture
def empty(cluster: Cluster, database: str) -> Iterator[str]:
    """A second database, to restore into."""
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        target = sql.Identifier(f"{name}_restored")
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(target))
        yield cluster.dsn(f"{name}_restored")
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(target))


def options_of(cluster: Cluster) -> list[list[str]]:
    return [[], ["--statistics"]] if cluster.installation.major >= 18 else [[]]


def test_every_byte_comes_back(cluster: Cluster, nasty: str) -> None:
    for options in options_of(cluster):
        archive = piped(cluster, nasty, *options)
        again = put_together(archive)
        assert again == archive
        listing = program(cluster, "pg_restore", "--list", given=archive)
        assert program(cluster, "pg_restore", "--list", given=again) == listing


def test_table_of_contents_says_what_pg_restore_lists(cluster: Cluster, nasty: str) -> None:
    archive = piped(cluster, nasty)
    toc = ArchiveReader(io.BytesIO(archive)).toc
    assert parse_toc(toc.raw) == toc
    listing = program(cluster, "pg_restore", "--list", given=archive).decode()
    listed = {int(line.split(";")[0]) for line in listing.splitlines() if line[:1].isdigit()}
    settings = {"ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE"}  # shown only on request
    assert {e.dump_id for e in toc.entries if e.description not in settings} == listed
    assert f"dbname: {toc.database}" in listing
    assert f"Dumped from database version: {toc.server_version}" in listing
    assert f"Dumped by pg_dump version: {toc.pg_dump_version}" in listing
    by_tag = {entry.tag: entry for entry in toc.entries if entry.description == "TABLE"}
    orders = by_tag["orders"]
    assert (orders.namespace, orders.owner, orders.section) == ("public", "postgres", 2)
    assert orders.definition.startswith("CREATE TABLE public.orders")
    assert orders.drop_statement == "DROP TABLE public.orders;\n"
    data = next(e for e in toc.with_data() if e.tag == "orders")
    assert data.copy_statement.startswith("COPY public.orders (")
    assert orders.dump_id in data.dependencies


def test_rows_are_copy_text(cluster: Cluster, nasty: str) -> None:
    reader, blocks = take_apart(piped(cluster, nasty))
    seen = set()
    with psycopg.connect(nasty) as connection:
        for entry, data in blocks:
            if entry.holds_large_objects:
                continue
            statement = entry.copy_statement.replace("FROM stdin", "TO stdout").rstrip(";\n")
            with connection.cursor().copy(statement) as copy:  # type: ignore[arg-type]
                expected = b"".join(bytes(block) for block in copy)
            assert b"".join(rows([data])) == expected
            seen.add(entry.tag)
    assert seen >= {"every_type", "no_rows", "no_columns", "empty_texts", "lengths", "wide_rows"}
    assert len(seen) == len([e for e in reader.toc.entries if e.description == "TABLE DATA"])


def test_paths_tell_all_tables_apart(cluster: Cluster, nasty: str) -> None:
    reader, blocks = take_apart(piped(cluster, nasty))
    paths = list(data_paths("a/b", reader.toc).values())
    assert len(set(paths)) == len(paths) == len(blocks)
    assert {"a%2Fb/data/public/%2E%2E", "a%2Fb/data/public/%252E"} < set(paths)
    assert "a%2Fb/data/naïve%2Fschema.with%25dots/ALL" in paths
    assert "a%2Fb/large-objects/0" in paths


def test_offsets_are_those_that_pg_dump_sets(
    cluster: Cluster, nasty: str, tmp_path: Path
) -> None:
    reader, blocks = take_apart(piped(cluster, nasty))
    sizes = [(entry, len(data)) for entry, data in blocks]
    filled = fill_offsets(reader.toc, data_offsets(reader.toc, sizes))
    seekable = tmp_path / "seekable.dump"
    piped(cluster, nasty, f"--file={seekable}")
    written = seekable.read_bytes()[: len(filled)]
    different = [at for at in range(len(filled)) if filled[at] != written[at]]
    assert set(different) <= set(HEADER_TIME)


@pytest.mark.parametrize("way", ["two jobs from a file", "a pipe"])
def test_pg_restore_reads_it(
    cluster: Cluster, nasty: str, empty: str, tmp_path: Path, way: str
) -> None:
    archive = piped(cluster, nasty)
    reader, blocks = take_apart(archive)
    options = ["--exit-on-error", f"--dbname={empty}"]
    if way == "a pipe":
        program(cluster, "pg_restore", *options, given=put_together(archive))
    else:
        sizes = [(entry, len(data)) for entry, data in blocks]
        filled = fill_offsets(reader.toc, data_offsets(reader.toc, sizes))
        file = tmp_path / "with-offsets.dump"
        file.write_bytes(filled + put_together(archive)[len(filled) :])
        program(cluster, "pg_restore", *options, "--jobs=2", str(file))
    again, restored = take_apart(piped(cluster, empty))
    before, after = data_paths("d", reader.toc), data_paths("d", again.toc)
    assert {after[e.dump_id]: data for e, data in restored} == {
        before[e.dump_id]: data for e, data in blocks
    }


def test_some_blocks_are_an_archive_too(cluster: Cluster, nasty: str, empty: str) -> None:
    reader, blocks = take_apart(piped(cluster, nasty))
    names = ["lengths", "wide_rows"]
    chosen = [(entry, [data]) for entry, data in blocks if entry.tag in names]
    part = b"".join(write_archive(reader.toc, chosen))
    tables = [f"--table={name}" for name in names]
    program(cluster, "pg_restore", "--exit-on-error", *tables, f"--dbname={empty}", given=part)
    with psycopg.connect(empty) as connection:
        found = connection.execute("SELECT sum(length(word)) FROM lengths").fetchone()
    lengths = [1, 2, 10, 256, 2560, 2570, 65536, 657930, 655360]
    assert found == (sum(lengths) - len(lengths),)


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
def test_names_are_read_in_the_encoding_of_the_database(
    cluster: Cluster, database: str, encoding: str
) -> None:
    name = {"LATIN1": "é", "EUC_JP": "表", "SQL_ASCII": "\udcff"}[encoding]
    stored = {"LATIN1": b"\xe9", "EUC_JP": "表".encode("euc_jp"), "SQL_ASCII": b"\xff"}[encoding]
    other = psycopg.conninfo.conninfo_to_dict(database)["dbname"] + "_encoded"
    create = f"CREATE DATABASE {other} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(create)  # type: ignore[arg-type]
        try:
            script = b"SET client_encoding = '" + encoding.encode() + b"'; "
            script += b'CREATE TABLE "' + stored + b'" ();'
            program(cluster, "psql", "-qd", cluster.dsn(other), given=script)
            reader, _blocks = take_apart(piped(cluster, cluster.dsn(other)))
        finally:
            connection.execute(f"DROP DATABASE {other} WITH (FORCE)")  # type: ignore[arg-type]
    assert [entry.tag for entry in reader.toc.with_data()] == [name]
    path = data_paths("d", reader.toc)[reader.toc.with_data()[0].dump_id]
    assert path == f"d/data/public/{'%FF' if encoding == 'SQL_ASCII' else name}"


def test_compressed_archives_are_refused(cluster: Cluster, database: str) -> None:
    compressed = program(cluster, "pg_dump", "-Fc", "-Z1", f"--dbname={database}")
    with pytest.raises(DamagedData, match="compressed"):
        ArchiveReader(io.BytesIO(compressed))


# ------------------------------------------- against a second reading, slow and to the letter


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
        content=b"".join(
            INTEGER.pack(*oid) + framed(frames) + bytes(5) for oid, frames in found
        ),
    )
)
archives = st.lists(st.one_of(tables, large_objects), max_size=5)
cuts = st.lists(st.integers(1, 40), max_size=200)


@given(archives, cuts)
@example([Block(False, framed([b"x" * ((1 << 24) - 1) + b"\n", END_MARKER]))], [])
def test_blocks_are_found_wherever_reads_are_cut(blocks: list[Block], sizes: list[int]) -> None:
    archive = archive_of(blocks)
    reader = ArchiveReader(Dripping(archive, list(sizes)))  # type: ignore[arg-type]
    found = [(e.holds_large_objects, b"".join(content)) for e, content in reader.blocks()]
    assert found == [(block.large_objects, block.content) for block in blocks]


@given(archives, cuts, st.data())
def test_unread_blocks_are_skipped(
    blocks: list[Block], sizes: list[int], data: st.DataObject
) -> None:
    reader = ArchiveReader(Dripping(archive_of(blocks), list(sizes)))  # type: ignore[arg-type]
    for (entry, content), block in zip(reader.blocks(), blocks, strict=True):
        assert entry.holds_large_objects == block.large_objects
        for _count in range(data.draw(st.integers(0, 2))):
            next(content, b"")


@given(archives.filter(bool), st.data())
def test_an_archive_that_breaks_off_is_damaged(blocks: list[Block], data: st.DataObject) -> None:
    archive = archive_of(blocks)
    kept = data.draw(st.integers(0, len(archive) - 1))
    with pytest.raises(DamagedData):
        take_apart(archive[:kept])


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


@pytest.mark.parametrize("order", [[2, 1, 3], [1, 1]])
def test_blocks_of_unknown_entries_are_refused(order: list[int]) -> None:
    blocks = [Block(False, framed([END_MARKER])), Block(True, b"")]
    archive = toc_of(blocks)
    for number in order:
        kind, content = (3, b"") if number == 2 else (1, blocks[0].content)
        archive += bytes([kind]) + INTEGER.pack(0, number) + content + bytes(5)
    with pytest.raises(DamagedData, match="damaged"):
        take_apart(archive)


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
    assert encode_segment("My table, ünïcödé 表.v2 – 100") == "My table, ünïcödé 表.v2 – 100"
    assert encode_segment("a/b%c\n\x7f") == "a%2Fb%25c%0A%7F"
    assert encode_segment("..") == "%2E%2E"
