"""What a server says of its cluster as a whole, and what a damaged page of it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from cellarer.errors import CellarerError
from cellarer.postgres.base_files import filenode_of, segment_of
from cellarer.postgres.basebackup import DATA, TABLESPACES, DamagedPage
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.connection import connect
from cellarer.postgres.conninfo import for_database
from cellarer.postgres.snapshot import failures

_DEFAULT_TABLESPACE = 0
_SETTINGS = (
    "server_version",
    "server_version_num",
    "block_size",
    "segment_size",
    "wal_segment_size",
    "data_checksums",
    "full_page_writes",
    "wal_level",
    "summarize_wal",
)


@dataclass(frozen=True)
class ClusterFacts:
    """A cluster as its server shows it to anybody. `tablespaces` has their names by oid.

    `started` is when its postmaster did, as text to be compared with itself.
    `data_directory` is None where the user may not know it. Sizes are in bytes.
    """

    system: str
    version: str
    version_number: int
    page_bytes: int
    segment_bytes: int
    wal_segment_bytes: int
    checksums: bool
    full_page_writes: bool
    wal_level: str
    standby: bool
    summarizes_wal: bool
    started: str
    tablespaces: Mapping[int, str]
    data_directory: Path | None

    @property
    def tells_pages(self) -> bool:
        """Whether its log tells of the pages that change, and its summaries of the log."""
        return self.checksums and self.summarizes_wal


def look_at_cluster(connection: Connection) -> ClusterFacts:
    """The cluster that a connection leads to. Raises `SourceFailed`."""
    with failures("the server does not say what it is"):
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(_SETTINGS)]
        ).fetchall()
        settings = {str(name): str(value) for name, value in rows}
        row = connection.execute(
            "SELECT system_identifier::numeric, pg_is_in_recovery(),"
            " extract(epoch FROM pg_postmaster_start_time())::text FROM pg_control_system()"
        ).fetchone()
        spaces = connection.execute("SELECT oid::int8, spcname FROM pg_tablespace").fetchall()
        directory = None
        with suppress(psycopg.errors.InsufficientPrivilege):
            shown = connection.execute("SHOW data_directory").fetchone()
            directory = Path(shown[0]) if shown else None
    assert row is not None
    page_bytes = int(settings["block_size"])
    return ClusterFacts(
        # The catalogue shows it as a signed number, everybody else without the sign.
        system=str(int(row[0]) % (1 << 64)),
        version=settings["server_version"],
        version_number=int(settings["server_version_num"]),
        page_bytes=page_bytes,
        segment_bytes=int(settings["segment_size"]) * page_bytes,
        wal_segment_bytes=int(settings["wal_segment_size"]),
        checksums=settings["data_checksums"] == "on",
        full_page_writes=settings["full_page_writes"] == "on",
        wal_level=settings["wal_level"],
        standby=bool(row[1]),
        summarizes_wal=settings.get("summarize_wal") == "on",
        started=str(row[2]),
        tablespaces={int(oid): str(name) for oid, name in spaces},
        data_directory=directory,
    )


def clock(connection: Connection) -> str:
    """The server's time, ISO 8601 in UTC."""
    with failures("the server does not tell the time"):
        row = connection.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'").fetchone()
    assert row is not None
    assert isinstance(row[0], datetime)
    return f"{row[0].isoformat(timespec='microseconds')}Z"


def damaged_pages(
    dsn: str, cluster: ClusterFacts, found: Iterable[tuple[str, int]]
) -> tuple[DamagedPage, ...]:
    """Damaged pages with the relation that each belongs to, as far as the server tells.

    `found` has the path of a stream and the number of the page in that file.
    """
    pages = []
    for path, page in sorted(set(found)):
        database, relation = _owner(dsn, path)
        block = segment_of(path) * (cluster.segment_bytes // cluster.page_bytes) + page
        pages.append(DamagedPage(path, database, relation, block))
    return tuple(pages)


def _owner(dsn: str, path: str) -> tuple[str, str]:
    """The database and the relation of a file; "" for what cannot be known."""
    parts = path.split("/")
    tablespace = int(parts[1]) if parts[0] == TABLESPACES else _DEFAULT_TABLESPACE
    shared = parts[:2] == [DATA, "global"]
    database = ""
    with suppress(psycopg.Error, CellarerError), closing(connect(dsn)) as connection:
        if not shared:
            row = connection.execute(
                "SELECT datname FROM pg_database WHERE oid = %s", [int(parts[-2])]
            ).fetchone()
            if row is None:
                return "", ""
            database = str(row[0])
        inside = connection if shared else connect(for_database(dsn, database))
        with closing(inside):
            row = inside.execute(
                "SELECT pg_filenode_relation(%s, %s)::regclass::text",
                [1664 if shared else tablespace, filenode_of(path)],
            ).fetchone()
        return database, str(row[0]) if row and row[0] else ""
    return database, ""
