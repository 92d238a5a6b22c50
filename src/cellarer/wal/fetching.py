"""Files of log out of the vault, for a recovery; what it will want next is fetched meanwhile.

A recovery asks for one segment after the other, and those that lie in the spool it takes without
asking. So the spool is watched, and filled up behind the recovery, until that has stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cellarer.domain.wal import Kind, following_names, kind_of
from cellarer.errors import CellarerError
from cellarer.wal.spool import Spool, write_whole

if TYPE_CHECKING:
    from cellarer.vault.log import LogReader

JOBS = 4
_AHEAD_BYTES = 256 << 20
_MOST_AHEAD = 16
"""At most so many segments, and bytes, wait in the spool of one recovery."""

_LOOK_SECONDS = 0.05
_GIVE_UP_SECONDS = 60.0
_LIST_SECONDS = 5.0


class Fetcher:
    """Serves the recoveries of one cluster into one spool."""

    def __init__(self, open_log: Callable[[], LogReader], spool: Spool) -> None:
        self._open_log = open_log
        self._spool = spool
        self._pool = ThreadPoolExecutor(JOBS, "fetch")
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._next = ""
        self._segment_bytes = 0
        self._wanted_at = 0.0
        self._filling: threading.Thread | None = None
        self._closed = threading.Event()

    def fetch(self, name: str, destination: Path) -> None:
        """Put the file `name` of the archive at `destination`, whole or not at all.

        Raises `WalAbsent` where it is proven that there is none, `CellarerError` and `OSError`
        where it could not be had.
        """
        with self._lock:
            under_way = self._under_way.pop(name, None)
        if under_way is not None:
            # What went wrong ahead is tried again below, and says itself what it is.
            with suppress(CellarerError, OSError):
                under_way.result()
        if not self._spool.take(name, destination):
            data = self._open_log().read(name)
            write_whole(destination, data)
            self._segment_bytes = len(data)
        if kind_of(name) is Kind.SEGMENT:
            self._go_on_after(name)

    def close(self) -> None:
        """Stop fetching ahead. What lies in the spool stays, as it may be taken still."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _go_on_after(self, name: str) -> None:
        if not self._segment_bytes:
            return
        with self._lock:
            self._next, self._wanted_at = _following(name, self._segment_bytes), time.monotonic()
            if self._filling is None or not self._filling.is_alive():
                self._filling = threading.Thread(target=self._fill, name="ahead", daemon=True)
                self._filling.start()

    def _fill(self) -> None:
        """Keep the spool full from the next segment on, as long as some are taken.

        Only what is whole in the vault comes here: a segment that is still being written would be
        taken later as it is now. What fails is left to `fetch`, which tells it.
        """
        known: set[str] = set()
        listed_at = -_LIST_SECONDS
        room = room_ahead(self._segment_bytes)
        with self._lock:
            self._under_way = {n: each for n, each in self._under_way.items() if not each.done()}
        with suppress(CellarerError, OSError):
            self._spool.open()
            self._discard_older()
            while not self._closed.wait(_LOOK_SECONDS):
                now = time.monotonic()
                if now - self._wanted_at > _GIVE_UP_SECONDS:
                    return
                wanted = self._wanted(room)
                if not set(wanted) <= known and now - listed_at > _LIST_SECONDS:
                    known, listed_at = self._open_log().names(), now
                self._submit([name for name in wanted if name in known])

    def _wanted(self, room: int) -> list[str]:
        """The segments that should wait, or be on their way: those after what was taken last."""
        waiting = self._spool.names()
        with self._lock:
            # What was put here and is gone was taken by PostgreSQL itself. What failed stays as it
            # is until someone asks for it.
            for name, done in sorted(self._under_way.items()):
                if name not in waiting and done.done() and done.exception() is None:
                    del self._under_way[name]
                    self._next = max(self._next, _following(name, self._segment_bytes))
                    self._wanted_at = time.monotonic()
            return [self._next, *following_names(self._next, room - 1, self._segment_bytes)]

    def _submit(self, names: list[str]) -> None:
        waiting = self._spool.names()
        with self._lock:
            for name in names:
                if name not in waiting and name not in self._under_way:
                    self._under_way[name] = self._pool.submit(self._fetch_ahead, name)

    def _fetch_ahead(self, name: str) -> None:
        if name not in self._spool.names():
            self._spool.add(name, self._open_log().read(name))

    def _discard_older(self) -> None:
        """What an earlier recovery did not take must not use up the room."""
        for name in self._spool.names():
            if name < self._next:
                self._spool.discard(name)


def room_ahead(segment_bytes: int) -> int:
    """How many segments wait at most, the one that is asked for included."""
    return max(2, min(_MOST_AHEAD, _AHEAD_BYTES // segment_bytes))


def _following(name: str, segment_bytes: int) -> str:
    return following_names(name, 1, segment_bytes)[0]
