"""Checks a restored server against the point that it came from. Nothing here restores or repairs.

What is restored is dumped again, and each table's stream compared by SHA-256 with the one that the
point says it has, so that the comparison does not rest on what the restore believed it did. Where
they differ, the point's own stream is read to say which rows.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import sql

from cellarer.domain.assertion import Assertion
from cellarer.domain.snapshot import Check
from cellarer.errors import TargetFailed
from cellarer.ports import PointReader, Progress
from cellarer.postgres.archive import table_path
from cellarer.postgres.binaries import client_for
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.contents import DatabaseContents, read_contents
from cellarer.postgres.restore import run_pg_restore
from cellarer.postgres.toc import TableOfContents, TocEntry
from cellarer.targets.assertions import check_assertions
from cellarer.targets.content import large_objects_differ, rows_differ
from cellarer.targets.counts import CountedTable, counted_at_source, counted_now
from cellarer.targets.database import connect
from cellarer.targets.foreign_keys import check_foreign_keys
from cellarer.targets.redump import Dumper, Redump
from cellarer.targets.schema_check import check_schema, check_sequences
from cellarer.targets.scratch import scratch_directory

_NAMED = 5
_SUM_CHARACTERS = 16


def checks(
    cluster: Cluster,
    reader: PointReader,
    progress: Progress,
    assertions: Sequence[Assertion] = (),
) -> list[Check]:
    """Everything there is to check on a cluster that the point was restored into.

    The databases have the names that they have in the point; the connection is a superuser's.
    Names are stable: `tables DB`, `rows DB.SCHEMA.TABLE`, `content DB.SCHEMA.TABLE`,
    `large objects DB`, `schema DB`, `sequences DB`, `foreign key DB.SCHEMA.TABLE.CONSTRAINT` and
    `assertion NAME`. Raises `TargetFailed` where the server fails in the middle.
    """
    contents = read_contents(reader)
    client = client_for(max(cluster.installation.major, contents.pg_dump_major))
    exact = (
        cluster.installation.major == contents.server_major
        and client.major == contents.pg_dump_major
    )
    found: list[Check] = []
    try:
        for database in contents.databases:
            dumper = Dumper(client, cluster.dsn(database.name), database.name)
            found += _Examination(cluster, reader, progress, database, dumper, exact).all()
        names = [database.name for database in contents.databases]
        found += check_assertions(assertions, names, cluster.dsn)
    except psycopg.Error as error:
        raise TargetFailed(
            "the restored server failed while it was checked", detail=str(error).strip()
        ) from error
    return found


@dataclass(frozen=True)
class _Examination:
    """The checks of one database. `exact` says whether schemas may be compared word by word."""

    cluster: Cluster
    reader: PointReader
    progress: Progress
    database: DatabaseContents
    dumper: Dumper
    exact: bool

    def all(self) -> Iterator[Check]:
        """In the order in which a person would ask."""
        counted = counted_at_source(self.reader, self._name)
        yield from self._tables_and_rows(counted)
        # All streams of a dump have sums of the same kind.
        kind = self.reader.entries()[0].sum.partition(":")[0]
        redump = self.dumper.redump(kind, self.reader.hasher, self.progress.advance)
        yield from self._contents(redump, {(one.schema, one.name): one for one in counted})
        yield from self._large_objects(redump)
        yield check_sequences(self._name, self.database.toc, redump.toc)
        yield check_schema(
            self._name,
            self.database.toc,
            redump.toc,
            exact=self.exact,
            reprinted=self._reprinted,
        )
        with connect(self.cluster.dsn(self._name)) as connection:
            yield from check_foreign_keys(connection, self._name)

    @property
    def _name(self) -> str:
        return self.database.name

    def _tables_and_rows(self, counted: Sequence[CountedTable]) -> Iterator[Check]:
        present, rows = counted_now(self.cluster.dsn(self._name))
        expected = {(one.schema, one.name) for one in counted}
        # Partitioned tables have no rows of their own; whether they are listed is no matter.
        extra = {(one.schema, one.name) for one in present if not one.partitioned} - expected
        problems = [f"missing {schema}.{name}" for schema, name in sorted(expected - set(rows))]
        problems += [f"unexpected {schema}.{name}" for schema, name in sorted(extra)]
        what = f"{len(expected)} tables"
        shown = "; ".join(problems[:_NAMED]) + ("; ..." if len(problems) > _NAMED else "")
        yield Check(f"tables {self._name}", not problems, what, shown or what)
        for one in counted:
            count = rows.get((one.schema, one.name))
            shown = "no such table" if count is None else str(count)
            passed = count == one.rows
            yield Check(f"rows {self._name}.{one}", passed, str(one.rows), shown)

    def _contents(
        self, redump: Redump, counted: dict[tuple[str, str], CountedTable]
    ) -> Iterator[Check]:
        entries = {(entry.namespace, entry.tag): entry for entry in _with_rows(redump.toc)}
        for entry in _with_rows(self.database.toc):
            where = (entry.namespace, entry.tag)
            stream = self.database.streams[entry.dump_id]
            restored = redump.sums.get(table_path(self._name, *where))
            name = f"content {self._name}.{entry.namespace}.{entry.tag}"
            expected = _sum(stream.sum)
            if restored is None:
                yield Check(name, False, expected, "no such table")
            elif restored == stream.sum:
                yield Check(name, True, expected, _sum(restored))
            elif (columns := entries[where].copy_statement) != entry.copy_statement:
                yield Check(name, False, expected, f"other columns: {columns.strip()}")
            else:
                differ = rows_differ(
                    entry,
                    counted[where].primary_key if where in counted else (),
                    partial(self.reader.read, stream.path),
                    partial(self.dumper.table, *where),
                )
                found = differ or "the same rows in another order"
                yield Check(name, not differ, expected, found)

    def _large_objects(self, redump: Redump) -> Iterator[Check]:
        paths = [
            self.database.streams[entry.dump_id].path
            for entry in self.database.toc.with_data()
            if entry.holds_large_objects
        ]
        wanted = {stream.path: stream.sum for stream in self.database.streams.values()}
        expected = {path: wanted[path] for path in paths}
        tables = {table_path(self._name, e.namespace, e.tag) for e in _with_rows(redump.toc)}
        found = {path: total for path, total in redump.sums.items() if path not in tables}
        if not expected and not found:
            return
        name, what = f"large objects {self._name}", _sum(*expected.values())
        if expected == found:
            yield Check(name, True, what, what)
            return

        def original() -> Iterator[bytes]:
            for path in paths:
                yield from self.reader.read(path)

        differ = large_objects_differ(original, self.dumper.large_objects)
        # Dumps of different versions group them differently.
        yield Check(name, not differ, what, differ or "the same objects in other groups")

    def _reprinted(self) -> TableOfContents:
        """The schema of the archive as this server prints it, from an empty database."""
        program = self.dumper.client.program("pg_restore")
        with (
            _scratch_database(self.cluster) as dsn,
            scratch_directory() as directory,
        ):
            file = directory / "toc.dump"
            file.write_bytes(self.database.toc.raw)
            run_pg_restore(program, dsn, ["--schema-only", "--no-tablespaces", file])
            return Dumper(self.dumper.client, dsn, self._name).schema()


@contextmanager
def _scratch_database(cluster: Cluster) -> Iterator[str]:
    name = f"cellarer_{secrets.token_hex(6)}"
    with connect(cluster.dsn("template1")) as connection:
        identifier = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(identifier))
        try:
            yield cluster.dsn(name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def _with_rows(toc: TableOfContents) -> Iterable[TocEntry]:
    return (entry for entry in toc.with_data() if not entry.holds_large_objects)


def _sum(*sums: str) -> str:
    kind = sums[0].partition(":")[0] if sums else ""
    parts = (total.partition(":")[2][:_SUM_CHARACTERS] for total in sums)
    return " ".join([kind, *(f"{part}..." for part in parts)]) if sums else "none"
