"""Between which moments a cluster can be recovered, and what is missing of its write-ahead log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cellarer.domain.continuity import Continuity, Gap, Reach, Window
from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import RestorePoint, WalRange
from cellarer.domain.wal import Kind, end_of_segment, history_name, lsn_text, parse_name
from cellarer.errors import CellarerError, DamagedData
from cellarer.vault import format as layout
from cellarer.vault.ledger import LedgerEntry
from cellarer.vault.log_inventory import named, removals, wanted
from cellarer.vault.log_reader import LogReader, systems
from cellarer.vault.vault import Vault

ReadLog = Callable[[Vault, str], LogReader]
"""Opens the WAL of one cluster; see `bootstrap.open_log_reader`."""


MISSING = frozenset({"wal-gap", "wal-gap-passed", "wal-history-gone"})
"""The findings that say that some of the log is not there."""

_COMPARED = 8
"""Segments of each timeline that are compared, with two small requests to each replica."""


@dataclass(frozen=True)
class RecoveryWindow:
    """What there is of one timeline of a cluster.

    `source` is the one whose base backups are of this cluster, "" where there are none. `since` is
    the first moment that can be recovered, None without a base backup; `until` is when the last of
    it was stored, None where that is gone. Both are times of writers' clocks.
    """

    source: str
    system: str
    since: datetime | None
    until: datetime | None
    window: Window


@dataclass(frozen=True)
class Log:
    """The WAL of one cluster, with its base backups, oldest first as they were committed.

    `reader` is what it was read with, and gives the files themselves.
    """

    reader: LogReader
    continuity: Continuity
    bases: Sequence[tuple[RestorePoint, WalRange]]
    windows: Sequence[RecoveryWindow]

    @property
    def system(self) -> str:
        """The system identifier of the cluster."""
        return self.reader.system

    def reach(self, wal: WalRange) -> Reach | None:
        """How far a base backup leads, on the newest timeline; None where nothing says how.

        It holds itself what it needs up to its end.
        """
        target = self.continuity.newest_timeline(wal.timeline)
        try:
            return self.continuity.reach(wal.timeline, wal.stop_lsn, target)
        except ValueError:
            return None


def read_logs(vault: Vault, points: Sequence[RestorePoint], read_log: ReadLog) -> list[Log]:
    """The WAL of every cluster that the vault has some of; `points` are newest first.

    That of which too much is damaged is left out, and told of in `vault.unreadable`. Raises
    `VaultUnreachable`.
    """
    found = []
    for system in systems(vault):
        try:
            found.append(_log(read_log(vault, system), points))
        except DamagedData as error:
            vault.unreadable[layout.wal_prefix(system)] = error
    return found


def look_at_logs(logs: Iterable[Log]) -> list[Finding]:
    """What `doctor` and `status` say of gaps, and of WAL that leads nowhere."""
    logs = list(logs)
    return [finding for log in logs for finding in _look_at(log)] + _look_at_clusters(logs)


def _look_at_clusters(logs: Sequence[Log]) -> list[Finding]:
    """Sources whose base backups are of several clusters."""
    found: dict[str, set[str]] = {}
    for log in logs:
        for point, wal in log.bases:
            found.setdefault(point.source, set()).add(wal.system)
    return [
        Finding(
            "wal-other-cluster",
            "warning",
            f"sources.{source}",
            f"its base backups are of several clusters: {', '.join(sorted(systems))}",
            "a restore takes the newest unless a point is named: correct the dsn if it leads to "
            "another server than is meant; all is well if the server was made anew",
        )
        for source, systems in found.items()
        if len(systems) > 1
    ]


def look_for_conflicts(vault: Vault, read_log: ReadLog) -> list[Finding]:
    """Whether the replicas hold the same WAL: of each timeline its history and its last segments.

    While replicas are parted from each other, two servers can store different WAL under the same
    name, each on those that it reaches.
    """
    findings = []
    for system in systems(vault):
        reader = read_log(vault, system)
        names = sorted(name for name in reader.names() if parse_name(name).kind is Kind.SEGMENT)
        recent = [n for timeline in {n[:8] for n in names} for n in _last(names, timeline)]
        recent += [n for n in reader.names() if parse_name(n).kind is Kind.HISTORY]
        for name in sorted(recent):
            found = reader.contents(name)
            if len(set(found.values())) > 1:
                findings.append(
                    Finding(
                        "wal-conflict",
                        "error",
                        f"wal.{system}",
                        f"{name} is not the same WAL on {', '.join(sorted(found))}",
                        "two servers stored it, each where it got to: find out which of them is "
                        "the right one, delete what the other stored from the store, and set "
                        "vault.write_quorum to more than half of the replicas",
                    )
                )
    return findings


def _last(names: Sequence[str], timeline: str) -> Sequence[str]:
    return [name for name in names if name.startswith(timeline)][-_COMPARED:]


def wal_debts(vault: Vault, entries: Sequence[LedgerEntry]) -> Mapping[str, int]:
    """Replica -> how many files of WAL it lacks that another one has; pieces do not count.

    A replica that was late gets pieces when their segment is whole.
    """
    listings = vault.replicas.listings(layout.WAL_PREFIX)
    everything = {key for found in listings.values() for key in found}
    needed = {key for key in wanted(everything, removals(entries)) if not _is_piece(key)}
    return {name: len(needed - found.keys()) for name, found in listings.items()}


def _log(reader: LogReader, points: Sequence[RestorePoint]) -> Log:
    continuity, names = reader.continuity(), sorted(reader.names())
    bases = [(p, p.wal) for p in points if p.wal is not None and p.wal.system == reader.system]
    bases.reverse()
    source = bases[-1][0].source if bases else ""
    windows = []
    for window in continuity.windows:
        own = [n for n in names if int(n[:8], 16) == window.timeline and _is_wal(n)]
        since = _since(reader, window, bases, own, continuity.segment_bytes)
        until = _stored(reader, own[-1:])
        if since is not None and until is not None:
            until = max(since, until)  # of two clocks; a base backup holds the log up to its end
        windows.append(RecoveryWindow(source, reader.system, since, until, window))
    return Log(reader, continuity, bases, windows)


def _since(
    reader: LogReader,
    window: Window,
    bases: Sequence[tuple[RestorePoint, WalRange]],
    names: Sequence[str],
    segment_bytes: int,
) -> datetime | None:
    """The end of the oldest base backup that leads on; of a timeline without one, when it began.

    It holds its own log up to the end of a segment; of an older one what follows was removed.
    """
    own = [
        point
        for point, wal in bases
        if wal.timeline == window.timeline
        and end_of_segment(wal.stop_lsn, segment_bytes) >= window.from_lsn
    ]
    if own:
        return min(point.time + timedelta(seconds=point.seconds) for point in own)
    earlier = any(wal.timeline < window.timeline for _, wal in bases)
    return _stored(reader, names[:1]) if earlier else None


def _stored(reader: LogReader, names: Sequence[str]) -> datetime | None:
    for name in names:
        try:
            return reader.header(name).stored
        except CellarerError:
            return None  # it is damaged, as a scrub tells; the window is there all the same
    return None


def _look_at(log: Log) -> list[Finding]:
    subject = f"wal.{log.system}"
    if not log.bases:
        return [
            Finding(
                "wal-without-base",
                "warning",
                subject,
                "there is write-ahead log of this cluster, and no base backup to recover with it",
                "back up a source of kind postgres_base of the same server",
            )
        ]
    point, wal = log.bases[-1]
    reach = log.reach(wal)
    findings = [
        Finding(
            "wal-history-gone",
            "warning" if wal.timeline >= window.window.timeline else "error",
            subject,
            f"{history_name(window.window.timeline)} is missing on every replica, and there is "
            "write-ahead log of that timeline: nothing leads into it from the one before",
            "while the server has the file in pg_wal, `cellarer wal push` stores it again; else "
            "take a base backup now, which needs nothing of before",
        )
        for window in log.windows
        if window.window.timeline not in log.continuity.histories
        and any(wal.timeline < window.window.timeline for _, wal in log.bases)
    ]
    if reach is None:
        findings.append(
            Finding(
                "wal-timeline-unknown",
                "error",
                subject,
                f"nothing says how the newest timeline comes from that of {point.id}",
                "push the missing .history file from the server's pg_wal, or take a base backup",
            )
        )
    elif reach.gap is not None:
        findings.append(
            Finding(
                "wal-gap",
                "error",
                subject,
                f"the newest base backup {point.id} leads to {lsn_text(reach.lsn)} only: "
                f"{_range(reach.gap.first, reach.gap.last)} is missing, and more lies behind it",
                "while the server has it in pg_wal, `cellarer wal push` stores it; else take a "
                "base backup now, which needs nothing of before",
            )
        )
    findings += [
        Finding(
            "wal-gap-passed",
            "warning",
            subject,
            f"{_range(gap.first, gap.last)} is missing: moments behind it, up to the next base "
            "backup, cannot be recovered",
            "while the server has it in pg_wal, `cellarer wal push` stores it; else it goes with "
            "its base backup, by retention",
        )
        for window in log.windows
        for gap in window.window.gaps
        if gap.to_lsn > min(wal.stop_lsn for _, wal in log.bases) and not _same(gap, reach)
    ]
    return findings


def _same(gap: Gap, reach: Reach | None) -> bool:
    """Whether this is the gap that ends the newest base backup's reach."""
    told = reach.gap if reach else None
    return told is not None and told.first == gap.first


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _is_wal(name: str) -> bool:
    return parse_name(name).kind in (Kind.SEGMENT, Kind.PIECE)


def _is_piece(key: str) -> bool:
    found = named(key)
    return found is not None and found[1].kind is Kind.PIECE
