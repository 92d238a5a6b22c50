"""What was known of a server at moments, and how much of that a recovered one holds; pure.

A commit says when it was. Of the time after the last one only somebody who looked can tell that
nothing was lost: a sighting is such a look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cellarer.domain.wal import lsn_text, parse_lsn


@dataclass(frozen=True)
class Sighting:
    """A look at a server: at `time`, by its clock, all transactions below `xid` were over.

    What they wrote lies before `lsn` of `timeline`. `xid` is of 64 bits, with its epoch.
    """

    time: datetime
    timeline: int
    lsn: int
    xid: int

    def as_json(self) -> dict[str, object]:
        """As it is stored."""
        moment = self.time.astimezone(UTC).isoformat(timespec="microseconds")
        return {
            "lsn": lsn_text(self.lsn),
            "time": moment,
            "timeline": self.timeline,
            "xid": str(self.xid),
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Sighting:
        """What `as_json` gave. Raises `KeyError`, `TypeError` and `ValueError`."""
        time = datetime.fromisoformat(value["time"])
        if time.tzinfo is None:
            raise ValueError("a time of no zone")
        return cls(time, int(value["timeline"]), parse_lsn(value["lsn"]), int(value["xid"]))


def moment_held(committed: datetime | None, sighting: Sighting | None) -> datetime | None:
    """The latest moment of whose changes a recovered server is known to hold all.

    `committed` is when the last transaction that it replayed ended, `sighting` the newest whose log
    it has replayed. None where neither is known.
    """
    moments = [committed, sighting.time if sighting else None]
    return max((moment for moment in moments if moment is not None), default=None)


def loss_seconds(newest: Sighting | None, held: datetime | None, lsn: int) -> float | None:
    """The time before the last that is known of the source whose changes are not held.

    `lsn` is up to where its log was replayed. None where nobody can tell: also where some of it was
    not, and the clock of the source says that no time has passed, as it was set back.
    """
    if newest is None or held is None:
        return None
    seconds = round(max((newest.time - held).total_seconds(), 0.0), 3)
    return seconds if seconds or newest.lsn <= lsn else None
