"""Reads a PostgreSQL server with `pg_dump`: one moment of each database, one stream per table.

    roles.sql, server.json                         the server
    DATABASE/toc, data/..., large-objects/...      the archive of pg_dump, taken apart
    DATABASE/tables.json                           how many rows each table has, counted apart

Before anything is read, the tables of every database are locked against rewriting, a snapshot of
each is exported, and one `pg_dump` per database has taken the same locks. Rows are counted
meanwhile in the transaction that holds the snapshot: it has its locks already, so a migration that
waits for the end of the backup cannot hold up what it waits for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime

import psycopg

from cellarer.domain.finding import Finding
from cellarer.errors import DamagedData, SourceFailed
from cellarer.ports import Capture, Stream
from cellarer.postgres import catalogue, standstill
from cellarer.postgres.archive import (
    ArchiveReader,
    TableOfContents,
    data_paths,
    tables_path,
    toc_path,
)
from cellarer.postgres.catalogue import Connection, Table, quiet_settings
from cellarer.postgres.connection import connect, pinned
from cellarer.postgres.conninfo import described, for_database, parameters
from cellarer.postgres.dump import PgDump, dump_roles
from cellarer.postgres.server import ALL_DATABASES, Server, look_at
from cellarer.postgres.snapshot import HeldSnapshot, failures, hold_snapshot, objections
from cellarer.sources.examined import examined, source_finding

_MAINTENANCE_DATABASE = "postgres"
_CANCEL_SECONDS = 5.0


class PostgresDumpSource:
    """One server, and one or several of its databases.

    `databases` names them; none means the one of `dsn`, `"*"` every one that the user may connect
    to, templates aside. Each takes two connections while the server is read.
    """

    kind = "postgres_dump"

    def __init__(
        self,
        name: str,
        dsn: str,
        databases: Sequence[str] = (),
        *,
        lock_timeout_seconds: float = 60.0,
    ) -> None:
        self.name = name
        self._dsn = dsn
        self._databases = tuple(dict.fromkeys(databases))
        self._lock_timeout_seconds = lock_timeout_seconds

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """One moment of each database; see `cellarer.ports.Source`.

        Raises `SourceFailed`; `ToolMissing` for a server newer than every `pg_dump` here;
        `UsageError` for a malformed dsn. Whatever happens, no process and no connection stays.
        """
        with ExitStack() as stack:
            reading = self._begin(stack)
            yield Capture(_each_whole(reading.streams()), reading.expected_bytes)
            if not reading.complete:
                raise SourceFailed(f"source {self.name} was left before its last stream")

    def examine(self) -> list[Finding]:
        """Whether the server answers, which programs read it, and what they could not read."""
        return examined(self.name, self._examination())

    def _begin(self, stack: ExitStack) -> _Reading:
        """Hold a snapshot of every database and start to dump; `stack` ends it all."""
        dsn, server = self._look()
        return standstill.begun(
            lambda attempt: self._attempt(attempt, dsn, server), stack, self._lock_timeout_seconds
        )

    def _attempt(self, stack: ExitStack, dsn: str, server: Server) -> _Reading:
        """The same, unless a migration is in the way: then `LockNotFree`."""
        connections = [
            stack.enter_context(closing(_connected(for_database(dsn, name))))
            for name in server.databases
        ]
        held = [hold_snapshot(each, self._lock_timeout_seconds) for each in connections]
        reading = _Reading(server, dsn, held, self._lock_timeout_seconds)
        stack.callback(reading.end)
        reading.start()
        return reading

    def _look(self) -> tuple[str, Server]:
        """The server, and a dsn that leads to no other one."""
        with closing(_connected(self._entrance())) as connection:
            dsn = pinned(self._entrance(), connection)
            with failures(f"cannot read the catalogue of {described(dsn)}"):
                return dsn, look_at(connection, self._databases)

    def _entrance(self) -> str:
        """The dsn of the first connection."""
        if self._databases and ALL_DATABASES not in self._databases:
            return for_database(self._dsn, self._databases[0])
        if self._databases and "dbname" not in parameters(self._dsn):
            return for_database(self._dsn, _MAINTENANCE_DATABASE)
        return self._dsn

    def _examination(self) -> Iterator[Finding]:
        dsn, server = self._look()
        programs = f"read with pg_dump {server.installation.version}"
        message = f"PostgreSQL {server.version} at {described(dsn)}, {programs}"
        yield source_finding(self.name, "server", "info", message)
        if server.standby:
            yield source_finding(
                self.name,
                "standby",
                "info",
                "the server is a standby, which may cancel a long reading",
                "Set hot_standby_feedback = on there if a backup ends with a recovery conflict.",
            )
        if not server.role_passwords:
            yield source_finding(
                self.name,
                "role-passwords",
                "warning",
                "a backup holds the roles without their passwords",
                "GRANT pg_read_all_data TO the user, or keep the passwords elsewhere.",
            )
        for name in server.skipped:
            yield source_finding(
                self.name,
                "database-skipped",
                "warning",
                f"the user may not connect to database {name}",
                f'If it belongs in the backup: GRANT CONNECT ON DATABASE "{name}" TO the user.',
            )
        for name in server.leftovers:
            yield source_finding(
                self.name,
                "database-left",
                "info",
                f"database {name} is of a restore that was killed or is at work: it is left out",
                "The next restore into this server drops what a killed one left.",
            )
        for name in server.databases:
            yield from self._examined_database(for_database(dsn, name))

    def _examined_database(self, dsn: str) -> Iterator[Finding]:
        with closing(_connected(dsn)) as connection:
            name = connection.info.dbname
            with (
                failures(f"cannot read the catalogue of database {name}"),
                connection.transaction(),
            ):
                quiet_settings(connection)
                tables = catalogue.list_tables(connection)
                refusals = list(objections(connection, tables))
                hidden = catalogue.hidden_subscriptions(connection)
        for refusal in refusals:
            yield source_finding(self.name, "unreadable", "error", str(refusal), refusal.hint)
        if hidden:
            yield source_finding(
                self.name,
                "subscriptions",
                "warning",
                f"a backup of database {name} lacks its subscriptions: {', '.join(hidden)}",
                "Only a superuser can dump them.",
            )
        if not refusals:
            count = sum(not table.partitioned for table in tables)
            yield source_finding(
                self.name, "database", "info", f"database {name}: {count} tables, readable"
            )


class _Reading:
    """One capture of the source, from held snapshots to the last stream."""

    def __init__(
        self, server: Server, dsn: str, held: Sequence[HeldSnapshot], lock_timeout_seconds: float
    ) -> None:
        self.complete = False
        self.expected_bytes = 0
        """About how many all streams have; known once it has started."""
        self._server = server
        self._dsn = dsn
        self._held = held
        self._lock_timeout_seconds = lock_timeout_seconds
        self._dumps: dict[str, PgDump] = {}
        self._sizes: dict[str, dict[tuple[str, str], int]] = {}
        self._counter = ThreadPoolExecutor(1, "count-rows")
        self._counting: tuple[Future[list[int]], Connection] | None = None

    def start(self) -> None:
        """Let every `pg_dump` take its locks now, and not hours later behind a migration.

        Raises `LockNotFree` where one came between them and the locks of the snapshots.
        """
        for one in self._held:
            self._dumps[one.database] = PgDump(
                self._server.installation,
                for_database(self._dsn, one.database),
                one.id,
                self._lock_timeout_seconds,
            )
        standstill.await_contents([(one, self._dumps[one.database]) for one in self._held])
        for one in self._held:
            with failures(f"cannot read the catalogue of database {one.database}"):
                sizes = catalogue.dump_sizes(one.connection, one.tables)
                self.expected_bytes += catalogue.large_objects_size(one.connection)
            self._sizes[one.database] = sizes
            self.expected_bytes += sum(sizes.values())

    def end(self) -> None:
        """Stop whatever still runs."""
        self._counter.shutdown(wait=False, cancel_futures=True)
        if self._counting is not None and not self._counting[0].done():
            with suppress(psycopg.Error):
                self._counting[1].cancel_safe(timeout=_CANCEL_SECONDS)
        self._counter.shutdown()
        for dump in self._dumps.values():
            dump.kill()

    def streams(self) -> Iterator[Stream]:
        """Every stream of the capture, in the order of the module's documentation."""
        server = self._server
        roles = dump_roles(
            server.installation, self._dsn, server.databases[0], passwords=server.role_passwords
        )
        yield Stream.whole("roles.sql", "sql", roles)
        yield Stream.whole("server.json", "json", self._server_json())
        for one in self._held:
            yield from self._database(one)
        self.complete = True

    def _server_json(self) -> bytes:
        server, databases = self._server, []
        for one in self._held:
            with failures(f"cannot read the catalogue of database {one.database}"):
                databases.append(catalogue.database_facts(one.connection))
        return _json(
            {
                "server_version": server.version,
                "server_version_num": server.version_number,
                "pg_dump_version": server.installation.version,
                "captured_at": _utc(min(one.captured_at for one in self._held)),
                "role_passwords": server.role_passwords,
                "settings": dict(server.settings),
                "databases": databases,
            }
        )

    def _database(self, held: HeldSnapshot) -> Iterator[Stream]:
        dump = self._dumps[held.database]
        sizes = self._sizes[held.database]
        tables = [table for table in held.tables if not table.partitioned]
        counting = self._counter.submit(catalogue.count_rows, held.connection, tables)
        self._counting = counting, held.connection
        with _intelligible(dump):
            reader = ArchiveReader(dump.output)
            _compare_tables(reader.toc, held)
            paths = data_paths(held.database, reader.toc)
            yield Stream.whole(toc_path(held.database), "archive-toc", reader.toc.raw)
            for entry, content in reader.blocks():
                path, blocks = paths[entry.dump_id], _explained(content, dump)
                if entry.holds_large_objects:
                    yield Stream(path, "large-objects", blocks)
                    continue
                # New rows, and new versions of old ones, go to the end of a table.
                size_bytes = sizes.get((entry.namespace, entry.tag))
                yield Stream(path, "table", blocks, size_bytes, grows_at_end=True)
            warnings = dump.finish()
        with failures(f"cannot count the rows of database {held.database}"):
            counts = counting.result()
        yield Stream.whole(
            tables_path(held.database), "json", _tables_json(held, tables, counts, warnings)
        )


def _connected(dsn: str) -> Connection:
    database = parameters(dsn).get("dbname", "")
    with failures(f"cannot connect to database {database} at {described(dsn)}".replace("  ", " ")):
        return connect(dsn)


def _compare_tables(toc: TableOfContents, held: HeldSnapshot) -> None:
    """The archive must hold every table that the catalogue knew in the same snapshot."""
    expected = {(table.schema, table.name) for table in held.tables if not table.partitioned}
    found = {
        (entry.namespace, entry.tag) for entry in toc.with_data() if not entry.holds_large_objects
    }
    if different := sorted(expected ^ found):
        names = ", ".join(".".join(name) for name in different[:10])
        raise SourceFailed(
            f"pg_dump and the catalogue of database {held.database} disagree on its tables",
            detail=f"only one of them has {names}",
            hint="Please report this, with the extensions that the database has.",
        )


@contextmanager
def _intelligible(dump: PgDump) -> Iterator[None]:
    """Where the archive breaks off, say why `pg_dump` ended rather than at which byte."""
    try:
        yield
    except DamagedData as error:
        if not dump.output.read(1):
            dump.finish()
        raise SourceFailed(
            "the output of pg_dump cannot be taken apart", detail=str(error), hint=error.hint
        ) from error


def _explained(content: Iterator[bytes], dump: PgDump) -> Iterator[bytes]:
    with _intelligible(dump):
        yield from content


class _Watched:
    """An iterator that knows whether it was read to its end."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.ended = False
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._blocks)
        except StopIteration:
            self.ended = True
            raise


def _each_whole(streams: Iterator[Stream]) -> Iterator[Stream]:
    """The same streams; asking for the next one before the end of one is an error."""
    for stream in streams:
        blocks = _Watched(stream.blocks)
        yield replace(stream, blocks=blocks)
        if not blocks.ended:
            raise SourceFailed(f"stream {stream.path} was not read to its end")


def _tables_json(
    held: HeldSnapshot, tables: Sequence[Table], counts: Sequence[int], warnings: Sequence[str]
) -> bytes:
    described_tables = [
        {
            "schema": table.schema,
            "name": table.name,
            "rows": count,
            "primary_key": list(table.primary_key),
        }
        for table, count in zip(tables, counts, strict=True)
    ]
    return _json(
        {
            "database": held.database,
            "captured_at": _utc(held.captured_at),
            "tables": described_tables,
            "warnings": list(warnings),
        }
    )


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
