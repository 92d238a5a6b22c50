"""Whether bytes are the file of write-ahead log that a name says, of the cluster that is meant."""

from __future__ import annotations

from cellarer.domain.wal import (
    FIRST_PAGE_BYTES,
    History,
    Kind,
    LogName,
    first_page,
    is_segment_size,
    parse_name,
)
from cellarer.errors import SourceFailed, UsageError


def checked_name(name: str) -> LogName:
    """A name taken apart. Raises `UsageError`."""
    try:
        return parse_name(name)
    except ValueError as error:
        raise UsageError(
            f"{name} is no file of write-ahead log",
            hint="name the file as PostgreSQL does: %p in archive_command, %f in restore_command",
        ) from error


def check_file(name: str, parsed: LogName, data: bytes, system: str) -> None:
    """Raises `SourceFailed` for what is no such file, `UsageError` for one of another cluster."""
    if parsed.kind is Kind.HISTORY:
        try:
            History.parse(parsed.timeline, data.decode())
        except ValueError as error:
            raise SourceFailed(f"{name} is no history of a timeline", detail=str(error)) from error
    elif parsed.kind is Kind.SEGMENT:
        if not is_segment_size(len(data)):
            raise SourceFailed(
                f"{name} is no whole segment of write-ahead log",
                detail=f"it has {len(data)} bytes; segments have 1 MiB to 1 GiB, a power of two",
                hint="see whether the disk of pg_wal is full or damaged",
            )
        check_page(parsed, data, system, len(data))
    elif parsed.start == 0 and parsed.kind is not Kind.BACKUP and len(data) >= FIRST_PAGE_BYTES:
        check_page(parsed, data, system)  # the beginning of a segment: a `.partial` or a piece


def check_page(parsed: LogName, data: bytes, system: str, segment_bytes: int = 0) -> None:
    """Look at the first page of a segment; raises as `check_file`."""
    page = first_page(data)
    if page is None:
        raise SourceFailed(
            f"{parsed.segment} does not begin as write-ahead log does",
            hint="see whether the disk of pg_wal is damaged; `pg_waldump` reads the file",
        )
    if page.system != system:
        raise UsageError(
            f"{parsed.segment} belongs to another cluster",
            detail=f"to that with the system identifier {page.system}, not to {system}",
            hint="archive each cluster by a config of its own; see `pg_controldata`",
        )
    size = segment_bytes or page.segment_bytes
    try:
        start = parsed.of(size).start(size)
    except ValueError:
        start = -1
    if page.segment_bytes != size or page.lsn != start:
        raise SourceFailed(
            f"{parsed.segment} holds other write-ahead log than its name says",
            detail=f"it says that it begins at {page.lsn:X}, in segments of {page.segment_bytes}",
            hint="see whether the disk of pg_wal is damaged; `pg_waldump` reads the file",
        )
