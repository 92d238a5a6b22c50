"""Segments that PostgreSQL hands over, into the vault; those that wait behind go along ahead.

PostgreSQL hands over one file at a time and waits. So what it has marked as ready is stored at the
same time, and when its turn comes, there is nothing left to do. Its files and its marks are read
and never touched: only the exit code for that very file says that PostgreSQL may remove it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from cellarer.domain.wal import Kind, kind_of
from cellarer.errors import CellarerError, UsageError
from cellarer.postgres.wal_files import system_of, unreadable
from cellarer.vault.promptly import OWED_AT_MOST

if TYPE_CHECKING:
    from cellarer.vault.log import LogWriter

JOBS = OWED_AT_MOST - 1
"""Stored ahead at once. With the file that was asked for they are as many as a replica is asked for
before it counts as late."""

AHEAD_BYTES = 128 << 20
"""How much may be in memory for segments that were not asked for yet."""

LOOK_BACK_SECONDS = 3600.0

_READY, _DONE = ".ready", ".done"


class Pusher:
    """Stores what PostgreSQL hands over.

    `open_log` gives the log of a cluster in the vault, `list_names` what is there of it.
    """

    def __init__(
        self,
        open_log: Callable[[str], LogWriter],
        list_names: Callable[[str], Collection[str]],
    ) -> None:
        self._open_log, self._list_names = open_log, list_names
        self._looked_back: dict[Path, float] = {}
        self._pool = ThreadPoolExecutor(JOBS, "push")
        self._lock = threading.Lock()
        self._ahead: dict[Path, Future[bytes]] = {}

    def push(self, path: Path, directory: Path, system: str) -> None:
        """Store the file at `path`; returns once it is stored on as many replicas as must have it.

        `directory` is where PostgreSQL runs, its data directory; `system` overrides it, where set.
        Raises `UsageError` for what is of no cluster or of another one, `SourceFailed` for what is
        no whole file of log, `WalConflict` where the vault has another of that name, and what
        storing raises.
        """
        system = system or system_of(directory, "archive_command")
        if not _archived(path.name):
            raise UsageError(
                f"{path.name} is not a file of PostgreSQL's log",
                hint="write archive_command = 'cellarer wal push \"%p\"'",
            )
        data = _read(path)
        self._look_ahead(path.parent, path.name, system, len(data))
        self._look_back_if_due(path.parent, system)
        with self._lock:
            stored = self._ahead.pop(path, None)
        if stored is not None:
            # One that could not be stored ahead is tried again, and says itself what is wrong.
            with suppress(CellarerError, OSError):
                if stored.result() == blake3(data).digest():
                    return
        self._open_log(system).put(path.name, data)

    def close(self) -> None:
        """Ends what is done ahead; what was not asked for is asked for later."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look_ahead(self, directory: Path, name: str, system: str, size: int) -> None:
        ready = _marked(directory, _READY)
        room = max(1, min(2 * OWED_AT_MOST, AHEAD_BYTES // max(size, 1)))
        with self._lock:
            self._ahead = {
                path: future for path, future in self._ahead.items() if path.name in ready
            }
            for other in sorted(ready - {name}):
                path = directory / other
                if len(self._ahead) < room and path not in self._ahead:
                    self._ahead[path] = self._pool.submit(self._store, path, system)

    def _look_back_if_due(self, directory: Path, system: str) -> None:
        now = time.monotonic()
        with self._lock:
            before = self._looked_back.get(directory)
            if before is None or now - before > LOOK_BACK_SECONDS:
                self._looked_back[directory] = now
                self._pool.submit(self._look_back, directory, system)

    def _look_back(self, directory: Path, system: str) -> None:
        """Store again what PostgreSQL takes for stored, still has, and the vault lacks.

        What goes wrong here is a gap that stays, and gaps are told of by `status`.
        """
        with suppress(CellarerError, OSError):
            known = self._list_names(system)
            for name in sorted(_marked(directory, _DONE) - set(known)):
                if (directory / name).exists():
                    self._store(directory / name, system)

    def _store(self, path: Path, system: str) -> bytes:
        """Stores a file and returns the digest of what was stored."""
        data = _read(path)
        self._open_log(system).put(path.name, data)
        return blake3(data).digest()


def _marked(directory: Path, mark: str) -> set[str]:
    """The files that PostgreSQL has marked so."""
    try:
        marks = [path.name for path in (directory / "archive_status").iterdir()]
    except OSError:
        return set()
    names = {each.removesuffix(mark) for each in marks if each.endswith(mark)}
    return {name for name in names if _archived(name)}


def _archived(name: str) -> bool:
    """Whether PostgreSQL hands over files of this name."""
    return kind_of(name) not in (None, Kind.PIECE)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path.name, error) from error
