"""What files of PostgreSQL's log say of themselves: the cluster, the position, the size."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from cellarer.errors import SourceFailed

SEGMENT = re.compile(r"[0-9A-F]{24}")
PARTIAL = re.compile(r"[0-9A-F]{24}\.partial")
HISTORY = re.compile(r"[0-9A-F]{8}\.history")
BACKUP = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")

PAGE_BYTES = 8192
"""The block size of WAL in every build that is distributed; the header is checked for it."""

# XLogLongPageHeaderData of access/xlog_internal.h: magic, info, timeline, address, remaining
# length, padding, system identifier, segment size, block size. The same in 15 to 18.
_LONG_HEADER = struct.Struct("=HHIQIxxxxQII")
_IS_LONG = 0x0002


@dataclass(frozen=True)
class SegmentHeader:
    """The first page's header: `address` is the position of the segment's first byte."""

    system: str
    address: int
    segment_bytes: int


def named_like_wal(name: str) -> bool:
    """Whether PostgreSQL calls files so that it archives."""
    return any(pattern.fullmatch(name) for pattern in (SEGMENT, PARTIAL, HISTORY, BACKUP))


def is_segment(name: str) -> bool:
    """Whether this is a segment's name, complete or a timeline's last, partial one."""
    return bool(SEGMENT.fullmatch(name) or PARTIAL.fullmatch(name))


def segment_header(data: bytes, name: str) -> SegmentHeader:
    """The header of a segment's bytes. Raises `SourceFailed` where there is none."""
    if len(data) >= _LONG_HEADER.size:
        _, info, _, address, _, system, size, page = _LONG_HEADER.unpack_from(data)
        if info & _IS_LONG and page == PAGE_BYTES and size and not size & (size - 1):
            return SegmentHeader(str(system), address, size)
    raise SourceFailed(
        f"{name} is not a segment of PostgreSQL's log",
        detail="it does not begin with the header of one",
        hint="archive what PostgreSQL names as %p, and nothing else",
    )


def checked_segment(data: bytes, name: str) -> SegmentHeader:
    """The header of a whole segment, which fits its name. Raises `SourceFailed`."""
    header = segment_header(data, name)
    number = int(name[8:16], 16) * (0x100000000 // header.segment_bytes) + int(name[16:24], 16)
    if len(data) != header.segment_bytes or header.address != number * header.segment_bytes:
        raise SourceFailed(
            f"{name} is not the segment that it is called",
            detail=f"{len(data)} bytes, from position {header.address:X} on",
            hint="it was cut off or renamed; archive what PostgreSQL names as %p",
        )
    return header


def control_system(data_directory: Path) -> str | None:
    """The system identifier of the cluster in a data directory, None where there is no cluster."""
    try:
        with (data_directory / "global" / "pg_control").open("rb") as file:
            return str(struct.unpack("=Q", file.read(8))[0])
    except (OSError, struct.error):
        return None


def data_end(path: Path, start: int) -> int:
    """Where the log in a segment's file ends that is being received; the rest of it is zeros.

    Every page of log begins with a header, so the first without one was never written. Looked for
    from `start` on. Zeros at the very end of what was written cannot be told from the rest, and
    need not be: a reader fills up with zeros.
    """
    end, at = start, start - start % PAGE_BYTES
    with path.open("rb") as file:
        file.seek(at)
        while page := file.read(PAGE_BYTES):
            written = len(page.rstrip(b"\0"))
            if not written:
                break
            end, at = max(end, at + written), at + len(page)
    return end
