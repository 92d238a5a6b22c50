"""The sightings that came with the log of a cluster: what was known of its server, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import History, extent, parse_name
from cellarer.errors import DamagedData
from cellarer.vault.log_reader import LogReader

LOOKED_AT = 64
"""Log that was handed over has no sightings: so many objects are looked at, and then no more."""


class Sightings:
    """Those on the way of a history, as they are now; each look reads headers alone."""

    def __init__(self, log: LogReader, history: History, segment_bytes: int) -> None:
        self._log = log
        self._ends = {section.timeline: section.end for section in history.sections()}
        self._places = sorted(_places(log, self._ends, segment_bytes), reverse=True)

    def newest(self) -> Sighting | None:
        """The last that is known of the server, whether its log was stored or not."""
        return next(self._found(None), None)

    def before(self, lsn: int) -> Sighting | None:
        """The newest whose log lies before a position; None where none is known."""
        return next(self._found(lsn), None)

    def _found(self, lsn: int | None) -> Iterator[Sighting]:
        names = [name for _, begin, name in self._places if lsn is None or begin <= lsn]
        for name in names[:LOOKED_AT]:
            try:
                sighting = self._log.sighting(name)
            except DamagedData:
                continue  # told by whoever reads the log; another look is as good
            if sighting is not None and (lsn is None or self._is_held(sighting, lsn)):
                yield sighting

    def _is_held(self, sighting: Sighting, lsn: int) -> bool:
        """What was seen behind a fork, of the server that lost, is on nobody's way."""
        left = self._ends.get(sighting.timeline, 0)
        return sighting.lsn <= (lsn if left is None else min(lsn, left))


def _places(
    log: LogReader, ends: Mapping[int, int | None], size: int
) -> Iterator[tuple[int, int, str]]:
    """Where each object that may have a sighting ends and begins, and its name."""
    for name in log.names():
        parsed = parse_name(name)
        held = extent(parsed, size)
        if held is None or parsed.timeline not in ends:
            continue
        (begin, end), left = held, ends[parsed.timeline]
        if left is None or begin < left:
            yield end, begin, name
