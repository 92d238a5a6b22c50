"""How a standby stands to the WAL that is stored: what it lacks, what it must not get; pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from cellarer.domain.wal import History, Segment, extent, parse_name


@dataclass(frozen=True)
class Standing:
    """How a standby stands.

    `replayed_to` is when the last transaction that it replayed was committed, on the primary's
    clock, or an LSN where there was none yet; empty while nobody can ask. `lag_seconds` is how long
    the oldest log that it has not replayed has been in the vault, 0 where it has all of it; while
    the vault does not answer, how long that has been so; None where nobody can tell. `stored_at` is
    when the newest log came into the vault.
    """

    role: str
    replayed_to: str
    lag_seconds: float | None
    replayed_lsn: str | None = None
    timeline: int | None = None
    stored_at: datetime | None = None
    running: bool = False
    host: str = ""
    port: int | None = None
    problem: str = ""
    hint: str = ""

    def to_json(self) -> str:
        """As it is written down for others who ask."""
        stored = self.stored_at.isoformat() if self.stored_at else None
        return json.dumps(asdict(self) | {"stored_at": stored})

    @classmethod
    def from_json(cls, text: str) -> Standing:
        """What `to_json` gave."""
        said = json.loads(text)
        stored = said["stored_at"]
        return cls(**said | {"stored_at": datetime.fromisoformat(stored) if stored else None})


def told(standing: Standing) -> str:
    """One line about a standby."""
    if standing.problem:
        hint = f" ({standing.hint})" if standing.hint else ""
        return f"{standing.problem}{hint}"
    late = standing.lag_seconds
    if late is None:
        behind = "how far behind is not known"
    else:
        behind = f"{late:.0f} seconds behind" if late else "nothing is left to replay"
    return f"replayed to {standing.replayed_to}, {behind}"


def followed(timeline: int, histories: Mapping[int, History]) -> History:
    """The history along which a server on a timeline goes on, with `latest` for its target.

    As PostgreSQL looks for it: one history after another as long as there is a next one; where the
    last of them does not lead through the timeline, it stays where it is.
    """
    newest = timeline
    while newest + 1 in histories:
        newest += 1
    found = histories.get(newest, History(newest))
    through = any(section.timeline == timeline for section in found.sections())
    return found if through else History(timeline)


def hidden_behind(timeline: int, lsn: int, histories: Mapping[int, History]) -> int | None:
    """A missing history that keeps a server from one it could follow; None where there is none."""
    newest = followed(timeline, histories).timeline
    beyond = [
        n for n, each in histories.items() if n > newest and each.leads_through(timeline, lsn)
    ]
    missing = [n for n in range(newest + 1, max(beyond, default=0)) if n not in histories]
    return missing[0] if missing else None


def left_at(timeline: int, histories: Mapping[int, History]) -> int | None:
    """Where the history that is followed leaves a timeline; None where it ends on it.

    What is stored of the timeline behind that place was written by a server that lost: a standby
    that replayed it could not follow any more.
    """
    sections = followed(timeline, histories).sections()
    return next(section.end for section in sections if section.timeline == timeline)


def unreplayed(
    names: Iterable[str],
    exhausted: Mapping[str, int],
    timeline: int,
    lsn: int,
    histories: Mapping[int, History],
    segment_bytes: int,
) -> str | None:
    """The first stored file that holds WAL which a server has not replayed; None where none does.

    It has replayed up to `lsn` of `timeline`. `exhausted` says of segments how many of their bytes
    it was given and came to the end of: WAL may end within a record.
    """
    sections = [s for s in followed(timeline, histories).sections() if s.timeline >= timeline]
    spans = {s.timeline: (max(lsn, s.begin), s.end) for s in sections}
    earliest = Segment(1, lsn // segment_bytes).name(segment_bytes)[8:]
    found: list[tuple[int, int, str]] = []
    for name in names:
        if name[8:24] < earliest:
            continue
        parsed = parse_name(name)
        held = extent(parsed, segment_bytes)
        if held is None or parsed.timeline not in spans:
            continue
        start, end = held
        if parsed.segment in exhausted:
            begin = parsed.of(segment_bytes).start(segment_bytes)
            start = max(start, begin + exhausted[parsed.segment])
        first, last = spans[parsed.timeline]
        if last is not None:
            end = min(end, last)
        if max(start, first) < end:
            found.append((max(start, first), parsed.timeline, name))
    return min(found)[2] if found else None
