"""The archive format, against what pg_dump of 15 and 18 writes and what pg_restore reads."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from cellarer.errors import DamagedData
from cellarer.postgres.archive import (
    ArchiveReader,
    TocEntry,
    data_offsets,
    data_paths,
    fill_offsets,
    parse_toc,
    rows,
    write_archive,
)
from cellarer.postgres.cluster import Cluster

NASTY = Path(__file__).with_name("nasty.sql")
HEADER_TIME = range(11, 51)  # when the dump was taken, behind 1 or 5 bytes of compression


def program(cluster: Cluster, name: str, *arguments: str, given: bytes = b"") -> bytes:
    command = [str(cluster.installation.program(name)), *arguments]
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout


def name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


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
        connection.execute(NASTY.read_text())
    return database


@pytest.fixture
def empty(cluster: Cluster, database: str) -> Iterator[str]:
    """A second database, to restore into."""
    name = f"{name_of(database)}_restored"
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        target = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(target))
        yield cluster.dsn(name)
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
            with connection.cursor().copy(statement) as copy:
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


def test_offsets_are_those_that_pg_dump_sets(cluster: Cluster, nasty: str, tmp_path: Path) -> None:
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
    other = f"{name_of(database)}_encoded"
    create = f"CREATE DATABASE {other} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(create)
        try:
            script = b"SET client_encoding = '" + encoding.encode() + b"'; "
            script += b'CREATE TABLE "' + stored + b'" ();'
            program(cluster, "psql", "-qd", cluster.dsn(other), given=script)
            reader, _blocks = take_apart(piped(cluster, cluster.dsn(other)))
        finally:
            connection.execute(f"DROP DATABASE {other} WITH (FORCE)")
    assert [entry.tag for entry in reader.toc.with_data()] == [name]
    path = data_paths("d", reader.toc)[reader.toc.with_data()[0].dump_id]
    assert path == f"d/data/public/{'%FF' if encoding == 'SQL_ASCII' else name}"


def test_compressed_archives_are_refused(cluster: Cluster, database: str) -> None:
    compressed = program(cluster, "pg_dump", "-Fc", "-Z1", f"--dbname={database}")
    with pytest.raises(DamagedData, match="compressed"):
        ArchiveReader(io.BytesIO(compressed))
