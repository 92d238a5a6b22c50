"""Restore points in memory: real dumps of real servers, whose reading is recorded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.postgres.archive import ArchiveReader, data_paths, tables_path, toc_path
from cellarer.postgres.binaries import Installation
from cellarer.postgres.catalogue import count_rows, database_facts, list_tables
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect

BLOCK_BYTES = 8192
CAPTURED_AT = "2026-01-02T03:04:05+00:00"


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
    program = programs.program("pg_dumpall")
    command: list[str | Path] = [program, "--roles-only", "-d", cluster.dsn(databases[0])]
    roles = subprocess.run(command, check=True, capture_output=True).stdout
    streams: dict[str, tuple[str, bytes]] = {
        "roles.sql": ("sql", roles),
        "server.json": ("json", json.dumps(_server(cluster, databases)).encode()),
    }
    for database in databases:
        streams |= _database(cluster, database, programs)
    return MemoryPoint(streams)


def _database(
    cluster: Cluster, database: str, programs: Installation
) -> dict[str, tuple[str, bytes]]:
    program = programs.program("pg_dump")
    command: list[str | Path] = [program, "-Fc", "-Z0", "-b", "-d", cluster.dsn(database)]
    streams: dict[str, tuple[str, bytes]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        reader = ArchiveReader(cast(BinaryIO, process.stdout))
        paths = data_paths(database, reader.toc)
        streams[toc_path(database)] = ("archive-toc", reader.toc.raw)
        for entry, blocks in reader.blocks():
            kind = "large-objects" if entry.holds_large_objects else "table"
            streams[paths[entry.dump_id]] = (kind, b"".join(blocks))
    assert process.returncode == 0
    with connect(cluster.dsn(database)) as connection:
        tables = [table for table in list_tables(connection) if not table.partitioned]
        counts = count_rows(connection, tables)
    counted = [
        {"schema": t.schema, "name": t.name, "rows": n, "primary_key": list(t.primary_key)}
        for t, n in zip(tables, counts, strict=True)
    ]
    document = {"database": database, "captured_at": CAPTURED_AT, "tables": counted}
    streams[tables_path(database)] = ("json", json.dumps(document).encode())
    return streams


def _server(cluster: Cluster, databases: Sequence[str]) -> dict[str, Any]:
    facts = []
    for database in databases:
        with connect(cluster.dsn(database)) as connection:
            facts.append(database_facts(connection))
            version = connection.info.server_version
    return {
        "server_version": str(version / 10000),
        "server_version_num": version,
        "pg_dump_version": "",
        "captured_at": CAPTURED_AT,
        "role_passwords": True,
        "settings": {},
        "databases": facts,
    }
