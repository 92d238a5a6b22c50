"""What `doctor` asks the server of a source of log, and this host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from cellarer.domain.finding import Finding
from cellarer.domain.quantity import about_size
from cellarer.wal.upstream import Setting, Upstream, receiver_for

_ROOM_SEGMENTS = 8


def look_at_server(subject: str, upstream: Upstream, spool: Path | None) -> list[Finding]:
    """Findings of one source; `spool` is None where archive_command hands the log over.

    Raises `CellarerError` where the server cannot be asked.
    """
    settings = upstream.settings()
    found = [*_level(subject, settings)]
    if spool is None:
        return [*found, *_archiving(subject, settings)]
    identity, _ = upstream.identify()
    receiver_for(identity.version)
    found += _streaming(subject, settings)
    if not upstream.sees_receivers():
        message = "the role may not see how far its receiver is: only whole segments are stored"
        hint = "run on the server: grant pg_read_all_stats to ROLE"
        found.append(Finding("wal-privilege", "error", subject, message, hint))
    found += _room(subject, spool, _ROOM_SEGMENTS * identity.segment_bytes)
    slot = upstream.slot()
    kept = "makes its slot when it starts" if slot is None else f"has its slot: {slot.status}"
    message = f"cluster {identity.system} on timeline {identity.timeline}; the stream {kept}"
    return [*found, Finding("wal-server", "info", subject, message)]


def _level(subject: str, settings: dict[str, Setting]) -> Iterator[Finding]:
    if settings["wal_level"].value == "minimal":
        message = "wal_level is minimal: its log cannot bring a database back"
        hint = "set wal_level = replica, and restart the server"
        yield Finding("wal-level", "error", subject, message, hint)
    if settings["full_page_writes"].value == "off":
        message = "full_page_writes is off: a base backup with this log may come back torn"
        yield Finding("wal-level", "error", subject, message, "set full_page_writes = on")


def _streaming(subject: str, settings: dict[str, Setting]) -> Iterator[Finding]:
    kept = settings["max_slot_wal_keep_size"]
    if kept.value == "-1":
        message = (
            "max_slot_wal_keep_size is unset: while the vault takes nothing, the server keeps "
        )
        message += "log until its disk is full"
        hint = "watch `cellarer status`; or set it, and accept a gap instead"
        yield Finding("wal-keep-size", "info", subject, message, hint)
    if settings.get("idle_replication_slot_timeout", Setting("0", "s")).value != "0":
        message = "idle_replication_slot_timeout is set: a stream that stands still loses its slot"
        yield Finding("wal-slot-timeout", "warning", subject, message, "set it to 0")


def _archiving(subject: str, settings: dict[str, Setting]) -> Iterator[Finding]:
    mode, command = settings["archive_mode"].value, settings["archive_command"].value
    if mode == "off":
        message = "archive_mode is off: the server hands nothing over"
        hint = "set archive_mode = on, and restart the server"
        yield Finding("wal-archiving", "error", subject, message, hint)
    elif "wal push" not in command:
        message = "archive_command does not call `cellarer wal push`"
        hint = "set archive_command = 'cellarer --config FILE wal push \"%p\"'"
        yield Finding("wal-archiving", "error", subject, message, hint)
    elif settings["archive_timeout"].value == "0":
        message = "archive_timeout is unset: a segment waits until it is full, however long"
        yield Finding("wal-archiving", "warning", subject, message, "set archive_timeout = '60s'")


def _room(subject: str, spool: Path, wanted: int) -> Iterator[Finding]:
    place = next(each for each in (spool, *spool.parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        message = f"the disk of {spool} has {about_size(free)} left"
        hint = f"leave room for {about_size(wanted)} at least, or name another directory as spool"
        yield Finding("wal-spool", "error", subject, message, hint)
