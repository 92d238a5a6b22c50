"""Base backups of real servers as points, made by pg_basebackup, and an archive of their WAL."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.ports import Hasher
from cellarer.postgres.account import service_account
from cellarer.postgres.basebackup import BackupFacts, Tablespace
from cellarer.postgres.binaries import Installation
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.postgres.data_directory import read_control

BLOCK_BYTES = 65536
SEGMENT_BYTES = 16 * 2**20
_LEFT_OUT = {"backup_manifest", "postmaster.pid", "postmaster.opts", "current_logfiles"}


@dataclass
class FilePoint:
    """A PointReader on files. A stream that is `damaged` ends in an error, as a vault's would."""

    files: dict[str, tuple[str, Path]]
    point: str = "20261125T000000Z-0000base"
    damaged: set[str] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)
    _sums: dict[str, str] = field(default_factory=dict)

    def entries(self) -> Sequence[Entry]:
        return [
            Entry(path, kind, file.stat().st_size, self._sum(path, file), file.stat().st_mode)
            for path, (kind, file) in self.files.items()
        ]

    def read(self, path: str) -> Iterator[bytes]:
        self.opened.append(path)
        with self.files[path][1].open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
        if path in self.damaged:
            raise DamagedData(f"{path} is not what was backed up")

    def hasher(self, kind: str) -> Hasher:
        return hashlib.new(kind)

    def _sum(self, path: str, file: Path) -> str:
        if path not in self._sums:
            self._sums[path] = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        return self._sums[path]


@dataclass(frozen=True)
class Primary:
    """A server that archives its WAL."""

    cluster: Cluster
    archive: Path

    def run(self, *statements: str) -> None:
        with connect(self.cluster.dsn("postgres")) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def ask(self, query: str) -> object:
        with connect(self.cluster.dsn("postgres")) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def now(self) -> datetime:
        moment = self.ask("SELECT clock_timestamp()")
        assert isinstance(moment, datetime)
        return moment.astimezone(UTC)

    def archived(self) -> str:
        """Switch the segment, and wait until everything before is in the archive; where it ends."""
        segment = str(self.ask("SELECT pg_walfile_name(pg_switch_wal())"))
        deadline = 600
        with connect(self.cluster.dsn("postgres")) as connection:
            while not (self.archive / segment).exists():
                connection.execute("SELECT pg_sleep(0.05)")
                deadline -= 1
                assert deadline, f"{segment} was not archived"
        return segment

    def read(self, name: str) -> bytes | None:
        """The archive as recovery reads it."""
        path = self.archive / name
        return path.read_bytes() if path.exists() else None


@contextmanager
def primary(installation: Installation, directory: Path, **settings: str) -> Iterator[Primary]:
    """A new server in `directory`, with an archive that `cp` fills."""
    archive = directory / "archive"
    archive.mkdir(mode=0o777)
    archive.chmod(0o777)
    wanted = {
        "fsync": "off",
        "wal_level": "replica",
        "archive_mode": "on",
        "archive_command": f'cp "%p" {archive}/%f.new && mv {archive}/%f.new {archive}/%f',
        "max_wal_senders": "4",
        "autovacuum": "off",
        "shared_buffers": "32MB",
    }
    cluster = Cluster.create(
        installation, directory / "primary", superuser="chief", settings=wanted | settings
    )
    try:
        cluster.start()
        yield Primary(cluster, archive)
    finally:
        cluster.remove()


def base_point(primary: Primary, directory: Path, checkpoint: str = "fast") -> FilePoint:
    """A base backup, as the source makes it: in the order and the form of its streams."""
    cluster, target = primary.cluster, directory / "data"
    directory.mkdir(mode=0o711)
    program = cluster.installation.program("pg_basebackup")
    with connect(cluster.dsn("postgres")) as connection:
        rows = connection.execute(
            "SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_tablespace"
            " WHERE pg_tablespace_location(oid) <> ''"
        ).fetchall()
        version = connection.info.server_version
        checksums = connection.execute("SHOW data_checksums").fetchone()
    mapping = [f"--tablespace-mapping={path}={directory / str(oid)}" for oid, _, path in rows]
    subprocess.run(
        [str(program), "-D", str(target), "-X", "fetch", "-c", checkpoint, *mapping, "-d",
         cluster.dsn("postgres")],
        check=True,
    )  # fmt: skip
    manifest = json.loads((target / "backup_manifest").read_text())
    spaces = tuple(Tablespace(int(oid), str(name), str(path)) for oid, name, path in rows)
    facts = _facts(target, manifest, version, spaces, bool(checksums and checksums[0] == "on"))
    return FilePoint(_streams(directory, target, spaces, facts))


def _streams(
    directory: Path, target: Path, spaces: Sequence[Tablespace], facts: BackupFacts
) -> dict[str, tuple[str, Path]]:
    found: dict[str, tuple[str, Path]] = {}
    directories: list[str] = []
    roots = [("data", target), *((f"tablespaces/{s.oid}", directory / str(s.oid)) for s in spaces)]
    held = ("global/pg_control", "backup_label", "tablespace_map")
    for prefix, root in roots:
        for path in sorted(root.rglob("*")):
            below = str(path.relative_to(root))
            if path.is_symlink() or below in _LEFT_OUT or (prefix == "data" and below in held):
                continue
            if path.is_dir():
                directories.append(f"{prefix}/{below}")
            elif not below.startswith("pg_wal/"):
                relation = re.fullmatch(r"(.*/)?\d+(_\w+)?(\.\d+)?", below)
                found[f"{prefix}/{below}"] = ("relation" if relation else "file", path)
    for path in sorted((target / "pg_wal").iterdir()):
        if path.is_file():
            found[f"wal/{path.name}"] = ("wal", path)
    if (target / "tablespace_map").exists():
        found["tablespace_map"] = ("file", target / "tablespace_map")
    found["backup_label"] = ("file", target / "backup_label")
    found["data/global/pg_control"] = ("control", target / "global" / "pg_control")
    described = directory / "backup.json"
    values = json.loads(facts.to_json()) | {"directories": directories}
    described.write_text(json.dumps(values))
    found["backup.json"] = ("json", described)
    return found


def _facts(
    target: Path,
    manifest: dict[str, list[dict[str, object]]],
    version: int,
    spaces: tuple[Tablespace, ...],
    checksums: bool,
) -> BackupFacts:
    control, wal = read_control(target), manifest["WAL-Ranges"][0]
    assert control is not None
    label = (target / "backup_label").read_text()
    start = re.search(r"START WAL LOCATION: (\S+) \(file (\w+)\)", label)
    assert start is not None
    moment = datetime.now(UTC).isoformat()
    return BackupFacts(
        system_identifier=control.system_identifier,
        timeline=int(str(wal["Timeline"])),
        start_lsn=start[1],
        stop_lsn=str(wal["End-LSN"]),
        start_segment=start[2],
        server_version=str(version // 10000),
        server_version_num=version,
        block_size=8192,
        wal_segment_size=SEGMENT_BYTES,
        relation_segment_bytes=2**30,
        checksums=checksums,
        started_at=moment,
        finished_at=moment,
        read="replication",
        standby=False,
        tablespaces=spaces,
        directories=(),
        damaged_pages=(),
        label="test",
    )


def digests(dsn: str) -> dict[str, str]:
    """A digest of the rows of every table of the database `postgres`, by name."""
    found = {}
    with connect(dsn) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
        ).fetchall()
        for (table,) in tables:
            rows = "string_agg(t::text, '|' ORDER BY t::text)"
            query = f"SELECT coalesce(md5({rows}), '') FROM {table} t"
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            found[table] = row[0]
    return found


@contextmanager
def serving(installation: Installation, data: Path, **settings: str) -> Iterator[str]:
    """The dsn of an ordinary server on a restored data directory, with its own configuration."""
    account, place = service_account(), Path(tempfile.mkdtemp(prefix="cel-", dir="/tmp"))
    account.own(place)
    options = {"unix_socket_directories": str(place), "archive_command": "false"} | settings
    command = [str(installation.program("pg_ctl")), "-D", str(data)]
    told = " ".join(f'-c {name}="{value}"' for name, value in options.items())
    answer = account.run([*command, "start", "-w", "-o", told, "-l", place / "log"], place)
    try:
        log = (place / "log").read_text() if (place / "log").exists() else ""
        assert answer.returncode == 0, answer.stdout + log
        yield f"postgresql://chief@/postgres?host={quote(str(place), safe='')}"
    finally:
        account.run([*command, "stop", "-m", "fast"], place)
        shutil.rmtree(place)
