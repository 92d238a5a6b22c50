"""Restores a base backup into a data directory, and recovers it to a moment by replaying WAL."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cellarer.domain.sightings import loss_seconds, moment_held
from cellarer.domain.wal import parse_lsn
from cellarer.errors import CellarerError, TargetFailed, ToolMissing, UsageError
from cellarer.ports import Outlook, PointReader, Progress, Restored, phase
from cellarer.postgres.account import Account, service_account
from cellarer.postgres.basebackup import CONTROL_PATH, TABLESPACE_MAP_PATH, BackupFacts, read_facts
from cellarer.postgres.binaries import Installation, server_for
from cellarer.postgres.data_directory import CONTROL_FILE
from cellarer.postgres.private_server import sweep_private_server
from cellarer.postgres.recovering import Reached
from cellarer.postgres.recovery_settings import (
    AUTO_CONF,
    NO_TARGET,
    RECOVERY_SIGNAL,
    STANDBY_SIGNAL,
    target_settings,
    with_recovery,
)
from cellarer.targets.durable_files import Syncer, bring_up_to_date, open_file
from cellarer.targets.ground import MARK, Mark, examine, refuse_no_room
from cellarer.targets.places import Placed, Places, places
from cellarer.targets.recovery import Course, auto_conf, recover_here
from cellarer.targets.tree import Tree

_FILE_MODES = 0o640
_SERVER_PROGRAMS = ("postgres", "pg_controldata")


class PgdataTarget:
    """Writes a base backup below `path`, with its tablespaces, and recovers it on `course`.

    With `delta` the directory may hold an older or newer state of the same system: only what
    differs is written. `moved` leads from tablespaces to new directories. With `standby` nothing is
    recovered: the server that is started there goes on replaying what comes. Without `recovers`
    nothing is either: the server recovers when it is started.
    """

    def __init__(
        self,
        path: Path,
        course: Course,
        moved: Mapping[str, Path],
        jobs: int,
        *,
        delta: bool = False,
        standby: bool = False,
        recovers: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path.absolute()
        self._course = course
        self._moved = moved
        self._jobs = jobs
        self._delta = delta
        self._standby = standby
        self._recovers = recovers and not standby
        self._settings = settings or {}
        self._overwrite = False

    def prepare(self, overwrite: bool) -> None:
        """Say whether what is there may be replaced."""
        self._overwrite = overwrite

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        """What would be read and replaced. Raises what a restore would refuse."""
        if only:
            raise UsageError(
                "a base backup is restored as a whole",
                hint="leave out --only, and copy what you need from the recovered server",
            )
        facts = read_facts(reader)
        _, files, occupied = self._examined(reader, facts)
        read_bytes = sum(placed.entry.size_bytes for placed in files)
        return Outlook(read_bytes, tuple(occupied), as_verified=not occupied)

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        """Write the files, then recover. Raises `TargetFailed` and `DamagedData`.

        The control file is the last to be written: what an interrupted restore leaves is started
        by no server, and finished by the next run with `delta`.
        """
        began = time.monotonic()
        facts = read_facts(reader)
        where, files, occupied = self._examined(reader, facts)
        account = account_for(self._path)
        try:
            written = _Writing(reader, facts, where, account, progress, self._jobs).write(
                files, compare=self._delta and bool(occupied)
            )
            self._set_up(facts, where, account)
            _finish(reader, where, account)
        except OSError as error:
            raise _failure(self._path, error) from error
        reached = self._recover(facts, account, progress) if self._recovers else None
        if reached is None:
            return Restored(written, time.monotonic() - began, "")
        return Restored(
            written,
            time.monotonic() - began,
            reached.text,
            reached.lsn,
            reached.next_xid,
            self._loss(reached, progress),
        )

    def _loss(self, reached: Reached, progress: Progress) -> float | None:
        """What of the source is not there, as far as that is known; recovered it is in any case."""
        lsn = parse_lsn(reached.lsn)
        try:
            held = moment_held(reached.time, self._course.seen_before(lsn))
        except CellarerError as error:
            progress.note(f"how much is lost cannot be told: {error}")
            return None
        return loss_seconds(self._course.newest, held, lsn)

    def _examined(
        self, reader: PointReader, facts: BackupFacts
    ) -> tuple[Places, list[Placed], list[str]]:
        # What a killed restore left running is none of a server that anybody uses.
        sweep_private_server(self._path)
        where = places(self._path, facts, self._moved)
        files = where.files(reader.entries())
        occupied = examine(where, facts, delta=self._delta, overwrite=self._overwrite)
        refuse_no_room(where, files, self._course.replay_bytes, map(Path, occupied))
        return where, files, occupied

    def _set_up(self, facts: BackupFacts, where: Places, account: Account) -> None:
        """What tells the server to recover, and how far."""
        course = self._course
        wanted = dict(NO_TARGET)
        if not self._standby:
            wanted = target_settings(course.target, course.timeline, "promote")
        if course.restore_command:
            wanted["restore_command"] = course.restore_command
        tree = Tree(where, account)
        if where.outside:
            tree.replace(self._path, TABLESPACE_MAP_PATH, where.tablespace_map())
        tree.replace(self._path, AUTO_CONF, with_recovery(auto_conf(self._path), wanted))
        tree.replace(self._path, STANDBY_SIGNAL if self._standby else RECOVERY_SIGNAL, "")

    def _recover(self, facts: BackupFacts, account: Account, progress: Progress) -> Reached | None:
        installation = installation_for(facts)
        if installation is None:
            progress.note(
                f"no programs of PostgreSQL {facts.major} are here: recovery to"
                f" {self._course.target.text} happens when the server is started for the first time"
            )
            return None
        title = f"recovering to {self._course.target.text}"
        with phase(progress, title, self._course.replay_bytes or None):
            return recover_here(
                self._path, installation, account, self._course, facts, self._settings, progress
            )


def installation_for(facts: BackupFacts) -> Installation | None:
    """The programs of exactly the source's major version, which alone can recover its files."""
    try:
        found = server_for(facts.major)
    except ToolMissing:
        return None
    return found if found.major == facts.major and found.has(_SERVER_PROGRAMS) else None


def account_for(path: Path) -> Account:
    """Who shall own a data directory: its owner, or else whoever runs servers here."""
    if os.geteuid() == 0 and path.is_dir():
        status = path.stat()
        if status.st_uid != 0:
            return Account(str(status.st_uid), status.st_uid, status.st_gid)
    return service_account()


class _Writing:
    """Writes the files of one restore, several at once."""

    def __init__(
        self,
        reader: PointReader,
        facts: BackupFacts,
        where: Places,
        account: Account,
        progress: Progress,
        jobs: int,
    ) -> None:
        self._reader = reader
        self._facts = facts
        self._where = where
        self._tree = Tree(where, account)
        self._progress = progress
        self._jobs = jobs

    def write(self, files: Sequence[Placed], *, compare: bool) -> int:
        """Everything but the control file, on the disk when this returns; the bytes written."""
        directories: dict[Path, set[str]] = defaultdict(set)
        for root, path in self._where.directories(self._facts):
            directories[root].add(path)
        for placed in files:
            if "/" in placed.path:
                directories[placed.root].add(placed.path.rpartition("/")[0])
        self._tree.make_roots()
        self._mark()
        self._tree.clear(files if compare else (), directories)
        self._tree.make_directories(directories)
        with Syncer() as syncer, ThreadPoolExecutor(self._jobs, "restore") as writers:
            work = [writers.submit(self._write, placed, syncer) for placed in files]
            try:
                written = sum(one.result() for one in work)
            except BaseException:
                writers.shutdown(wait=True, cancel_futures=True)
                raise
        self._tree.sync()
        return written

    def _mark(self) -> None:
        """From here on no server starts what is there, until all of it is new."""
        data = self._where.data
        roots = tuple(str(root) for root in self._where.roots)
        mark = Mark(self._facts.system_identifier, self._reader.point, roots)
        self._tree.replace(data, MARK, mark.to_json())
        (data / CONTROL_FILE).unlink(missing_ok=True)
        if (data / "global").is_dir() and not (data / "global").is_symlink():
            with self._tree.open(data, "global") as directory:
                os.fsync(directory)

    def _write(self, placed: Placed, syncer: Syncer) -> int:
        parent, _, name = placed.path.rpartition("/")
        with self._tree.open(placed.root, parent) as directory:
            descriptor = open_file(directory, name)
        try:
            self._tree.own(descriptor)
            mode = placed.entry.mode
            os.fchmod(descriptor, 0o600 if mode is None else mode & _FILE_MODES)
            written = bring_up_to_date(
                descriptor, placed.entry, self._reader, syncer, self._progress.advance
            )
        except BaseException:
            os.close(descriptor)
            raise
        syncer.finish(descriptor)
        return written


def _finish(reader: PointReader, where: Places, account: Account) -> None:
    """The control file, and then the end of the mark."""
    tree = Tree(where, account)
    tree.replace(where.data, CONTROL_FILE, b"".join(reader.read(CONTROL_PATH)))
    (where.data / MARK).unlink()
    tree.sync_root()


def _failure(path: Path, error: OSError) -> TargetFailed:
    return TargetFailed(
        f"the restore into {path} broke off",
        detail=f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}",
        hint="No server starts what is there. Remove the cause, then run again with --delta: it"
        " goes on where this one ended.",
    )
