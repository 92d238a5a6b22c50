"""Base backups, their WAL, and data directories to recover them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cellarer.bootstrap.sources import PGDATA, jobs
from cellarer.bootstrap.vaults import open_log_reader, state_directory
from cellarer.bootstrap.wal import command_of_recovery
from cellarer.config import Config
from cellarer.domain.continuity import Continuity
from cellarer.domain.recovery_course import (
    Base,
    BaseWal,
    WalReach,
    proof_end,
    wal_reach,
    wanted_history,
)
from cellarer.domain.recovery_target import LATEST, RecoveryTarget
from cellarer.domain.sightings import Sighting
from cellarer.domain.snapshot import RestorePoint
from cellarer.domain.wal import Kind, Segment, kind_of, lsn_text, parse_lsn, segment_at
from cellarer.errors import DamagedData, UsageError, WalAbsent
from cellarer.flows.branch import OwnLog, conflict
from cellarer.flows.recovery import RecoveryPlan, plan_recovery
from cellarer.ports import PointReader, Target
from cellarer.postgres.basebackup import WAL, BackupFacts, read_facts
from cellarer.targets.pgdata import PgdataTarget
from cellarer.targets.recovery import Course
from cellarer.vault.log import LogReader, systems
from cellarer.vault.log_sightings import Sightings

if TYPE_CHECKING:
    from cellarer.vault.vault import Vault

PROOF_REPLAY_BYTES = 1 << 30
"""So much WAL is replayed behind a base backup that is proven: the first minutes or hours of it."""


def plan(
    vault: Vault, source: str, wanted: str, target: RecoveryTarget, now: datetime
) -> RecoveryPlan:
    """See `flows.recovery.plan_recovery`."""
    return plan_recovery(vault, source, wanted, target, now, read_base, own_log, open_log_reader)


def directory_in(text: str) -> Path:
    """The directory that `pgdata:PATH` names. Raises `UsageError` where it names none."""
    path = text.removeprefix(PGDATA)
    if not path:
        raise UsageError("the target names no directory", hint="write it as pgdata:/PATH")
    return Path(path)


def open_data_directory(
    vault: Vault,
    directory: Path,
    plan: RecoveryPlan,
    target: RecoveryTarget,
    moved: Mapping[str, Path],
    config: Config,
    *,
    delta: bool,
    recovers: bool,
) -> Target:
    """A data directory, to be recovered as planned.

    Without `recovers` only the files are written: the server recovers when it is started, and asks
    this program, with this config, for the WAL.
    """
    sightings = Sightings(plan.log, plan.history, plan.base.segment_bytes) if plan.log else None
    seen = sightings.before(plan.reach.lsn) if sightings and target.kind == LATEST else None
    read: Read = _reader_of(plan.log, plan.reach.timeline) if plan.log else _no_log
    if plan.conflict:
        read = _taken_timelines(open_log_reader(vault, plan.base.system))
    last = plan.reach.last
    if target.kind == "immediate":
        read, last = _own_end(read, plan.base), None
    course = Course(
        target,
        str(plan.reach.timeline),
        read,
        command_of_recovery(config, plan.base.system, state_directory() / "wal-spool"),
        last,
        _at_least(plan.expected_lsn, seen),
        plan.replay_bytes,
        sightings.newest() if sightings else None,
        sightings.before if sightings else _nothing_seen,
    )
    return PgdataTarget(directory, course, moved, jobs(), delta=delta, recovers=recovers)


def read_base(point: RestorePoint, reader: PointReader) -> Base:
    """What a base backup says of itself, as far as choosing needs it."""
    facts = read_facts(reader)
    return Base(
        **vars(_wal_of(facts)),
        point=point,
        system=facts.system_identifier,
        finished_at=datetime.fromisoformat(facts.finished_at),
    )


def own_log(reader: PointReader) -> OwnLog:
    """What a base backup holds of the log itself."""
    held = {entry.path for entry in reader.entries()}

    def read(name: str) -> bytes | None:
        path = f"{WAL}/{name}"
        return b"".join(reader.read(path)) if path in held else None

    return read


def _wal_of(facts: BackupFacts) -> BaseWal:
    return BaseWal(
        timeline=facts.timeline,
        start_lsn=parse_lsn(facts.start_lsn),
        stop_lsn=parse_lsn(facts.stop_lsn),
        segment_bytes=facts.wal_segment_size,
        # A primary begins another segment at the end of a backup, a standby cannot.
        whole_end=not facts.standby,
    )


Read = Callable[[str], bytes | None]
"""Gives a file of the log by its name; None for what is certain not to be there."""


def _no_log(_name: str) -> bytes | None:
    return None


_TAKEN = b"# taken\n"
"""For PostgreSQL, which asks only whether a timeline is there, to choose another for itself."""


def _taken_timelines(log: LogReader) -> Read:
    """Of a log that is of another branch nothing but which timelines it has."""
    names = log.names()

    def read(name: str) -> bytes | None:
        of_timeline = kind_of(name) is Kind.HISTORY and any(n[:8] == name[:8] for n in names)
        return _TAKEN if of_timeline else None

    return read


def _reader_of(log: LogReader, timeline: int) -> Read:
    """What there is of the log along a timeline."""

    def read(name: str) -> bytes | None:
        try:
            return log.read(name)
        except WalAbsent:
            return None
        except DamagedData:
            if kind_of(name) is not Kind.HISTORY or int(name[:8], 16) <= timeline:
                raise
            return _TAKEN

    return read


def _own_end(read: Read, base: BaseWal) -> Read:
    """For who goes to the end of the base backup: PostgreSQL looks behind it, and needs none of it.

    Retention may have removed that, as it does for base backups older than the window.
    """

    def up_to_its_end(name: str) -> bytes | None:
        try:
            return read(name)
        except DamagedData:
            if kind_of(name) is not Kind.SEGMENT:
                raise
            size = base.segment_bytes
            if Segment.parse(name, size).start(size) < base.own_end:
                raise
            return None

    return up_to_its_end


def course_of_proof(vault: Vault) -> Callable[[PointReader, BackupFacts], Course]:
    """How far a base backup is recovered when it is proven: as far as its WAL goes, to a bound."""

    def course(reader: PointReader, facts: BackupFacts) -> Course:
        if facts.system_identifier not in systems(vault):
            return Course(RecoveryTarget("immediate"), str(facts.timeline), _no_log, "")
        wal, log = _wal_of(facts), open_log_reader(vault, facts.system_identifier)
        there = log.continuity()
        other = conflict(wal, own_log(reader), log, there)
        if other:
            alone = RecoveryTarget("immediate")
            return Course(alone, str(facts.timeline), _no_log, "", conflict=other)
        return _proving(wal, log, there)

    return course


def _proving(wal: BaseWal, log: LogReader, there: Continuity) -> Course:
    """To the end of the WAL, on the newest timeline; before a gap, or at the bound, to the last
    segment before that, on the base backup's own.
    """
    size = wal.segment_bytes
    bound = wal.own_end + PROOF_REPLAY_BYTES

    def is_whole(reach: WalReach) -> bool:
        return reach.last is not None and reach.gap is None and reach.lsn <= bound

    newest = wanted_history(RecoveryTarget(), wal, there)
    own = wanted_history(RecoveryTarget("immediate"), wal, there)
    leading = [newest] if newest.leads_through(wal.timeline, wal.stop_lsn) else []
    ways = [(history, wal_reach(wal, history, there)) for history in (*leading, own)]
    history, reach = next((way for way in ways if is_whole(way[1])), ways[-1])
    sightings = Sightings(log, history, size)
    end = proof_end(wal, there, PROOF_REPLAY_BYTES)
    read: Read = _no_log
    target = RecoveryTarget("immediate")
    last = goal = None
    if reach.last is not None and is_whole(reach):
        target, read, last = RecoveryTarget(), _reader_of(log, history.timeline), reach.last
        begun = max(wal.stop_lsn, Segment.parse(last, size).start(size))
        goal = _at_least(lsn_text(begun), sightings.before(reach.lsn))
    elif end > wal.own_end:
        # A recovery stops at records: the last whole segment holds some.
        segment = segment_at(wal.timeline, end - 1, size)
        last, goal = segment.name(size), lsn_text(segment.start(size))
        target, read = RecoveryTarget("lsn", goal), _reader_of(log, history.timeline)
    # What was left out on purpose would not be lost; nor is it known what came after a fork.
    all_of_it = reach.lsn <= bound and history.timeline == newest.timeline
    return Course(
        *(target, str(history.timeline), read, "", last, goal),
        replay_bytes=max(min(reach.lsn, bound) - wal.stop_lsn, 0),
        newest=sightings.newest() if all_of_it else None,
        seen_before=sightings.before,
    )


def _at_least(lsn: str, sighting: Sighting | None) -> str:
    """How far WAL leads for certain: a segment may hold nothing but its beginning."""
    return lsn_text(max(parse_lsn(lsn), sighting.lsn)) if sighting else lsn


def _nothing_seen(_lsn: int) -> Sighting | None:
    return None
