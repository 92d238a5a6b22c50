"""The agent: holds config, keys and connections, and serves the clients of one config and user.

It is started by the first client that needs it, and ends when nothing was asked for a while, or
when its program or its config is not the one that a client means. It listens on a socket that only
its owner can reach. Losing it loses nothing: a client that got no answer starts another one and
asks again, and whatever is asked may be asked twice.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cellarer import __version__
from cellarer.errors import CellarerError, WalAbsent, WalConflict
from cellarer.postgres.wal_files import system_of
from cellarer.wal.client import agent_name
from cellarer.wal.fetching import Fetcher
from cellarer.wal.logs import Logs
from cellarer.wal.messages import (
    ABSENT,
    DONE,
    OUTDATED,
    STOP_RECOVERY,
    Answer,
    Request,
    packed,
    parse_request,
)
from cellarer.wal.pushing import Pusher
from cellarer.wal.spool import Spool

IDLE_SECONDS = 300.0
_LOOK_SECONDS = 0.5
_TAKE_OVER_SECONDS = 50.0
_REQUEST_SECONDS = 10.0


class Agent:
    """Answers requests; `serve` listens for them."""

    def __init__(self, config: Path, logs: Logs, spools: Path) -> None:
        self._config = config
        self._config_read = _version_of(config)
        self._logs = logs
        self._spools = spools
        self._pusher = Pusher(logs.writer, lambda system: logs.reader(system).names())
        self._fetchers: dict[Path, Fetcher] = {}
        self._lock = threading.Lock()
        self._active: set[threading.Thread] = set()
        self._asked_at = time.monotonic()
        self.outdated = threading.Event()

    def answer(self, request: Request) -> Answer:
        """Do what is asked. Nothing is raised: what goes wrong is the answer."""
        fetching = request.verb == "fetch"
        try:
            if fetching:
                self._fetch(request)
            else:
                self._pusher.push(Path(request.path), Path(request.directory), request.system)
            return Answer(DONE)
        except WalAbsent as error:
            return Answer(ABSENT, error.kind, error.message, error.detail, error.hint)
        except CellarerError as error:
            if not isinstance(error, WalConflict):
                self._logs.forget()
            code = STOP_RECOVERY if fetching else error.exit_code
            return Answer(code, error.kind, error.message, error.detail, error.hint)
        except OSError as error:
            code = STOP_RECOVERY if fetching else 1
            return Answer(code, "failed", "the operating system refused", str(error))
        except Exception as error:  # noqa: BLE001 - the client must learn of it, whatever it is
            code = STOP_RECOVERY if fetching else 1
            message = "this is a mistake in cellarer, not yours"
            return Answer(code, "internal", message, type(error).__name__, "please report it")

    def is_current(self, request: Request) -> bool:
        """Whether this is the program and the config that a client means."""
        meant = (request.version, request.config, _version_of(self._config))
        return meant == (__version__, str(self._config), self._config_read)

    def serve(self, directory: Path, ready: Callable[[], None], idle_seconds: float) -> None:
        """Listen in this directory until idle or outdated; `ready` is called when clients can come.

        Where another agent of this config listens already, there is nothing to do. Raises
        `CellarerError`, `OSError`.
        """
        # From within its directory the path of a socket is short enough for any system.
        os.chdir(directory)
        name = agent_name(str(self._config))
        lock = os.open(f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _locked(lock, f"{name}.sock"):
                self._listen(f"{name}.sock", ready, idle_seconds)
            else:
                ready()
        finally:
            os.close(lock)

    def _listen(self, path: str, ready: Callable[[], None], idle_seconds: float) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            _unlink(path)
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            try:
                listener.listen(64)
                listener.settimeout(_LOOK_SECONDS)
                ready()
                self._accept(listener, path, idle_seconds)
            finally:
                _unlink(path)
        for thread in list(self._active):
            thread.join()
        self._pusher.close()
        for fetcher in self._fetchers.values():
            fetcher.close()

    def _accept(self, listener: socket.socket, path: str, idle_seconds: float) -> None:
        while not self.outdated.is_set():
            if not self._active and time.monotonic() - self._asked_at > idle_seconds:
                return
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                thread = threading.Thread(target=self._speak, args=(connection, path), daemon=True)
                self._active.add(thread)
                thread.start()

    def _speak(self, connection: socket.socket, path: str) -> None:
        with connection, suppress(OSError, ValueError):
            connection.settimeout(_REQUEST_SECONDS)
            received = bytearray()
            while block := connection.recv(1 << 16):
                received += block
            request = parse_request(bytes(received))
            if self.is_current(request):
                answer = self.answer(request)
            else:
                # Whoever asks next finds no socket, and starts another agent.
                _unlink(path)
                self.outdated.set()
                answer = Answer(1, OUTDATED)
            connection.sendall(packed(answer))
        self._asked_at = time.monotonic()
        self._active.discard(threading.current_thread())

    def _fetch(self, request: Request) -> None:
        system = request.system or system_of(Path(request.directory), "restore_command")
        place = (Path(request.spool) if request.spool else self._spools) / system
        with self._lock:
            if place not in self._fetchers:
                self._fetchers[place] = Fetcher(lambda: self._logs.reader(system), Spool(place))
            fetcher = self._fetchers[place]
        fetcher.fetch(request.name, Path(request.path))


def _version_of(config: Path) -> tuple[int, int] | None:
    """What changes when the config does."""
    try:
        found = config.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _locked(lock: int, path: str) -> bool:
    """Whether this process is the agent now; False where another one listens.

    One that is ending listens no more, and finishes what was asked of it first.
    """
    deadline = time.monotonic() + _TAKE_OVER_SECONDS
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, suppress(OSError):
            other.connect(path)
            return False
        if time.monotonic() > deadline:
            raise CellarerError(
                "another agent is ending, and does not come to an end",
                hint="look what keeps it from storing: `cellarer status`",
            )
        time.sleep(_LOOK_SECONDS / 10)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        Path(path).unlink()
