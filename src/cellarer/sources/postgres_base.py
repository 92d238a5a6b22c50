"""Reads a whole PostgreSQL cluster file by file: the ground on which WAL is replayed.

    data/..., tablespaces/OID/...     the files, as `pg_basebackup` chooses them
    wal/SEGMENT                       the WAL from the start to the stop of the backup
    tablespace_map, backup_label      what the server says at the end
    data/global/pg_control            what it was just before that
    backup.json                       all that a recovery has to know

On the database's host the files are read directly, by several threads; from afar the server sends
them over the replication protocol. Either way pages are compared with their checksums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Entry, WalRange
from cellarer.domain.wal import parse_lsn
from cellarer.errors import SourceFailed, UsageError
from cellarer.ports import Capture
from cellarer.postgres.base_readings import DirectReading, Reading, SentReading
from cellarer.postgres.base_stamps import Stamps
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.cluster_facts import ClusterFacts, look_at_cluster
from cellarer.postgres.connection import connect, pinned
from cellarer.postgres.conninfo import described
from cellarer.postgres.data_directory import CONTROL_FILE, VERSION_FILE, parse_control
from cellarer.postgres.snapshot import failures
from cellarer.sources.examined import examined, source_finding

Way = Literal["auto", "direct", "replication"]

OLDEST = 150000
_SUMMARIES = 170000


class PostgresBaseSource:
    """One cluster. `way` is how its files are read, and `data_directory` where they are seen here.

    `state` is a directory in which this host remembers what the files were like.
    """

    kind = "postgres_base"

    def __init__(
        self,
        name: str,
        dsn: str,
        state: Path,
        *,
        way: Way = "auto",
        data_directory: Path | None = None,
        full_read: bool = False,
    ) -> None:
        self.name = name
        self._dsn, self._state = dsn, state
        self._way, self._data_directory, self._full_read = way, data_directory, full_read
        self._last: Reading | None = None

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """One base backup; see `cellarer.ports.Source`.

        Raises `SourceFailed`. Whatever happens, the server is not left in the state of backup.
        """
        with ExitStack() as stack:
            connection = stack.enter_context(closing(self._connected()))
            cluster = look_at_cluster(connection)
            self._refuse_old(cluster)
            dsn = pinned(self._dsn, connection)
            directory = self._directory(cluster, connection)
            reading: Reading
            if directory is not None:
                stamps = Stamps(self._state / f"{self.name}.json", cluster.system)
                if self._full_read:
                    stamps.forget()
                reading = DirectReading(connection, dsn, cluster, directory, stamps, self.name)
            else:
                reading = SentReading(connection, dsn, cluster, self.name)
            stack.callback(reading.close)
            self._last = reading
            yield Capture(reading.streams(), reading.expected_bytes)
            if reading.facts is None:
                raise SourceFailed(f"source {self.name} was left before its last stream")

    def wal_range(self) -> WalRange:
        """See `cellarer.ports.WalBound`."""
        facts = self._complete().facts
        assert facts is not None
        return WalRange(
            facts.system_identifier,
            facts.timeline,
            parse_lsn(facts.start_lsn),
            parse_lsn(facts.stop_lsn),
        )

    def flaws(self) -> Sequence[str]:
        """See `cellarer.ports.Flawed`."""
        facts = self._complete().facts
        assert facts is not None
        return [
            f"block {page.block} of {page.relation or 'a relation'}"
            f"{f' in database {page.database}' if page.database else ''}, file {page.path}"
            for page in facts.damaged_pages
        ]

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """See `cellarer.ports.Remembering`."""
        with suppress(OSError):
            self._complete().remember(point, entries)

    def examine(self) -> list[Finding]:
        """Whether the server answers, how its files would be read, and what stands against it."""
        return examined(self.name, self._examination())

    def _complete(self) -> Reading:
        if self._last is None or self._last.facts is None:
            raise SourceFailed(f"source {self.name} was not read to its end")
        return self._last

    def _connected(self) -> Connection:
        with failures(f"cannot connect to {described(self._dsn)}"):
            return connect(self._dsn)

    def _refuse_old(self, cluster: ClusterFacts) -> None:
        if cluster.version_number < OLDEST:
            raise SourceFailed(
                f"base backups need PostgreSQL 15 or later, and this is {cluster.version}",
                hint="Upgrade the server, or back it up with a source of kind postgres_dump.",
            )

    def _directory(self, cluster: ClusterFacts, connection: Connection) -> Path | None:
        """Where the files are to be read, None where the server is to send them."""
        if self._way == "replication":
            return None
        directory = self._data_directory or cluster.data_directory
        objection = _objection(directory, cluster, connection)
        if objection and self._way == "direct":
            raise UsageError(
                f"source {self.name} cannot be read directly: {objection}",
                hint="Run cellarer on the database's host as the user of the server, name its"
                ' data_directory, or set read = "replication".',
            )
        return None if objection else directory

    def _examination(self) -> Iterator[Finding]:
        with closing(self._connected()) as connection:
            cluster = look_at_cluster(connection)
            self._refuse_old(cluster)
            directory = self._directory(cluster, connection)
            row = connection.execute(
                "SELECT has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE'),"
                " has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE'),"
                " (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)"
            ).fetchone()
        assert row is not None
        start, stop, replication = (bool(value) for value in row)
        way = "directly" if directory else "over the replication protocol"
        message = f"PostgreSQL {cluster.version} at {described(self._dsn)}, read {way}"
        yield source_finding(self.name, "server", "info", message)
        if directory and not (start and stop):
            yield source_finding(
                self.name,
                "privileges",
                "error",
                "the user may not begin and end a base backup",
                "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean)"
                ' TO the user, or set read = "replication".',
            )
        if not replication:
            yield source_finding(
                self.name,
                "privileges",
                "warning" if directory else "error",
                "the user has not the attribute REPLICATION",
                "ALTER ROLE the user REPLICATION: a slot then keeps the WAL of a backup.",
            )
        if cluster.wal_level == "minimal":
            yield source_finding(
                self.name,
                "wal-level",
                "error",
                "the server writes too little WAL for a base backup: wal_level = minimal",
                "Set wal_level = replica and restart the server.",
            )
        if not cluster.checksums:
            yield source_finding(
                self.name,
                "checksums",
                "warning",
                "pages have no checksums, so a damaged one is not noticed",
                "Stop the server and run `pg_checksums --enable`.",
            )
        if directory and cluster.version_number >= _SUMMARIES:
            yield _pages_finding(self.name, cluster)
        if cluster.standby:
            yield source_finding(self.name, "standby", "info", "the server is a standby")


def _pages_finding(name: str, cluster: ClusterFacts) -> Finding:
    """Whether of files that changed all is read."""
    if cluster.tells_pages:
        message = "of files that changed only the pages that did are read"
        return source_finding(name, "pages", "info", message)
    lacking = [] if cluster.summarizes_wal else ["set summarize_wal = on"]
    lacking += [] if cluster.checksums else ["enable checksums"]
    message = "files that changed are read as a whole: the server does not tell which pages did"
    return source_finding(name, "pages", "info", message, " and ".join(lacking))


def _objection(directory: Path | None, cluster: ClusterFacts, connection: Connection) -> str:
    """Why the files of a cluster cannot be read in a directory, "" where they can."""
    if directory is None:
        return "the user may not know where its data directory is"
    try:
        control = parse_control((directory / CONTROL_FILE).read_bytes())
        with (directory / VERSION_FILE).open("rb"):
            pass
    except OSError as error:
        return f"{directory} cannot be read here ({error.strerror})"
    if control is None or control.system_identifier != cluster.system:
        return f"{directory} holds another cluster"
    if not _is_of(connection, directory):
        return f"{directory} holds a copy of the cluster, or its standby, and not this server's own"
    return ""


def _is_of(connection: Connection, directory: Path) -> bool:
    """Whether a directory is the very one that the connected server works in.

    A standby and a copy have the same system identifier. An exported snapshot is a file in the data
    directory of this server alone, as long as its transaction is open.
    """
    with failures("cannot tell whose the data directory is"), connection.transaction():
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        return (directory / "pg_snapshots" / str(row[0])).exists()
