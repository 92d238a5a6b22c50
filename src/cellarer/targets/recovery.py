"""Recovers a restored data directory along a course, and leaves it as that of a stopped server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cellarer.domain.recovery_target import RecoveryTarget
from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import Kind, kind_of
from cellarer.errors import DamagedData, TargetFailed
from cellarer.ports import Progress
from cellarer.postgres.account import Account
from cellarer.postgres.basebackup import BackupFacts
from cellarer.postgres.binaries import Installation
from cellarer.postgres.data_directory import PID_FILE
from cellarer.postgres.private_server import PrivateServer
from cellarer.postgres.recovering import Reached, ended_at_consistency, recover
from cellarer.postgres.recovery_settings import (
    AUTO_CONF,
    NO_TARGET,
    RECOVERY_SIGNAL,
    target_settings,
    without_recovery,
)
from cellarer.postgres.wal_feed import Read, WalFeed
from cellarer.targets.places import Places
from cellarer.targets.tree import Tree


@dataclass(frozen=True)
class Course:
    """The way from the end of a base backup to the moment that is wanted.

    `timeline` is that of the target, in decimal; `last` the last segment of WAL there is on the
    way, None without any, `expected_lsn` how far the WAL goes at least, and `replay_bytes` about
    how much there is to replay. `read` gives a file of the log, None where there is none.
    `restore_command` is what the server itself would ask, where it has to recover by itself.
    `newest` is the last that is known of the source, `seen_before` gives what was known of it when
    its log had come to a position. `conflict` says what of the log in the vault is of another
    branch, and is not replayed.
    """

    target: RecoveryTarget
    timeline: str
    read: Read
    restore_command: str
    last: str | None = None
    expected_lsn: str | None = None
    replay_bytes: int = 0
    newest: Sighting | None = None
    seen_before: Callable[[int], Sighting | None] = lambda _lsn: None
    conflict: str = ""


def recover_here(
    path: Path,
    installation: Installation,
    account: Account,
    course: Course,
    facts: BackupFacts,
    settings: Mapping[str, str],
    progress: Progress,
) -> Reached:
    """Recover a restored data directory privately, and leave it as a server that was stopped.

    Raises what kept it from getting there; then the directory still is what was restored, and its
    settings of recovery as well.
    """
    read = _beside_own(_counted(course.read, progress), path / "pg_wal")
    feed = WalFeed(read, facts.wal_segment_size, course.last)
    pausing = target_settings(course.target, course.timeline, "pause")
    target, to_its_end = course.target, False
    with PrivateServer(installation, path, account, feed, pausing | dict(settings)) as server:
        try:
            reached = recover(server, feed, target, course.expected_lsn, lambda _lsn: None)
        except TargetFailed:
            to_its_end = target.kind == "immediate" and ended_at_consistency(server)
            if not to_its_end:
                raise
        else:
            _finished(server, progress)
    if to_its_end:
        # All of its log is replayed: a recovery without a target adds nothing to that.
        own = WalFeed(_histories(read), facts.wal_segment_size)
        alone = NO_TARGET | {"recovery_target_timeline": "current"} | dict(settings)
        with PrivateServer(installation, path, account, own, alone) as server:
            reached = recover(server, own, RecoveryTarget(), None, lambda _lsn: None)
            _finished(server, progress)
    tree = Tree(Places(path, {}, frozenset()), account)
    tree.replace(path, AUTO_CONF, without_recovery(auto_conf(path)))
    # It holds the command line of the private server, which `pg_ctl restart` would use again.
    for name in ("postmaster.opts", PID_FILE, RECOVERY_SIGNAL):
        (path / name).unlink(missing_ok=True)
    tree.sync_root()
    return reached


def _finished(server: PrivateServer, progress: Progress) -> None:
    for text in differing_collations(server):
        progress.note(text)
    server.stop()


def differing_collations(server: PrivateServer) -> list[str]:
    """What to know where this host's collations are of other versions than the source's."""
    connection = server.connect()
    if connection is None:
        return []
    with connection:
        rows = connection.execute(
            "SELECT datname, datcollversion, pg_database_collation_actual_version(oid)"
            " FROM pg_database"
            " WHERE datcollversion <> pg_database_collation_actual_version(oid)"
        ).fetchall()
    return [
        f"database {name} was sorted by collation version {old}, this host has {new}: run REINDEX"
        f" DATABASE and ALTER DATABASE ... REFRESH COLLATION VERSION before you trust its indexes"
        for name, old, new in rows
    ]


def _histories(read: Read) -> Read:
    """Of the log nothing but where timelines come from, so that a new one gets a free number."""
    return lambda name: read(name) if kind_of(name) is Kind.HISTORY else None


def _beside_own(read: Read, wal: Path) -> Read:
    """Reads what the base backup brought with it from the log only where the log may know more.

    That is the last of it: a standby's backup ends in the middle of a segment. What retention has
    removed, or what is older than the log, the server finds in its own directory when told that
    nobody else has it.
    """
    own = {file.name for file in wal.iterdir() if file.is_file()}
    last = max((name for name in own if "." not in name), default="")

    def beside(name: str) -> bytes | None:
        if name in own and name != last:
            return None
        try:
            return read(name)
        except DamagedData:
            if name not in own:
                raise
            return None

    return beside


def _counted(read: Read, progress: Progress) -> Read:
    def counted(name: str) -> bytes | None:
        content = read(name)
        progress.advance(len(content or b""))
        return content

    return counted


def auto_conf(path: Path) -> str:
    """The settings of `ALTER SYSTEM` as they are there; empty where there are none."""
    try:
        return (path / AUTO_CONF).read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
