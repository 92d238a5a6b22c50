"""How the continuous log of one source stands: what was seen, and what of it must not stay so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cellarer.domain.finding import Finding
from cellarer.domain.quantity import about_duration, about_size

SILENT_AFTER = timedelta(seconds=60)
"""A streamer that wrote nothing down for so long has ended, or hangs."""

LAG_MAY_BE = timedelta(minutes=5)
"""Without an objective for the lag of replication, log may wait so long before it is stored."""

TOLD_FOR = timedelta(hours=24)
"""What happened once, and is over, is told for a day."""

_HELD_SHARE = 0.5


@dataclass(frozen=True)
class Happened:
    """Something that is over and must not go unnoticed, such as a slot that was gone."""

    time: datetime
    message: str


@dataclass(frozen=True)
class StreamReport:
    """What a streamer last wrote down; positions are bytes of the log, sizes bytes.

    `oldest_unstored` is when the log that is not in the vault yet was first seen at the server,
    None while nothing is; `held_bytes` is what the server keeps for the slot, `slot_status` as the
    server calls it, empty where there is no slot; `full` says that receiving has paused.
    """

    source: str
    seen: datetime
    system: str = ""
    timeline: int = 0
    streaming: bool = False
    stored_lsn: int | None = None
    flush_lsn: int | None = None
    oldest_unstored: datetime | None = None
    slot: str = ""
    slot_status: str = ""
    safe_bytes: int | None = None
    held_bytes: int = 0
    spool_bytes: int = 0
    spool_limit_bytes: int = 0
    when_full: str = "hold"
    full: bool = False
    problem: str = ""
    hint: str = ""
    happened: tuple[Happened, ...] = ()


def lag(report: StreamReport, now: datetime) -> timedelta:
    """How old the oldest log is that is not in the vault; nothing on an idle server."""
    return max(now - report.oldest_unstored, timedelta()) if report.oldest_unstored else timedelta()


def findings(
    report: StreamReport | None,
    source: str,
    now: datetime,
    lag_may_be: timedelta = LAG_MAY_BE,
) -> list[Finding]:
    """What is wrong with a stream, or will be."""
    subject = f"sources.{source}"
    if report is None:
        message = "is not streamed: nothing was ever seen of a `cellarer wal stream`"
        hint = f"let a service run `cellarer wal stream {source}`"
        return [Finding("wal-not-streamed", "error", subject, message, hint)]
    found = [*_stream(report, subject, now, lag_may_be), *_slot(report, subject)]
    found += [
        Finding("wal-happened", "error", subject, f"{each.time:%Y-%m-%d %H:%M} UTC: {each.message}",
                "take a base backup where a gap is left; this is told for a day")
        for each in report.happened
        if now - each.time < TOLD_FOR
    ]  # fmt: skip
    return found


def _stream(
    report: StreamReport, subject: str, now: datetime, lag_may_be: timedelta
) -> list[Finding]:
    silent = now - report.seen
    if silent > SILENT_AFTER:
        message = f"nothing was heard of its stream for {about_duration(silent.total_seconds())}"
        hint = f"start `cellarer wal stream {report.source}` again: the server keeps log for it"
        return [Finding("wal-silent", "error", subject, message, hint)]
    found = []
    if report.problem:
        hint = report.hint or "see `cellarer doctor`"
        found.append(Finding("wal-problem", "error", subject, report.problem, hint))
    elif not report.streaming:
        message, hint = "is connecting to the server", "wait a moment"
        found.append(Finding("wal-connecting", "warning", subject, message, hint))
    waiting = lag(report, now)
    if waiting > lag_may_be:
        age = about_duration(waiting.total_seconds())
        message = f"log waits for {age} and is not in the vault"
        hint = "see which replica holds it up: `cellarer status`"
        found.append(Finding("wal-lag", "error", subject, message, hint))
    return found


def _slot(report: StreamReport, subject: str) -> list[Finding]:
    if not report.system:
        return []  # the server was not reached yet, which `problem` says
    if not report.slot_status:
        message = f"the slot {report.slot} is not there: the server keeps no log for us"
        hint = "`cellarer wal stream` makes it anew; what was removed meanwhile is a gap"
        return [Finding("wal-slot-absent", "error", subject, message, hint)]
    if report.slot_status in ("lost", "unreserved"):
        message = f"the slot {report.slot} is {report.slot_status}: log is removed unseen"
        hint = "raise max_slot_wal_keep_size, and let the stream catch up"
        return [Finding("wal-slot-lost", "error", subject, message, hint)]
    held = report.held_bytes
    bounds = [report.spool_limit_bytes]
    if report.safe_bytes is not None:
        bounds.append(held + report.safe_bytes)
    bound = min(bounds)
    if report.full or held > _HELD_SHARE * bound:
        gives_way = {
            "hold": "the server keeps it until its disk is full",
            "drop-slot": "then the slot is dropped, and a gap is left",
        }[report.when_full]
        message = (
            f"the server holds {about_size(held)} of log for us, of {about_size(bound)} at most"
        )
        hint = f"let the vault take it: see `cellarer status`; else {gives_way}"
        return [Finding("wal-held", "error", subject, message, hint)]
    return []
