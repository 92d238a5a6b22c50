"""What of the write-ahead log is there, what is missing, and how far a recovery can come with it.

The names that a vault lists say what is there. What was once told in its ledger, and the histories
of timelines, say what has to be there as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from cellarer.domain.wal import (
    SEGMENT_BYTES,
    History,
    Kind,
    Segment,
    covered,
    parse_name,
)


@dataclass(frozen=True)
class Told:
    """What somebody saw stored of a timeline: segments in a row, and flushed up to a position."""

    timeline: int
    first: int
    last: int
    flushed: int = 0


@dataclass(frozen=True, order=True)
class Removed:
    """That retention gave up everything before a position, on all timelines."""

    before: int = 0
    segment_bytes: int = SEGMENT_BYTES

    def covers(self, name: str) -> bool:
        """Whether a file lies before it. Histories never do: they are small, and link the rest."""
        parsed = parse_name(name)
        if parsed.kind is Kind.HISTORY:
            return False
        try:
            return parsed.of(self.segment_bytes).end(self.segment_bytes) <= self.before
        except ValueError:
            return False


@dataclass(frozen=True)
class Gap:
    """WAL of a timeline that is missing between two positions; the names of its segments."""

    timeline: int
    from_lsn: int
    to_lsn: int
    first: str
    last: str


@dataclass(frozen=True)
class Window:
    """What there is of one timeline, from the first to the last of it, and what is missing."""

    timeline: int
    from_lsn: int
    to_lsn: int
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Reach:
    """How far WAL goes without a gap; `gap` is what ends it where more lies behind, else None."""

    lsn: int
    timeline: int
    gap: Gap | None = None


@dataclass(frozen=True)
class Continuity:
    """All that is known of the WAL of one cluster. Made by `continuity`.

    `present` has the numbers of whole segments by timeline; `tails` up to where the pieces of a
    segment cover it, by timeline and number.
    """

    windows: tuple[Window, ...] = ()
    histories: Mapping[int, History] = field(default_factory=dict)
    segment_bytes: int = SEGMENT_BYTES
    present: Mapping[int, AbstractSet[int]] = field(default_factory=dict)
    tails: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def window(self, timeline: int) -> Window | None:
        """That of one timeline."""
        return next((each for each in self.windows if each.timeline == timeline), None)

    def newest_timeline(self, timeline: int) -> int:
        """The newest timeline there is from this one on.

        PostgreSQL itself looks for one history after another, and would take one that is missing
        for the end of all; told the number, it needs that history alone.
        """
        return max([timeline, *(each for each in self.histories if each > timeline)])

    def reach(self, timeline: int, start_lsn: int, target_timeline: int) -> Reach:
        """How far a recovery comes that begins at a position of a timeline and ends on another.

        Raises `ValueError` where the target's history does not lead through the start.
        """
        history = self._history(target_timeline)
        if not history.leads_through(timeline, start_lsn):
            raise ValueError(f"timeline {target_timeline} does not go through timeline {timeline}")
        begins = [(s.timeline, s.begin) for s in history.sections() if s.timeline >= timeline]
        number = start_lsn // self.segment_bytes
        while True:
            owner, begin = self._owner(begins, number)
            if number in self.present.get(owner, ()):
                number += 1
                continue
            return self._ends(begins, owner, begin, number, start_lsn)

    def _history(self, timeline: int) -> History:
        return self.histories.get(timeline, History(timeline))

    def _owner(self, begins: list[tuple[int, int]], number: int) -> tuple[int, int]:
        """The timeline on which PostgreSQL wants a segment: the last that begins in or before it.

        Its first segment holds the end of the timeline before as well.
        """
        return [b for b in begins if b[1] // self.segment_bytes <= number or b == begins[0]][-1]

    def _ends(
        self,
        begins: list[tuple[int, int]],
        owner: int,
        begin: int,
        number: int,
        start_lsn: int,
    ) -> Reach:
        size = self.segment_bytes
        end = number * size + self.tails.get((owner, number), 0)
        first_of_owner = number == begin // size and begins[0][0] != owner
        if first_of_owner and any(
            number in self.present.get(each, ()) for each, _ in begins if each < owner
        ):
            end = max(end, begin)
        timeline = max(each for each, first in begins if first <= end or each == begins[0][0])
        behind = self._first_behind(begins, number)
        window = self.window(owner)
        stop = behind or (window.to_lsn if window else 0)
        if stop <= end:
            return Reach(max(end, start_lsn), timeline)
        last = max(number, -(-stop // size) - 1)
        names = [Segment(owner, n).name(size) for n in (number, last)]
        return Reach(max(end, start_lsn), timeline, Gap(owner, end, stop, *names))

    def _first_behind(self, begins: list[tuple[int, int]], number: int) -> int:
        """Where the next WAL lies that is there behind a missing segment; 0 where none does."""
        found = []
        for timeline, _ in begins:
            numbers = [*self.present.get(timeline, ())]
            numbers += [n for (t, n) in self.tails if t == timeline]
            found += [n for n in numbers if n > number and self._owner(begins, n)[0] == timeline]
        return min(found, default=0) * self.segment_bytes


def continuity(
    names: Iterable[str],
    histories: Mapping[int, History],
    segment_bytes: int = SEGMENT_BYTES,
    told: Iterable[Told] = (),
    removed_before: int = 0,
) -> Continuity:
    """What the names of a cluster's WAL files come to.

    `told` is what was seen to be there; `removed_before` the position before which retention has
    removed segments, so that nothing there is missing. Names of no file of WAL are passed over.
    """
    first_kept = removed_before // segment_bytes
    present: dict[int, set[int]] = {}
    pieces: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for name in names:
        try:
            parsed = parse_name(name)
            if parsed.kind not in (Kind.SEGMENT, Kind.PIECE):
                continue
            segment = parsed.of(segment_bytes)
        except ValueError:
            continue
        if segment.number < first_kept:
            continue
        if parsed.kind is Kind.SEGMENT:
            present.setdefault(segment.timeline, set()).add(segment.number)
        else:
            at = segment.timeline, segment.number
            pieces.setdefault(at, []).append((parsed.start, parsed.end))
    tails, ends = {}, {}
    for (timeline, number), ranges in pieces.items():
        if number in present.get(timeline, ()):
            continue
        end = covered(ranges)
        if end >= segment_bytes:
            present.setdefault(timeline, set()).add(number)
        else:
            tails[timeline, number] = end
            ends[timeline, number] = max(last for _, last in ranges)
    extents = _extents(present, ends, histories, segment_bytes, told, first_kept)
    windows = tuple(
        _window(timeline, first, end, present.get(timeline, set()), tails, segment_bytes)
        for timeline, (first, end) in sorted(extents.items())
    )
    return Continuity(windows, histories, segment_bytes, present, tails)


def _extents(
    present: Mapping[int, AbstractSet[int]],
    ends: Mapping[tuple[int, int], int],
    histories: Mapping[int, History],
    segment_bytes: int,
    told: Iterable[Told],
    first_kept: int,
) -> dict[int, tuple[int, int]]:
    """Timeline -> its first segment that has to be there, and the position up to which it has.

    `ends` says where the last piece of a segment ends, whether those before it are there or not.
    """
    extents: dict[int, tuple[int, int]] = {}

    def reaches(timeline: int, first: int, end: int) -> None:
        before = extents.get(timeline, (first, end))
        extents[timeline] = min(before[0], first), max(before[1], end)

    for timeline, numbers in present.items():
        reaches(timeline, min(numbers), (max(numbers) + 1) * segment_bytes)
    for (timeline, number), end in ends.items():
        reaches(timeline, number, number * segment_bytes + end)
    for each in told:
        if max(each.last, each.flushed // segment_bytes) >= first_kept:
            end = max((each.last + 1) * segment_bytes, each.flushed)
            reaches(each.timeline, max(each.first, first_kept), end)
    for timeline, history in histories.items():
        if not history.switches or timeline not in extents:
            continue
        parent, lsn = history.switches[-1]
        switch = lsn // segment_bytes
        if parent in extents and switch >= first_kept:
            reaches(timeline, switch, 0)
            # The segment of the switch is kept on the new timeline, whole.
            reaches(parent, extents[parent][0], switch * segment_bytes)
    return extents


def _window(
    timeline: int,
    first: int,
    end: int,
    present: AbstractSet[int],
    tails: Mapping[tuple[int, int], int],
    segment_bytes: int,
) -> Window:
    gaps = []
    last = -(-end // segment_bytes)
    for start, following in _missing(first, last, present):
        stop = following
        tail = tails.get((timeline, stop - 1))
        if start < stop - 1 and tail and (stop - 1) * segment_bytes + tail >= end:
            stop -= 1  # there is a beginning of it, which ends the window
        from_lsn = start * segment_bytes + tails.get((timeline, start), 0)
        to_lsn = min(stop * segment_bytes, end)
        if from_lsn < to_lsn:
            names = [Segment(timeline, n).name(segment_bytes) for n in (start, stop - 1)]
            gaps.append(Gap(timeline, from_lsn, to_lsn, *names))
    return Window(timeline, first * segment_bytes, end, tuple(gaps))


def _missing(first: int, end: int, present: AbstractSet[int]) -> Iterator[tuple[int, int]]:
    """The runs [start, stop) of numbers in [first, end) that are not present."""
    start = first
    for number in [*sorted(n for n in present if first <= n < end), end]:
        if start < number:
            yield start, number
        start = number + 1


def with_number(runs: Iterable[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """Runs [first, last] of numbers with one number more, merged and in order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted([*runs, (number, number)]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged
