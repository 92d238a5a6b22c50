"""What `pg_receivewal` has written into a directory goes into the vault, in the order of the log.

A complete segment goes whole, and is removed once it is stored. Of the one that is being written
goes, now and then, the piece that came since the last time: log that was flushed never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import (
    FIRST_PAGE_BYTES,
    Kind,
    Segment,
    covered,
    first_page,
    is_segment_size,
    kind_of,
    parse_name,
)
from cellarer.postgres.wal_files import data_end

if TYPE_CHECKING:
    from cellarer.vault.log import LogWriter

PIECE_BYTES = 32 << 20
"""The most that one piece holds: what is in memory at once."""

_PARTIAL = ".partial"


@dataclass(frozen=True, order=True)
class Position:
    """How far the vault goes, in bytes of the log."""

    lsn: int
    timeline: int


class Shipper:
    """One cluster's directory on its way into the vault.

    `open_log` gives the log to write, `list_names` what the vault has of it; both are asked anew
    after whatever failed.
    """

    def __init__(
        self,
        directory: Path,
        open_log: Callable[[], LogWriter],
        list_names: Callable[[], Iterable[str]],
    ) -> None:
        self.directory = directory
        self.stored: Position | None = None
        self._open_log = open_log
        self._list_names = list_names
        self._ends: dict[str, int] | None = None
        self._sighting: Sighting | None = None

    def files(self) -> list[str]:
        """What lies there, in the order of the log; of two timelines the older one first."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        wal = [name for name in names if kind_of(name) in (Kind.SEGMENT, Kind.PARTIAL)]
        return sorted(wal, key=lambda name: (name[8:24], name[:8]))

    def size_bytes(self) -> int:
        """How much of the disk the directory takes."""
        total = 0
        for name in self.files():
            try:
                total += (self.directory / name).stat().st_size
            except FileNotFoundError:
                continue  # complete this instant, under its other name
        return total

    def ship(
        self, *, pieces: bool, written_lsn: int | None = None, sighting: Sighting | None = None
    ) -> None:
        """Store what is complete, and with `pieces` what is not.

        `written_lsn` is how far `pg_receivewal` has written for certain; None where it does not
        run, and everything is. `sighting` is the last that is known of the server. Raises what
        storing raises; what was stored by then is.
        """
        self._sighting = sighting
        self._ship_histories()
        files = self.files()
        for name in files:
            if not name.endswith(_PARTIAL):
                self._ship_segment(name)
            elif name != files[-1]:
                # A timeline ended in it: nothing will be added any more.
                self._ship_pieces(name.removesuffix(_PARTIAL), None)
                (self.directory / name).unlink()
            elif pieces:
                # Complete this instant, it has another name, and goes whole the next time.
                with suppress(FileNotFoundError):
                    self._ship_pieces(name.removesuffix(_PARTIAL), written_lsn)

    def _ship_histories(self) -> None:
        for path in sorted(self.directory.glob("*.history")):
            if kind_of(path.name) is Kind.HISTORY:
                self._open_log().put(path.name, path.read_bytes())
                path.unlink()

    def _ship_segment(self, name: str) -> None:
        path = self.directory / name
        data = path.read_bytes()
        segment = Segment.parse(name, len(data))
        self._open_log().put(name, data, self._seen_of(segment))
        path.unlink()
        self.stored = Position(segment.end(len(data)), segment.timeline)
        if self._ends:
            self._ends.pop(name, None)

    def _ship_pieces(self, name: str, written_lsn: int | None) -> None:
        path = self.directory / f"{name}{_PARTIAL}"
        with path.open("rb") as file:
            head = file.read(FIRST_PAGE_BYTES)
        # A new file has not its size at once: `pg_receivewal` fills it with zeros before it writes.
        # By a smaller size its log would seem to lie elsewhere, so what is written says the size.
        page = first_page(head)
        size = page.segment_bytes if page else path.stat().st_size
        if not is_segment_size(size):
            return  # it only says where to begin, or is being filled
        segment = Segment.parse(name, size)
        begin = segment.start(size)
        at = self._ends_known().get(name, 0)
        if not any(head):
            end = at
        elif written_lsn is None:
            end = data_end(path, at)
        else:
            end = min(max(written_lsn - begin, 0), size)
        with path.open("rb") as file:
            file.seek(at)
            while at < end:
                data = file.read(min(end - at, PIECE_BYTES))
                self._open_log().put_piece(name, at, data, self._seen_of(segment))
                at += len(data)
                self._ends_known()[name] = at
        self.stored = Position(begin + at, segment.timeline)

    def _seen_of(self, segment: Segment) -> Sighting | None:
        """The sighting, for log of the timeline that it is of."""
        fits = self._sighting is not None and self._sighting.timeline == segment.timeline
        return self._sighting if fits else None

    def forget(self) -> None:
        """Ask the vault anew for what it has: something failed half way."""
        self._ends = None

    def _ends_known(self) -> dict[str, int]:
        """How far the pieces in the vault go, by segment."""
        if self._ends is None:
            self._ends = piece_ends(self._list_names())
        return self._ends


def piece_ends(names: Iterable[str]) -> dict[str, int]:
    """How far the pieces of each segment go without a hole, from its first byte on."""
    pieces: dict[str, list[tuple[int, int]]] = {}
    for name in names:
        if kind_of(name) is Kind.PIECE:
            found = parse_name(name)
            pieces.setdefault(found.segment, []).append((found.start, found.end))
    return {segment: covered(spans) for segment, spans in pieces.items()}
