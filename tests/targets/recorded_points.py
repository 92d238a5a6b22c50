"""Restore points in memory: real dumps of real servers, whose reading is recorded."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.ports import Hasher
from cellarer.postgres.archive import ArchiveReader, data_paths, toc_path
from cellarer.postgres.binaries import Installation
from cellarer.postgres.cluster import Cluster
from cellarer.sources.postgres_dump import PostgresDumpSource

BLOCK_BYTES = 8192


class MemoryPoint:
    """A PointReader on a dict of path to (kind, content)."""

    def __init__(self, streams: Mapping[str, tuple[str, bytes]], point: str = "point-1") -> None:
        self.point = point
        self.streams = dict(streams)
        self.opened: list[str] = []
        self.modes: dict[str, tuple[int | None, datetime | None]] = {}
        self._sums = {path: total(content) for path, (_, content) in streams.items()}
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
        if total(content) != self._sums[path]:
            raise DamagedData(f"the stream {path} differs from what was written")

    def hasher(self, kind: str) -> Hasher:
        return hashlib.new(kind)

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

    def abandon(self) -> None:
        """Nothing to show."""


def total(content: bytes) -> str:
    """The sum of a stream."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def capture(cluster: Cluster, *databases: str) -> MemoryPoint:
    """A point of these databases."""
    with PostgresDumpSource("database", cluster.dsn(databases[0]), databases).capture() as streams:
        return MemoryPoint({one.path: (one.kind, b"".join(one.blocks)) for one in streams})


def dumped_by(programs: Installation, cluster: Cluster, database: str) -> MemoryPoint:
    """A point of one database whose archive these programs wrote."""
    streams = capture(cluster, database).streams
    program = programs.program("pg_dump")
    command: list[str | Path] = [program, "-Fc", "-Z0", "-b", "-d", cluster.dsn(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        reader = ArchiveReader(cast(BinaryIO, process.stdout))
        paths = data_paths(database, reader.toc)
        streams[toc_path(database)] = ("archive-toc", reader.toc.raw)
        for entry, blocks in reader.blocks():
            path = paths[entry.dump_id]
            streams[path] = (streams[path][0], b"".join(blocks))
    assert process.returncode == 0
    return MemoryPoint(streams)
