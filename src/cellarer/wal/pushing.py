"""Segments that PostgreSQL hands over, into the vault; those that wait behind go along ahead.

PostgreSQL hands over one file at a time and waits. So what it has marked as ready is stored at the
same time, and when its turn comes, there is nothing left to do. Its files and its marks are read
and never touched: only the exit code for that very file says that PostgreSQL may remove it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from cellarer.domain.wal import Kind, parse_name
from cellarer.errors import CellarerError, SourceFailed, UsageError
from cellarer.postgres.wal_files import control_system

if TYPE_CHECKING:
    from cellarer.vault.log import LogWriter

JOBS = 4
AHEAD_BYTES = 128 << 20
"""How much may be in memory for segments that were not asked for yet."""

_READY = ".ready"


class Pusher:
    """Stores what PostgreSQL hands over; `open_log` gives the log of a cluster in the vault."""

    def __init__(self, open_log: Callable[[str], LogWriter]) -> None:
        self._open_log = open_log
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
        system = system or _system_of(directory)
        if not _archived(path.name):
            raise UsageError(
                f"{path.name} is not a file of PostgreSQL's log",
                hint="write archive_command = 'cellarer wal push \"%p\"'",
            )
        data = _read(path)
        self._look_ahead(path.parent, path.name, system, len(data))
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
        ready = _ready(directory)
        room = max(1, min(2 * JOBS, AHEAD_BYTES // max(size, 1)))
        with self._lock:
            self._ahead = {
                path: future for path, future in self._ahead.items() if path.name in ready
            }
            for other in sorted(ready - {name}):
                path = directory / other
                if len(self._ahead) < room and path not in self._ahead:
                    self._ahead[path] = self._pool.submit(self._store, path, system)

    def _store(self, path: Path, system: str) -> bytes:
        """Stores a file and returns the digest of what was stored."""
        data = _read(path)
        self._open_log(system).put(path.name, data)
        return blake3(data).digest()


def _system_of(directory: Path) -> str:
    system = control_system(directory)
    if system is None:
        raise UsageError(
            "it is not known which cluster this belongs to",
            detail=f"{directory} is no data directory: it has no global/pg_control",
            hint="archive_command runs in the data directory; elsewhere add --system IDENTIFIER, "
            "as pg_controldata shows it",
        )
    return system


def _ready(directory: Path) -> set[str]:
    """The files that PostgreSQL will hand over next."""
    try:
        marks = [path.name for path in (directory / "archive_status").iterdir()]
    except OSError:
        return set()
    ready = {mark.removesuffix(_READY) for mark in marks if mark.endswith(_READY)}
    return {name for name in ready if _archived(name)}


def _archived(name: str) -> bool:
    """Whether PostgreSQL hands over files of this name."""
    try:
        return parse_name(name).kind is not Kind.PIECE
    except ValueError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceFailed(
            f"{path.name} cannot be read",
            detail=str(error),
            hint="run this as the user that runs PostgreSQL",
        ) from error
