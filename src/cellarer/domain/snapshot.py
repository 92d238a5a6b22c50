"""What a backup leaves behind: snapshots, restore points and their proofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

CLOCK_TOLERANCE = timedelta(minutes=5)
"""Clocks that are kept by NTP differ by less; what is dated later than this was dated wrongly."""


def ahead(time: datetime, now: datetime) -> timedelta | None:
    """How far a time lies in the future, None where clocks that are right can explain it."""
    return time - now if time - now > CLOCK_TOLERANCE else None


def behind_the_clock(points: Sequence[RestorePoint], now: datetime) -> dict[str, timedelta]:
    """Points that were committed after one of the same source that is dated later, and by how much.

    `points` come newest first by their commits; what is dated in the future does not count. A clock
    went back, or was set right.
    """
    found: dict[str, timedelta] = {}
    past = [point for point in points if not ahead(point.time, now)]
    for source in {point.source for point in past}:
        own = [point for point in past if point.source == source]
        latest = max(own, key=lambda point: point.time)
        for point in own[: own.index(latest)]:
            if latest.time - point.time > CLOCK_TOLERANCE:
                found[point.id] = latest.time - point.time
    return found


def misdated(points: Sequence[RestorePoint], now: datetime) -> set[str]:
    """All points that were committed after one of the same source that is dated later.

    `points` come newest first by their commits; what is dated in the future does not count. Theirs
    is the wrong date, or that of the other.
    """
    found, latest = set(), dict[str, datetime]()
    for point in reversed([point for point in points if not ahead(point.time, now)]):
        before = latest.setdefault(point.source, point.time)
        if before - point.time > CLOCK_TOLERANCE:
            found.add(point.id)
        latest[point.source] = max(before, point.time)
    return found


class Proof(IntEnum):
    """How much is known about a restore point; each rung includes the ones below."""

    STORED = 0
    SCRUBBED = 1
    RESTORED = 2
    PROVEN = 3

    @property
    def word(self) -> str:
        """The rung as commands print it."""
        return self.name.lower()


@dataclass(frozen=True)
class Entry:
    """One named byte stream of a snapshot."""

    path: str
    kind: str
    size_bytes: int
    sum: str
    """Of its content: the name of the hash function, a colon, and the hash in hex."""
    mode: int | None = None
    mtime: datetime | None = None


@dataclass(frozen=True)
class WalRange:
    """The write-ahead log without which a base backup is not consistent: [start_lsn, stop_lsn).

    Recovery begins at its start; all that lies behind it leads to later times.
    """

    system: str
    timeline: int
    start_lsn: int
    stop_lsn: int


@dataclass(frozen=True)
class Check:
    """One thing a verification looked at."""

    name: str
    passed: bool
    expected: str
    found: str


@dataclass(frozen=True)
class RestorePoint:
    """A committed snapshot, as listings show it; readable without a reading key."""

    id: str
    source: str
    kind: str
    time: datetime
    seconds: float
    read_bytes: int
    added_bytes: int
    stored_bytes: int
    streams: int
    replicas: dict[str, str] = field(default_factory=dict)
    proof: Proof = Proof.STORED
    proof_time: datetime | None = None
    failed: str = ""
    """The first failed check of its last verification, if that failed and none has passed since."""
    behind: dict[str, str] = field(default_factory=dict)
    """Replicas that did not take part in the backup, with the reason of that time."""
    best_proof: Proof = Proof.STORED
    """The highest rung it ever reached, whatever was found since."""
    flaws: int = 0
    """How much of what was read was damaged already, as pages of a database are."""
    wal: WalRange | None = None
    """Of a base backup: what it needs of its cluster's write-ahead log."""

    @property
    def cluster(self) -> str:
        """The system identifier of the cluster that it is of; "" where it is of none."""
        return self.wal.system if self.wal else ""


@dataclass(frozen=True)
class ProofRecord:
    """The outcome of one verification, kept in the vault's ledger, signed.

    `loss_seconds` was measured on the recovered cluster: the time before the last that was known of
    the source whose changes it does not hold; None where nobody can tell.
    """

    point: str
    source: str
    proof: Proof
    passed: bool
    time: datetime
    seconds: float
    checks: tuple[Check, ...]
    loss_seconds: float | None = None
