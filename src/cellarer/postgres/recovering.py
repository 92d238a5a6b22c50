"""Recovers a restored data directory to a moment, and reads back what was reached."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.domain.wal import parse_lsn
from cellarer.postgres.private_server import Connection, PrivateServer
from cellarer.postgres.wal_feed import WalFeed

_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.02, 0.5

_STATE = """
SELECT pg_is_in_recovery(),
    CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' END,
    pg_last_wal_replay_lsn()::text,
    pg_last_xact_replay_timestamp()
"""

_FOUND = """SELECT timeline_id, pg_snapshot_xmax(pg_current_snapshot())::text
    FROM pg_control_checkpoint()"""

# What PostgreSQL says where recovery cannot be, and what to do then.
_ENDINGS = (
    (
        "recovery ended before configured recovery target was reached",
        "the WAL ends before the moment that was asked for",
        "Recover to an earlier moment, or to `latest`: all that there is.",
    ),
    (
        "requested recovery stop point is before consistent recovery point",
        "the base backup ended after the moment that was asked for",
        "Name an older base backup with --point.",
    ),
    (
        "is not a child of this server's history",
        "the base backup is not of the history of that timeline",
        "Name another --timeline, or an older base backup with --point.",
    ),
    (
        "recovery target timeline",
        "the history of that timeline is not in the vault",
        "Name another --timeline; `cellarer points` lists them.",
    ),
    (
        "could not locate a valid checkpoint record",
        "the WAL that the base backup begins with is not there",
        "Name another base backup with --point.",
    ),
    (
        "could not find redo location",
        "the WAL that the base backup begins with is not there",
        "Name another base backup with --point.",
    ),
    (
        "WAL ends before end of online backup",
        "the WAL ends before the base backup is consistent",
        "Name another base backup with --point.",
    ),
    (
        "resource manager with ID",
        "the WAL holds records of an extension that is not loaded",
        "Start the server by hand with its shared_preload_libraries: recovery goes on there.",
    ),
)
_ENDED_EARLY, _CONSISTENT = _ENDINGS[0][0], "consistent recovery state reached"
_LACKS_ROOM = "insufficient parameter settings"
_REDO_DONE = re.compile(r"redo done at (\S+)")
_LAST_TRANSACTION = re.compile(r"last completed transaction was at log time (.+)")


@dataclass(frozen=True)
class Reached:
    """The state of a recovered server, as it said itself.

    `next_xid` is the transaction that comes next, of 64 bits.
    `time` is when the last transaction that it replayed was committed or rolled back, on the
    source's clock; None where none was. `lsn` is the end of the last record.
    """

    lsn: str
    time: datetime | None
    timeline: int
    next_xid: int

    @property
    def text(self) -> str:
        """The time in ISO 8601 with Z, or the LSN where no transaction was replayed."""
        if self.time is None:
            return f"LSN {self.lsn}"
        return self.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def ended_at_consistency(server: PrivateServer) -> bool:
    """Whether the server ended because its WAL does where the base backup does.

    Told to stop as soon as it is consistent, PostgreSQL looks for that at the end of a transaction,
    or before the next record. Where neither comes it takes the target for one that was not reached.
    """
    return not server.running and _ENDED_EARLY in server.log and _CONSISTENT in server.log


def recover(
    server: PrivateServer,
    feed: WalFeed,
    target: RecoveryTarget,
    expected_lsn: str | None,
    advance: Callable[[str], None],
) -> Reached:
    """Wait until the server has reached the target, promote it, and say what it holds.

    `expected_lsn` is how far the WAL is known to go, to the segment. Raises what ended the feed,
    and `TargetFailed` where the target was not reached: a database that lacks something is never
    called recovered.
    """
    connection, lsn, committed = _reached(server, feed, target, advance)
    try:
        with connection:
            _judge(server, target, lsn, committed, expected_lsn)
            if target.kind != "latest":
                feed.end_here()
                connection.execute("SELECT pg_wal_replay_resume()")
                while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                    time.sleep(_FIRST_LOOK_SECONDS)
            connection.execute("CHECKPOINT")
            row = connection.execute(_FOUND).fetchone()
    except psycopg.OperationalError as error:
        raise _ended(server, feed) from error
    assert row is not None
    return Reached(lsn, committed, int(str(row[0])), int(str(row[1])))


def _reached(
    server: PrivateServer, feed: WalFeed, target: RecoveryTarget, advance: Callable[[str], None]
) -> tuple[Connection, str, datetime | None]:
    pause = _FIRST_LOOK_SECONDS
    connection: Connection | None = None
    while True:
        if not server.running:
            if _LACKS_ROOM not in server.log:
                raise _ended(server, feed)
            server.start_again()
        try:
            connection = connection or server.connect()
            if connection is not None:
                row = connection.execute(_STATE.encode()).fetchone()
                assert row is not None
                recovering, paused, lsn, committed = row
                advance(str(lsn))
                if paused and _LACKS_ROOM in server.log:
                    # So PostgreSQL waits, whatever the target, to be given what the primary had.
                    connection.close()
                    connection = None
                    server.start_again()
                    continue
                if paused if target.kind != "latest" else not recovering:
                    moment = committed if isinstance(committed, datetime) else None
                    return connection, str(lsn), moment
        except psycopg.OperationalError:
            connection = None  # it was ended by what the log tells, or had to restart
        time.sleep(pause)
        pause = min(pause * 1.5, _LOOK_SECONDS)


def _ended(server: PrivateServer, feed: WalFeed) -> Exception:
    """Why the server ended by itself."""
    if feed.error is not None:
        return feed.error
    for words, message, hint in _ENDINGS:
        if words in server.log:
            failure = server.failure(message, hint)
            reached = [
                found[0] for p in (_REDO_DONE, _LAST_TRANSACTION) if (found := p.search(server.log))
            ]
            failure.detail = "\n".join([*reached, failure.detail])
            return failure
    return server.failure("recovery failed")


def _judge(
    server: PrivateServer,
    target: RecoveryTarget,
    lsn: str,
    committed: datetime | None,
    expected_lsn: str | None,
) -> None:
    """Raise `TargetFailed` where the server stopped elsewhere than it was told to."""
    reached, wanted = parse_lsn(lsn), target.value
    wrong = ""
    if target.kind == "lsn" and target.inclusive and reached < parse_lsn(wanted):
        wrong = f"it is at {lsn}, before {wanted}"
    if target.time is not None and committed is not None and committed > target.time:
        wrong = f"its last transaction is of {committed.isoformat()}"
    if target.kind == "latest" and expected_lsn and reached < parse_lsn(expected_lsn):
        wrong = f"it is at {lsn}, and the WAL goes on to {expected_lsn} at least"
    if wrong:
        raise server.failure(f"recovery did not reach {target.text}: {wrong}")
