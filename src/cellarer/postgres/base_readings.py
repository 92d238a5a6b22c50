"""The two ways to read a base backup, each as the streams of a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cellarer.domain.snapshot import Entry
from cellarer.domain.wal import history_name, lsn_text, parse_lsn, segment_at
from cellarer.errors import SourceFailed
from cellarer.ports import Held, Patched, Stream
from cellarer.postgres.base_changes import Changes, Partly
from cellarer.postgres.base_direct import (
    Ended,
    OnlineBackup,
    OpenedFile,
    ReadAhead,
    damaged_control,
    mode_of,
    wal_blocks,
    wal_files,
)
from cellarer.postgres.base_files import is_relation, list_files, locator_of
from cellarer.postgres.base_pages import Layout, PageCheck
from cellarer.postgres.base_sent import checked_blocks
from cellarer.postgres.base_stamps import Beginning, Stamps
from cellarer.postgres.base_stream import BaseBackupStream, Member
from cellarer.postgres.basebackup import (
    CONTROL_PATH,
    DATA,
    FACTS_PATH,
    LABEL_PATH,
    TABLESPACE_MAP_PATH,
    TABLESPACES,
    WAL,
    BackupFacts,
    Tablespace,
)
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.cluster_facts import ClusterFacts, clock, damaged_pages
from cellarer.postgres.data_directory import CONTROL_FILE, control_is_whole

_MOST_PAGES = 1 << 21
"""A larger cluster is cut into larger pieces than its pages, so that the index fits in memory."""

_WAL_DIRECTORY = "pg_wal/"


class Reading(Protocol):
    """One base backup. `facts` are known when all streams were read."""

    facts: BackupFacts | None
    expected_bytes: int

    def streams(self) -> Iterator[Stream]:
        """Every stream of the point."""

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """Keep in mind what was read. Raises `OSError`."""

    def close(self) -> None:
        """Stop whatever still runs."""


class DirectReading:
    """Reads the files of a cluster on its own host, leaving out what `stamps` know."""

    def __init__(
        self,
        connection: Connection,
        dsn: str,
        cluster: ClusterFacts,
        directory: Path,
        stamps: Stamps,
        label: str,
    ) -> None:
        self.facts: BackupFacts | None = None
        self._connection, self._dsn, self._cluster = connection, dsn, cluster
        self._directory, self._stamps, self._label = directory, stamps, label
        self._started_at = clock(connection)
        self._online = OnlineBackup(connection, directory, f"cellarer {label}")
        self._listing = list_files(directory)
        layout = _layout(cluster, self._online.start_lsn)
        self._check = PageCheck(layout)
        self._beginning = Beginning(self._online.timeline, self._online.start_lsn, cluster.started)
        changes = Changes(connection, cluster, stamps, self._beginning, layout)
        self._ahead = ReadAhead(self._listing.files, self._check, changes.claim)
        self.expected_bytes = sum(file.size_bytes for file in self._listing.files)

    def streams(self) -> Iterator[Stream]:
        """See `Reading`."""
        page_bytes = _page_bytes(self._cluster, self.expected_bytes)
        for opened in self._ahead:
            yield self._stream(opened, page_bytes)
        ended = self._online.end()
        self._check.settle(ended.stop_lsn)
        cluster = self._cluster
        yield from _own_history(self._directory, ended.timeline)
        for path in wal_files(
            self._directory,
            ended.timeline,
            self._online.start_lsn,
            ended.stop_lsn,
            cluster.wal_segment_bytes,
        ):
            size = cluster.wal_segment_bytes
            yield Stream(f"{WAL}/{path.name}", "wal", wal_blocks(path, size), size)
        yield from _last_files(ended)
        spaces = self._listing.tablespaces.items()
        facts = replace(
            _facts(cluster, self._online.start_lsn, ended, self._label),
            started_at=self._started_at,
            finished_at=clock(self._connection),
            read="direct",
            tablespaces=tuple(Tablespace(o, cluster.tablespaces.get(o, ""), p) for o, p in spaces),
            directories=self._listing.directories,
            damaged_pages=damaged_pages(self._dsn, cluster, self._check.damaged),
        )
        yield Stream.whole(FACTS_PATH, "json", facts.to_json(), 0o600)
        self.facts = facts

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """See `Reading`."""
        damaged = {path for path, _ in self._check.damaged}
        began, unsettled = self._online.began_ns, self._check.unsettled
        self._stamps.save(point, entries, began, self._beginning, damaged, unsettled)

    def close(self) -> None:
        """See `Reading`."""
        self._ahead.close()

    def _stream(self, opened: OpenedFile, page_bytes: int) -> Stream:
        file, found, claim = opened.file, opened.found, opened.claim
        patched = None
        if isinstance(claim, Partly):
            pieces = self._ahead.pieces(opened)
            patched = Patched(claim.base, found.st_size, claim.piece_bytes, pieces)
        return Stream(
            file.path,
            "relation" if file.relation else "file",
            self._ahead.blocks(opened),
            found.st_size,
            mode_of(found),
            datetime.fromtimestamp(found.st_mtime, UTC),
            page_bytes=page_bytes if file.relation else None,
            summed_by_pages=self._cluster.tells_pages and locator_of(file.path) is not None,
            unchanged=claim if isinstance(claim, Held) else None,
            patched=patched,
        )


class SentReading:
    """Takes the files of a cluster from its server."""

    def __init__(self, connection: Connection, dsn: str, cluster: ClusterFacts, label: str) -> None:
        self.facts: BackupFacts | None = None
        self._connection, self._dsn, self._cluster, self._label = connection, dsn, cluster, label
        self._started_at = clock(connection)
        self._sent = BaseBackupStream(dsn, f"cellarer {label}")
        self.expected_bytes = self._sent.expected_bytes
        self._check = PageCheck(_layout(cluster, parse_lsn(self._sent.start_lsn)))
        self._directories: list[str] = []
        self._held: dict[str, bytes] = {}

    def streams(self) -> Iterator[Stream]:
        """See `Reading`."""
        page_bytes = _page_bytes(self._cluster, self.expected_bytes)
        for member in self._sent.members():
            stream = self._stream(member, page_bytes)
            if stream is not None:
                yield stream
        sent, cluster = self._sent, self._cluster
        ended = Ended(
            parse_lsn(sent.stop_lsn),
            sent.timeline,
            self._held.get(LABEL_PATH, b""),
            self._held.get(TABLESPACE_MAP_PATH, b""),
            self._held.get(CONTROL_FILE, b""),
        )
        if not ended.label or not ended.control:
            raise SourceFailed("the server sent no backup_label or no pg_control")
        if not control_is_whole(ended.control):
            raise damaged_control()
        self._check.settle(ended.stop_lsn)
        yield from _last_files(ended)
        facts = replace(
            _facts(cluster, parse_lsn(sent.start_lsn), ended, self._label),
            started_at=self._started_at,
            finished_at=clock(self._connection),
            read="replication",
            tablespaces=tuple(
                Tablespace(t.oid, cluster.tablespaces.get(t.oid, ""), t.path)
                for t in sent.tablespaces
            ),
            directories=tuple(sorted(self._directories)),
            damaged_pages=damaged_pages(self._dsn, cluster, self._check.damaged),
        )
        yield Stream.whole(FACTS_PATH, "json", facts.to_json(), 0o600)
        self.facts = facts

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """See `Reading`: nothing, as the server sends everything again."""

    def close(self) -> None:
        """See `Reading`."""
        self._sent.close()

    def _stream(self, member: Member, page_bytes: int) -> Stream | None:
        """The stream of a file; None for what is kept for later, and for directories."""
        inside = member.path
        prefix = DATA if member.tablespace is None else f"{TABLESPACES}/{member.tablespace}"
        if member.directory:
            if inside:
                self._directories.append(f"{prefix}/{inside}")
            return None
        path, relation, blocks = f"{prefix}/{inside}", is_relation(inside), member.blocks
        if member.tablespace is None:
            if inside in (LABEL_PATH, TABLESPACE_MAP_PATH, CONTROL_FILE):
                self._held[inside] = b"".join(blocks)
                return None
            if inside.startswith(_WAL_DIRECTORY):
                name = inside.removeprefix(_WAL_DIRECTORY)
                if "/" in name:
                    return None  # archive_status: of no use elsewhere
                return Stream(f"{WAL}/{name}", "wal", blocks, member.size_bytes)
        if relation:
            oid = member.tablespace
            place = inside if oid is None else f"pg_tblspc/{oid}/{inside}"
            blocks = checked_blocks(self._connection, place, path, blocks, self._check)
        return Stream(
            path,
            "relation" if relation else "file",
            blocks,
            member.size_bytes,
            member.mode,
            member.mtime,
            page_bytes=page_bytes if relation else None,
        )


def _own_history(directory: Path, timeline: int) -> Iterator[Stream]:
    """Where the timeline of a backup comes from; no server recovers on one without knowing that."""
    name = history_name(timeline)
    if timeline == 1:
        return
    try:
        content = (directory / "pg_wal" / name).read_bytes()
    except OSError as error:
        raise SourceFailed(
            f"{name} cannot be read in pg_wal",
            detail=error.strerror or str(error),
            hint='bring it back there from the archive; or set read = "replication" for the source',
        ) from error
    yield Stream.whole(f"{WAL}/{name}", "wal", content, 0o600)


def _layout(cluster: ClusterFacts, start_lsn: int) -> Layout:
    return Layout(cluster.page_bytes, cluster.segment_bytes, cluster.checksums, start_lsn)


def _page_bytes(cluster: ClusterFacts, expected_bytes: int) -> int:
    """Into what pieces the relations of a cluster are cut."""
    size = cluster.page_bytes
    while expected_bytes // size > _MOST_PAGES:
        size *= 2
    return size


def _facts(cluster: ClusterFacts, start_lsn: int, ended: Ended, label: str) -> BackupFacts:
    """What both ways know alike."""
    segment = segment_at(ended.timeline, start_lsn, cluster.wal_segment_bytes)
    return BackupFacts(
        system_identifier=cluster.system,
        timeline=ended.timeline,
        start_lsn=lsn_text(start_lsn),
        stop_lsn=lsn_text(ended.stop_lsn),
        start_segment=segment.name(cluster.wal_segment_bytes),
        server_version=cluster.version,
        server_version_num=cluster.version_number,
        block_size=cluster.page_bytes,
        wal_segment_size=cluster.wal_segment_bytes,
        relation_segment_bytes=cluster.segment_bytes,
        checksums=cluster.checksums,
        started_at="",
        finished_at="",
        read="",
        standby=cluster.standby,
        tablespaces=(),
        directories=(),
        damaged_pages=(),
        label=label,
    )


def _last_files(ended: Ended) -> Iterator[Stream]:
    if ended.tablespace_map:
        yield Stream.whole(TABLESPACE_MAP_PATH, "file", ended.tablespace_map, 0o600)
    yield Stream.whole(LABEL_PATH, "file", ended.label, 0o600)
    yield Stream.whole(CONTROL_PATH, "control", ended.control, 0o600)
