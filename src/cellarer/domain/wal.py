"""PostgreSQL's write-ahead log as names and numbers: segments, positions (LSN), timelines, files.

A position counts bytes from the beginning of all WAL. A *segment* is a file of `segment_bytes` of
it on one timeline. A *piece* is a part of a segment that is not complete yet.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

SEGMENT_BYTES = 16 << 20
"""The size of a segment unless `initdb --wal-segsize` said otherwise."""

SMALLEST_SEGMENT, LARGEST_SEGMENT = 1 << 20, 1 << 30
"""Bytes; the sizes are powers of two, by PostgreSQL's `IsValidWalSegSize`."""

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_NAME = re.compile(
    r"(?P<timeline>[0-9A-F]{8})(?:\.(?P<history>history)|(?P<rest>[0-9A-F]{16})"
    r"(?:\.(?:(?P<partial>partial)|(?P<at>[0-9A-F]{8})\.backup|"
    r"(?P<start>[0-9A-F]{8})-(?P<end>[0-9A-F]{8})))?)"
)
_SYSTEM = re.compile(r"[1-9][0-9]{0,19}")


def parse_lsn(text: str) -> int:
    """The position that PostgreSQL writes as `16/B374D848`. Raises `ValueError`."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"not a position in WAL: {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def lsn_text(lsn: int) -> str:
    """A position as `16/B374D848`, with all digits behind the slash, as PostgreSQL 19 writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:08X}"


def is_system(text: str) -> bool:
    """Whether this has the form of a system identifier: a cluster's, 64 bits in decimal."""
    return _SYSTEM.fullmatch(text) is not None and int(text) < 1 << 64


def is_segment_size(size_bytes: int) -> bool:
    """Whether segments can be so large."""
    power = size_bytes & (size_bytes - 1) == 0
    return power and SMALLEST_SEGMENT <= size_bytes <= LARGEST_SEGMENT


@dataclass(frozen=True, order=True)
class Segment:
    """One segment: its timeline, and its number from the beginning of all WAL."""

    timeline: int
    number: int

    def name(self, segment_bytes: int = SEGMENT_BYTES) -> str:
        """The name of its file, 24 hexadecimal digits."""
        high, low = divmod(self.number, (1 << 32) // segment_bytes)
        return f"{self.timeline:08X}{high:08X}{low:08X}"

    @classmethod
    def parse(cls, name: str, segment_bytes: int = SEGMENT_BYTES) -> Segment:
        """The segment with this file name. Raises `ValueError`."""
        found = parse_name(name)
        if found.kind is not Kind.SEGMENT:
            raise ValueError(f"not the name of a segment: {name!r}")
        return found.of(segment_bytes)

    def start(self, segment_bytes: int = SEGMENT_BYTES) -> int:
        """The position of its first byte."""
        return self.number * segment_bytes

    def end(self, segment_bytes: int = SEGMENT_BYTES) -> int:
        """The position behind its last byte."""
        return (self.number + 1) * segment_bytes

    def following(self) -> Segment:
        """The one after it on its timeline."""
        return Segment(self.timeline, self.number + 1)


def segment_at(timeline: int, lsn: int, wal_segment_size: int = SEGMENT_BYTES) -> Segment:
    """The segment that holds the byte at a position."""
    return Segment(timeline, lsn // wal_segment_size)


class Kind(Enum):
    """What a file of WAL is, by its name."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    BACKUP = "backup"
    HISTORY = "history"
    PIECE = "piece"


@dataclass(frozen=True)
class LogName:
    """A name taken apart. `segment` is that of the segment, "" for a history.

    `start` and `end` are the offsets in the segment of the bytes of a piece, [start, end).
    """

    kind: Kind
    timeline: int
    segment: str = ""
    start: int = 0
    end: int = 0

    def of(self, segment_bytes: int = SEGMENT_BYTES) -> Segment:
        """The segment that this is about. Raises `ValueError` where segments have another size."""
        high, low = int(self.segment[8:16], 16), int(self.segment[16:], 16)
        per_high = (1 << 32) // segment_bytes
        if low >= per_high:
            raise ValueError(f"{self.segment} is no segment of {segment_bytes} bytes")
        return Segment(self.timeline, high * per_high + low)


def parse_name(name: str) -> LogName:
    """What a name in PostgreSQL's WAL archive, or of a piece, says. Raises `ValueError`."""
    match = _NAME.fullmatch(name)
    if match is None or int(match["timeline"], 16) == 0:
        raise ValueError(f"not the name of a file of WAL: {name!r}")
    timeline = int(match["timeline"], 16)
    if match["history"]:
        return LogName(Kind.HISTORY, timeline)
    segment = name[:24]
    if match["partial"]:
        return LogName(Kind.PARTIAL, timeline, segment)
    if match["at"]:
        return LogName(Kind.BACKUP, timeline, segment)
    if match["start"]:
        start, end = int(match["start"], 16), int(match["end"], 16)
        if not start < end <= LARGEST_SEGMENT:
            raise ValueError(f"not the name of a piece of a segment: {name!r}")
        return LogName(Kind.PIECE, timeline, segment, start, end)
    return LogName(Kind.SEGMENT, timeline, segment)


def kind_of(name: str) -> Kind | None:
    """What kind of file of WAL is called so; None for none."""
    try:
        return parse_name(name).kind
    except ValueError:
        return None


def following_names(name: str, count: int, segment_bytes: int) -> list[str]:
    """The names of so many segments after one, on its timeline."""
    found, segment = [], Segment.parse(name, segment_bytes)
    for _ in range(count):
        segment = segment.following()
        found.append(segment.name(segment_bytes))
    return found


def extent(parsed: LogName, segment_bytes: int) -> tuple[int, int] | None:
    """The positions [begin, end) that a segment or a piece holds; None for what holds no WAL.

    That is also a name of other segments: anybody may have put it beside them.
    """
    if parsed.kind not in (Kind.SEGMENT, Kind.PIECE):
        return None
    try:
        begin = parsed.of(segment_bytes).start(segment_bytes)
    except ValueError:
        return None
    if parsed.kind is Kind.PIECE:
        return begin + parsed.start, begin + parsed.end
    return begin, begin + segment_bytes


def end_of_segment(lsn: int, segment_bytes: int) -> int:
    """Where the segment ends that ends at a position or holds it."""
    return -(-lsn // segment_bytes) * segment_bytes


def piece_name(segment: str, start: int, end: int) -> str:
    """The name of the piece that holds the bytes [start, end) of a segment."""
    return f"{segment}.{start:08X}-{end:08X}"


def history_name(timeline: int) -> str:
    """The name of the file that tells where a timeline comes from."""
    return f"{timeline:08X}.history"


@dataclass(frozen=True)
class Section:
    """The part of a history that lies on one timeline: [begin, end), to the end where None."""

    timeline: int
    begin: int
    end: int | None


@dataclass(frozen=True)
class History:
    """Where a timeline comes from: `switches` are (parent, position at which it was left)."""

    timeline: int
    switches: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, timeline: int, text: str) -> History:
        """What a history file says. Raises `ValueError`."""
        switches = []
        for line in text.splitlines():
            fields = line.partition("#")[0].split(None, 2)
            if not fields:
                continue
            if len(fields) < 2 or not fields[0].isdecimal():
                raise ValueError(f"not a line of a timeline's history: {line!r}")
            switches.append((int(fields[0]), parse_lsn(fields[1])))
        timelines = [parent for parent, _ in switches] + [timeline]
        positions = [lsn for _, lsn in switches]
        if timelines != sorted(set(timelines)) or positions != sorted(positions):
            raise ValueError(f"the history of timeline {timeline} goes backwards")
        return cls(timeline, tuple(switches))

    def sections(self) -> list[Section]:
        """All of it in the order of WAL, this timeline last."""
        found, begin = [], 0
        for parent, lsn in self.switches:
            found.append(Section(parent, begin, lsn))
            begin = lsn
        return [*found, Section(self.timeline, begin, None)]

    def timeline_at(self, lsn: int) -> int:
        """On which timeline a position lies."""
        return next(s.timeline for s in self.sections() if s.end is None or lsn < s.end)

    def leads_through(self, timeline: int, lsn: int) -> bool:
        """Whether this history passes a position, or leaves there, on a timeline."""
        own = next((s for s in self.sections() if s.timeline == timeline), None)
        return own is not None and (own.end is None or lsn <= own.end)


@dataclass(frozen=True)
class FirstPage:
    """What the first page of a segment says of itself."""

    system: str
    timeline: int
    lsn: int
    segment_bytes: int


FIRST_PAGE_BYTES = 40
"""So much of a segment says what it is."""

_LONG_HEADER = 0x0002


def first_page(data: bytes) -> FirstPage | None:
    """What a segment that begins with these bytes is; None where this is no first page of WAL.

    `XLogLongPageHeaderData` of PostgreSQL's `access/xlog_internal.h`, in the byte order of the
    server; the magic number has begun with `D1` since version 13.
    """
    if len(data) < FIRST_PAGE_BYTES:
        return None
    order = {0xD1: "<"}.get(data[1]) or {0xD1: ">"}.get(data[0])
    if order is None:
        return None
    _, info, timeline, lsn, _, system, segment_bytes, _ = struct.unpack_from(
        order + "HHIQI4xQII", data
    )
    if not info & _LONG_HEADER or not is_segment_size(segment_bytes):
        return None
    return FirstPage(str(system), timeline, lsn, segment_bytes)


def covered(ranges: Iterable[tuple[int, int]]) -> int:
    """Up to where some ranges [start, end) cover everything from 0 on."""
    end = 0
    for start, stop in sorted(ranges):
        if start > end:
            break
        end = max(end, stop)
    return end


def compose(pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """What pieces (offset, bytes) hold from offset 0 on without a hole; they may overlap.

    Raises `ValueError` where two hold different bytes of the same place: WAL that was flushed
    never changes on its timeline.
    """
    whole = bytearray()
    for start, data in sorted(pieces):
        if start > len(whole):
            break
        common = min(len(whole) - start, len(data))
        if whole[start : start + common] != data[:common]:
            raise ValueError(f"two pieces differ between {start} and {start + common}")
        whole += data[common:]
    return bytes(whole)
