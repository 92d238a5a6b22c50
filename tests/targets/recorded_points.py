"""Restore points in memory: real dumps of real servers, whose reading is recorded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.postgres.archive import ArchiveReader, data_paths, tables_path, toc_path
from cellarer.postgres.binaries import Installation
from cellarer.postgres.cluster import Cluster

BLOCK_BYTES = 8192


class MemoryPoint:
    """A PointReader on a dict of path to (kind, content)."""

    def __init__(self, streams: Mapping[str, tuple[str, bytes]], point: str = "point-1") -> None:
        self.point = point
        self.streams = dict(streams)
        self.opened: list[str] = []
        self.modes: dict[str, tuple[int | None, datetime | None]] = {}
        self._sums = {path: sha256(content) for path, (_, content) in streams.items()}
        self._lock = threading.Lock()

    def entries(self) -> Sequence[Entry]:
        return [
            Entry(path, kind, len(data), self._sums[path], *self.modes.get(path, (None, None)))
            for path, (kind, data) in self.streams.items()
        ]

    def read(self, path: str) -> Iterator[bytes]:
        with self._lock:
            self.opened.append(path)
        content = self.streams[path][1]
        for start in range(0, len(content), BLOCK_BYTES):
            yield content[start : start + BLOCK_BYTES]
        if sha256(content) != self._sums[path]:
            raise DamagedData(f"the stream {path} differs from what was written")

    def damage(self, path: str) -> None:
        """Change the stream behind the sum's back."""
        kind, content = self.streams[path]
        self.streams[path] = (kind, content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])


class Listener:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.notes: list[str] = []

    def begin(self, title: str, total_bytes: int | None) -> None:
        """Nothing to show."""

    def advance(self, read_bytes: int) -> None:
        self.read_bytes += read_bytes

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None:
        """Nothing to show."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def capture(
    cluster: Cluster, *databases: str, client: Installation | None = None
) -> MemoryPoint:
    """A point of these databases, dumped by the cluster's own programs or by `client`'s."""
    programs = client or cluster.installation
    roles = _run(programs.program("pg_dumpall"), "--roles-only", cluster, databases[0])
    with psycopg.connect(cluster.dsn(databases[0])) as connection:
        server = _server(connection, databases)
    streams: dict[str, tuple[str, bytes]] = {
        "roles.sql": ("sql", roles),
        "server.json": ("json", json.dumps(server).encode()),
    }
    for database in databases:
        streams |= _database(cluster, database, programs)
    return MemoryPoint(streams)


def _run(program: Path, option: str, cluster: Cluster, database: str, *more: str) -> bytes:
    command = [program, option, *more, "--dbname", cluster.dsn(database)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _database(
    cluster: Cluster, database: str, programs: Installation
) -> dict[str, tuple[str, bytes]]:
    command = [
        *(programs.program("pg_dump"), "-Fc", "-Z0", "--large-objects", "-d"),
        cluster.dsn(database),
    ]
    if programs.major < 16:
        command[3] = "--blobs"
    streams: dict[str, tuple[str, bytes]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reader = ArchiveReader(process.stdout)  # type: ignore[arg-type]
        paths = data_paths(database, reader.toc)
        streams[toc_path(database)] = ("archive-toc", reader.toc.raw)
        for entry, blocks in reader.blocks():
            kind = "large-objects" if entry.holds_large_objects else "table"
            streams[paths[entry.dump_id]] = (kind, b"".join(blocks))
    assert process.returncode == 0
    streams[tables_path(database)] = ("json", json.dumps(_tables(cluster, database)).encode())
    return streams


def _server(connection: psycopg.Connection, databases: Sequence[str]) -> dict[str, Any]:
    version = connection.info.server_version
    locale = {15: "daticulocale", 16: "daticulocale"}.get(version // 10000, "datlocale")
    described = [
        connection.execute(
            "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate,"
            f" datctype, datlocprovider::text, {locale}, datconnlimit, datacl::text,"
            " coalesce((SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = d.oid"
            "           AND setrole = 0), '{}'), shobj_description(oid, 'pg_database')"
            " FROM pg_database d WHERE datname = %s",
            [database],
        ).fetchone()
        for database in databases
    ]
    keys = (
        *("name", "owner", "encoding", "collate", "ctype", "locale_provider", "icu_locale"),
        *("connection_limit", "acl", "settings", "comment"),
    )
    return {
        "server_version": connection.info.parameter_status("server_version"),
        "server_version_num": version,
        "pg_dump_version": "",
        "captured_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).isoformat(),
        "role_passwords": True,
        "settings": {},
        "databases": [dict(zip(keys, row, strict=True)) for row in described if row is not None],
    }


def _tables(cluster: Cluster, database: str) -> dict[str, Any]:
    keys = (
        "SELECT n.nspname, c.relname, coalesce((SELECT array_agg(a.attname ORDER BY k.n)"
        " FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY k(attnum, n)"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
        " WHERE i.indrelid = c.oid AND i.indisprimary), '{}')"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%'"
        " AND n.nspname <> 'information_schema' ORDER BY 1, 2"
    )
    tables = []
    with psycopg.connect(cluster.dsn(database)) as connection:
        for schema, name, key in connection.execute(keys).fetchall():
            count = psycopg.sql.SQL("SELECT count(*) FROM ONLY {}").format(
                psycopg.sql.Identifier(schema, name)
            )
            row = connection.execute(count).fetchone()
            assert row is not None
            tables.append({"schema": schema, "name": name, "rows": row[0], "primary_key": key})
    return {"database": database, "captured_at": "", "tables": tables}
