"""How far the log of a source is in the vault, asked of the replicas and of the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cellarer.domain.continuity import Continuity, Gap
from cellarer.domain.wal import SEGMENT_BYTES, Segment
from cellarer.domain.wal_health import StreamReport, lag
from cellarer.vault.log import LogReader
from cellarer.wal.upstream import Upstream


@dataclass(frozen=True)
class WalStatus:
    """One source. `last_segment` is the newest that is whole in the vault.

    `lag_bytes` is what the server has flushed and the vault lacks, `lag_seconds` for how long some
    of that has been waiting; None where nobody can tell.
    """

    last_segment: str | None
    lag_seconds: float | None
    lag_bytes: int | None
    slot: str | None
    gaps: Sequence[Gap]
    system: str = ""
    timeline: int | None = None
    streaming: bool = False
    held_bytes: int = 0
    spool_bytes: int = 0
    segment_bytes: int = SEGMENT_BYTES


def standing(
    report: StreamReport | None,
    upstream: Upstream,
    open_log: Callable[[str], LogReader],
    now: datetime,
) -> WalStatus:
    """Raises `SourceFailed` where the server does not answer, and what the vault raises."""
    identity, _ = upstream.identify()
    observed = upstream.observe("", identity.timeline)
    upstream.close()
    there = open_log(identity.system).continuity()
    size = identity.segment_bytes
    stored = stored_lsn(there, identity.timeline)
    if report is not None and report.system == identity.system:
        # Zeros at the end of what was flushed are stored without showing.
        stored = max(stored, report.stored_lsn or 0)
    waiting = max(observed.flush_lsn - stored, 0)
    slot = observed.slot
    return WalStatus(
        last_segment=last_segment(there, size),
        lag_seconds=0.0 if not waiting else _seconds(report, now),
        lag_bytes=waiting,
        slot=slot.status if slot else None,
        gaps=[gap for window in there.windows for gap in window.gaps],
        system=identity.system,
        segment_bytes=size,
        timeline=identity.timeline,
        streaming=bool(report and report.streaming),
        held_bytes=observed.held_bytes,
        spool_bytes=report.spool_bytes if report else 0,
    )


def standing_without_server(report: StreamReport | None, reader: LogReader | None) -> WalStatus:
    """What can be told while the server does not answer: what is stored, not what is missing."""
    if reader is None:
        return WalStatus(None, None, None, None, ())
    there = reader.continuity()
    return WalStatus(
        last_segment=last_segment(there, there.segment_bytes),
        lag_seconds=None,
        lag_bytes=None,
        slot=None,
        gaps=[gap for window in there.windows for gap in window.gaps],
        system=reader.system,
        timeline=report.timeline if report else None,
        spool_bytes=report.spool_bytes if report else 0,
    )


def stored_lsn(there: Continuity, timeline: int) -> int:
    """Up to where log of a timeline is stored, gaps before that or not."""
    window = there.window(timeline)
    return window.to_lsn if window else 0


def last_segment(there: Continuity, segment_bytes: int) -> str | None:
    """The newest whole segment, of the newest timeline that has one."""
    newest = [Segment(line, max(numbers)) for line, numbers in there.present.items() if numbers]
    return max(newest).name(segment_bytes) if newest else None


def _seconds(report: StreamReport | None, now: datetime) -> float | None:
    """For how long something has been waiting; of what came since the last look, since then."""
    if report is None:
        return None
    if report.oldest_unstored is not None:
        return lag(report, now).total_seconds()
    return max((now - report.seen).total_seconds(), 0.0)
