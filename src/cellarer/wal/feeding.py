"""Hands a standby the WAL that it asks for, and what it will ask for next; whole, or as far as it
has come.

Of a segment that is still being written the vault has pieces. The standby gets them filled up with
zeros, replays to their end, and asks for the segment again; by then there may be more of it. Only a
server that waits for ever may be served so: to one that recovers, the end of them would be the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from cellarer.domain.standby import left_at, unreplayed
from cellarer.domain.wal import (
    History,
    Kind,
    Segment,
    compose,
    following_names,
    history_name,
    parse_name,
    piece_name,
)
from cellarer.errors import DamagedData
from cellarer.postgres.standby_feed import StandbyFeed
from cellarer.wal.fetching import JOBS, room_ahead

if TYPE_CHECKING:
    from cellarer.vault.log import LogReader

LOOK_SECONDS = 5.0
"""So often the vault is looked through for what is new."""

_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Seen:
    """What the vault had when it was last looked through, at `at`."""

    at: datetime | None = None
    names: frozenset[str] = frozenset()
    histories: dict[int, History] = field(default_factory=dict)


@dataclass(frozen=True)
class _Given:
    """How much of a segment was handed over, and the last of it."""

    length: int
    tail: bytes
    whole: bool


class Feeder:
    """Serves one standby. `turn` is called again and again, by one thread.

    `pieces` says whether the server may get segments that are not whole yet.
    """

    def __init__(
        self,
        feed: StandbyFeed,
        open_log: Callable[[], LogReader],
        segment_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        self.pieces = False
        self.seen = Seen()
        self.exhausted: dict[str, int] = {}
        self._feed, self._open_log, self._now = feed, open_log, now
        self._segment_bytes = segment_bytes
        self._room = room_ahead(segment_bytes)
        self._pool = ThreadPoolExecutor(JOBS, "feed")
        self._ahead: dict[str, Future[_Given]] = {}
        self._given: dict[str, _Given] = {}
        self._asked: list[str] = []
        self._base = ""
        self._beginning: tuple[str, bytes] = ("", b"")
        self._histories: dict[int, tuple[bytes, History]] = {}
        self._looked = -LOOK_SECONDS

    def turn(self, *, look: bool = False) -> None:
        """Hand over what can be had now. Raises `CellarerError`, `OSError`; then the rest waits."""
        asked = self._feed.asked()
        if asked:
            self._note(asked)
        look = look or time.monotonic() - self._looked >= LOOK_SECONDS
        if look:
            self.look()
            self._hand_over_histories()
        if asked or look:
            handed_over = next((name for name in self._asked if self._hand_over(name)), None)
            if handed_over is not None:
                self._base, self._asked = handed_over, []
        self._go_ahead()

    def look(self) -> None:
        """Look through the vault for what is new. Raises `CellarerError`."""
        log = self._open_log()
        names = log.look()
        for name in sorted(names):
            parsed = parse_name(name)
            if parsed.kind is Kind.HISTORY and parsed.timeline not in self._histories:
                content = log.read(name)
                self._histories[parsed.timeline] = content, _history(parsed.timeline, content)
        histories = {timeline: history for timeline, (_, history) in self._histories.items()}
        self.seen = Seen(self._now(), frozenset(names), histories)
        self._looked = time.monotonic()

    def close(self) -> None:
        """Read no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def started_anew(self) -> None:
        """The server was started: what it had just taken may be gone with the one before."""
        self._given, self.exhausted, self._base = {}, {}, ""

    def unreplayed(self, timeline: int, lsn: int) -> str | None:
        """The first file in the vault, as last seen, with WAL that the server has not replayed."""
        seen = self.seen
        return unreplayed(
            seen.names, dict(self.exhausted), timeline, lsn, seen.histories, self._segment_bytes
        )

    def waits_in_vain(self, behind: str) -> str | None:
        """The segment that the server waits for and nobody has, though `behind` comes after it."""
        if not self._asked or behind[8:24] <= max(name[8:] for name in self._asked):
            return None
        here = any(name.startswith(tuple(self._asked)) for name in self.seen.names)
        return None if here else self._asked[-1]

    def has_given(self, name: str, content: bytes) -> bool:
        """Whether the server was handed all of a segment that is not zeros."""
        given = self._given.get(name)
        return not content[given.length if given else 0 :].strip(b"\0")

    # ----------------------------------------------------------------------------------- asked

    def _note(self, asked: set[str]) -> None:
        """The server came to the end of what it was handed, or begins somewhere."""
        for name in asked - self._feed.waiting():
            given = self._given.get(name)
            if given is not None and self._feed.holds(name, given.length, given.tail):
                self.exhausted[name] = given.length
            else:
                self._given.pop(name, None)
                self.exhausted.pop(name, None)
        # It asks for the newest timeline first, and would take it.
        self._asked = sorted(asked, reverse=True)

    # ----------------------------------------------------------------------------- handing over

    def _hand_over_histories(self) -> None:
        waiting = self._feed.waiting()
        for timeline, (content, _) in self._histories.items():
            if history_name(timeline) not in waiting:
                self._feed.put(history_name(timeline), content)

    def _hand_over(self, name: str) -> bool:
        """Lay ready what there is of a segment; False where there is nothing new of it."""
        under_way = self._ahead.pop(name, None)
        if under_way is not None:
            self._given[name] = under_way.result()
            return True
        segment = Segment.parse(name, self._segment_bytes)
        end = self._end_of(segment)
        if end <= 0:
            return False
        given = self._given.get(name)
        if given is not None and (given.whole or given.length >= end):
            return name in self._feed.waiting()
        content = self._content(name)[:end]
        if len(content) <= (given.length if given else 0):
            return False
        self._given[name] = self._put(name, content)
        return True

    def _content(self, name: str) -> bytes:
        """All that the vault has of a segment, from its first byte on."""
        if name in self.seen.names:
            return self._open_log().read(name)
        if not self.pieces:
            return b""
        segment, content = self._beginning
        content = content if segment == name else b""
        pieces = [parse_name(each) for each in self.seen.names if each.startswith(f"{name}.")]
        log = self._open_log()
        for piece in sorted(pieces, key=lambda each: each.start):
            if piece.kind is Kind.PIECE and piece.end > len(content) >= piece.start:
                data = log.read_piece(piece_name(name, piece.start, piece.end))
                try:
                    content = compose([(0, content), (piece.start, data)])
                except ValueError as error:
                    raise DamagedData(
                        f"the pieces of {name} do not fit together",
                        detail=str(error),
                        hint="two servers may have stored WAL under the same name; the standby "
                        "waits before it",
                    ) from error
        self._beginning = name, content
        return content

    def _put(self, name: str, content: bytes) -> _Given:
        padding = bytes(self._segment_bytes - len(content))
        self._feed.put(name, content + padding if padding else content)
        return _Given(len(content), content[-_TAIL_BYTES:], not padding)

    def _end_of(self, segment: Segment) -> int:
        """How many bytes of a segment may be handed over: nothing behind a fork."""
        left = left_at(segment.timeline, self.seen.histories)
        if left is None:
            return self._segment_bytes
        return min(self._segment_bytes, left - segment.start(self._segment_bytes))

    # ------------------------------------------------------------------------------------ ahead

    def _go_ahead(self) -> None:
        """Lay ready what follows, if it is whole, and take back what is not wanted any more."""
        if not self._base:
            return
        waiting = self._feed.waiting()
        for name, done in list(self._ahead.items()):
            if done.done():
                del self._ahead[name]
                self._given[name] = done.result()
        waiting -= self._taken_back(waiting)
        taken = [n for n, given in self._given.items() if given.whole and n not in waiting]
        self._base = max([self._base, *taken], key=_place)
        wanted = following_names(self._base, self._room - 1, self._segment_bytes)
        for name in wanted:
            segment = Segment.parse(name, self._segment_bytes)
            whole = name in self.seen.names and self._end_of(segment) == self._segment_bytes
            if whole and name not in self._given and name not in self._ahead:
                self._ahead[name] = self._pool.submit(self._fetch, name)
        kept = {*wanted, *self._asked, self._base}
        for name in waiting - kept:
            if parse_name(name).kind is Kind.SEGMENT:
                self._feed.discard(name)
        first = _place(self._base)
        self._given = {n: each for n, each in self._given.items() if _place(n) >= first}
        self.exhausted = {n: each for n, each in self.exhausted.items() if _place(n) >= first}

    def _taken_back(self, waiting: set[str]) -> set[str]:
        """Take back what lies ready of log behind a fork that was not known when it was laid."""
        gone = {
            name
            for name, given in self._given.items()
            if name in waiting
            and given.length > self._end_of(Segment.parse(name, self._segment_bytes))
        }
        for name in gone:
            self._feed.discard(name)
            del self._given[name]
        return gone

    def _fetch(self, name: str) -> _Given:
        return self._put(name, self._open_log().read(name))


def _history(timeline: int, content: bytes) -> History:
    try:
        return History.parse(timeline, content.decode("utf-8", "replace"))
    except ValueError as error:
        raise DamagedData(
            f"the history of timeline {timeline} cannot be understood", detail=str(error)
        ) from error


def next_history(histories: dict[int, History]) -> str:
    """The history that a promotion would take if it is in nobody's hands."""
    return history_name(max([1, *histories]) + 1)


def _place(name: str) -> tuple[str, str]:
    """What orders segments of all timelines by where they lie in the log."""
    return name[8:], name[:8]
