"""Reads what a restore point of kind `postgres_dump` holds, without touching any table's data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.ports import PointReader
from cellarer.postgres.archive import data_paths, toc_path
from cellarer.postgres.toc import TableOfContents, parse_toc

ROLES_PATH = "roles.sql"
SERVER_PATH = "server.json"
TOC_KIND = "archive-toc"
_SECTION_NONE = 1
PRE_DATA, DATA, POST_DATA = 2, 3, 4


@dataclass(frozen=True)
class DatabaseContents:
    """One database of the point. `properties` is its part of server.json.

    `streams` maps the dump id of every entry of the archive that has data to the stream that
    holds it.
    """

    name: str
    toc: TableOfContents
    properties: Mapping[str, Any]
    streams: Mapping[int, Entry]

    @cached_property
    def sections(self) -> Mapping[int, int]:
        """The section of each entry by dump id, as `pg_restore` sees it.

        Comments and grants belong to no section of their own: they go with the entry before.
        """
        found, current = {}, PRE_DATA
        for entry in self.toc.entries:
            current = current if entry.section == _SECTION_NONE else entry.section
            found[entry.dump_id] = current
        return found


@dataclass(frozen=True)
class Contents:
    """A whole point: its server's facts and its databases, in the order of the dump."""

    server: Mapping[str, Any]
    databases: Sequence[DatabaseContents]

    @property
    def server_major(self) -> int:
        """The major version of the server that was dumped."""
        return int(self.server["server_version_num"]) // 10000

    @property
    def pg_dump_major(self) -> int:
        """The newest major version of `pg_dump` that wrote a part of this."""
        return max(major_of(database.toc.pg_dump_version) for database in self.databases)

    @property
    def captured_at(self) -> str:
        """The moment that the point shows, ISO 8601 in UTC."""
        return str(self.server["captured_at"])


def is_dump(reader: PointReader) -> bool:
    """Whether the point was made by `postgres_dump`."""
    return any(entry.kind == TOC_KIND for entry in reader.entries())


def read_contents(reader: PointReader) -> Contents:
    """Read server.json and the tables of contents. Raises `DamagedData` where parts are missing."""
    entries = {entry.path: entry for entry in reader.entries()}
    server = read_json(reader, SERVER_PATH)
    databases = []
    for properties in server["databases"]:
        name = properties["name"]
        toc = parse_toc(read_all(reader, toc_path(name)))
        streams = {}
        for dump_id, path in data_paths(name, toc).items():
            if path not in entries:
                raise _missing(path)
            streams[dump_id] = entries[path]
        databases.append(DatabaseContents(name, toc, properties, streams))
    if not databases:
        raise _missing("a database")
    return Contents(server, databases)


def read_all(reader: PointReader, path: str) -> bytes:
    """One small stream as a whole. Raises `DamagedData` where the point has no such stream."""
    if not any(entry.path == path for entry in reader.entries()):
        raise _missing(path)
    return b"".join(reader.read(path))


def read_json(reader: PointReader, path: str) -> dict[str, Any]:
    """One small JSON stream. Raises `DamagedData`."""
    try:
        document = json.loads(read_all(reader, path))
    except ValueError as error:
        raise DamagedData(f"the stream {path} is no JSON document", detail=str(error)) from error
    if not isinstance(document, dict):
        raise DamagedData(f"the stream {path} holds no JSON object")
    return document


def major_of(version: str) -> int:
    """The major version in a text such as `15.18 (Debian 15.18-0+deb12u1)`, `18beta1`, `18.4`."""
    digits = version[: next((n for n, c in enumerate(version) if not c.isdigit()), len(version))]
    if not digits:
        raise DamagedData("a version of PostgreSQL cannot be read", detail=version[:40])
    return int(digits)


def _missing(what: str) -> DamagedData:
    return DamagedData(
        "the restore point is not whole",
        detail=f"it lacks {what}",
        hint="Restore another point, and run `cellarer scrub` on the vault.",
    )
