"""Private PostgreSQL clusters: a data directory, a server and a socket that only its owner enters.

No TCP unless the settings ask for it. Nobody needs a password on the socket because its directory
is closed to everyone but the owner (and root); over TCP a password is required.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from cellarer.errors import TargetFailed
from cellarer.postgres.account import Account, reachable, service_account
from cellarer.postgres.binaries import Installation
from cellarer.postgres.processes import kill_server, server_pid, stop_server

# A socket's path may have 107 bytes on Linux and 103 on macOS.
_SOCKET_PATH_BYTES = 100
_STOP_SECONDS = 60.0
_KILL_SECONDS = 10.0
_LOG_LINES = 15

# All that a cluster makes lies in its directory, shared memory included, so that deleting the
# directory leaves nothing behind, even after SIGKILL.
_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": "off",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "max_locks_per_transaction": "256",
}

# A throw-away server need not survive a crash. It writes no WAL for a table that is filled in the
# transaction that made it, rarely checkpoints, and autovacuum does not compete with the load.
SANDBOX_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "128MB",
    "max_connections": "50",
    "jit": "off",
}


class Cluster:
    """One private cluster in `directory`: `data/`, `socket/` and `server.log`."""

    def __init__(
        self, installation: Installation, directory: Path, account: Account, superuser: str
    ) -> None:
        self.installation = installation
        self.directory = directory
        self.superuser = superuser
        self.port = 5432
        self._account = account

    @classmethod
    def create(
        cls,
        installation: Installation,
        directory: Path,
        *,
        superuser: str = "postgres",
        settings: Mapping[str, str] | None = None,
        locale: str = "C.UTF-8",
    ) -> Cluster:
        """Initialise a cluster in `directory`, which must not exist or be empty. Not yet started.

        As root, `directory` then belongs to the unprivileged user that runs the server; where that
        user cannot run `installation`, a copy of the programs is put there too. `settings` go to
        postgresql.conf. Raises `TargetFailed`, and then leaves nothing behind.
        """
        account = service_account()
        directory = directory.resolve()
        installation.program("initdb")
        _make_directory(directory)
        try:
            runnable = reachable(installation, account, directory)
            cluster = cls(runnable, directory, account, superuser)
            cluster._initialise(_SETTINGS | dict(settings or {}), locale)
        except OSError as error:
            discard(directory)
            raise _failure(directory, str(error)) from error
        except BaseException:
            discard(directory)
            raise
        return cluster

    @property
    def data_directory(self) -> Path:
        """Where the server keeps its files."""
        return self.directory / "data"

    @property
    def socket_directory(self) -> Path:
        """Where the socket lies: in the cluster's directory, unless that path is too long."""
        return _socket_directory(self.directory)

    @property
    def pid(self) -> int | None:
        """The process id of the running server, or None."""
        return server_pid(self.data_directory)

    def dsn(self, database: str) -> str:
        """A connection URI for `database` as superuser, through the socket."""
        user, name, host = (
            quote(part, safe="") for part in (self.superuser, database, str(self.socket_directory))
        )
        return f"postgresql://{user}@/{name}?host={host}&port={self.port}"

    def start(self, timeout_seconds: int = 300) -> None:
        """Start the server and wait until it accepts connections, crash recovery included.

        Raises `TargetFailed` with the last lines of the server's log.
        """
        command: list[str | Path] = [
            *(self.installation.program("pg_ctl"), "start", "--wait", "--silent"),
            *("-D", self.data_directory, "-l", self._log, "-t", str(timeout_seconds)),
        ]
        answer = self._account.run(command, self.directory)
        if answer.returncode != 0:
            self._end(signal.SIGQUIT)
            lines = [answer.stdout.strip(), *_last_lines(self._log)]
            raise _failure(self.directory, "\n".join(line for line in lines if line))

    def stop(self) -> None:
        """Shut the server down in order, rolling back what is open. No error when it is down."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL the whole server at once, for disasters; the next start recovers."""
        if not kill_server(self.data_directory, _KILL_SECONDS):
            raise TargetFailed(f"the server in {self.directory} survived SIGKILL")
        # Until somebody reaps the dead postmaster, its pid looks alive to the next one, which
        # would refuse to start.
        (self.data_directory / "postmaster.pid").unlink(missing_ok=True)
        (self.socket_directory / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop the server without ceremony and delete the cluster."""
        discard(self.directory)

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _initialise(self, settings: Mapping[str, str], locale: str) -> None:
        self.port = int(settings["port"])
        # One that lies elsewhere may be left from a cluster of this path that was deleted by hand.
        shutil.rmtree(self.socket_directory, ignore_errors=True)
        self.socket_directory.mkdir(mode=0o700)
        self._account.own(self.socket_directory)
        self._account.own(self.directory)
        command: list[str | Path] = [
            *(self.installation.program("initdb"), "-D", self.data_directory),
            *("--username", self.superuser, "--encoding", "UTF8", "--locale", locale),
            *("--lc-messages", "C", "--auth-local", "trust", "--auth-host", "scram-sha-256"),
        ]
        if settings.get("fsync") == "off":
            command.append("--no-sync")
        self._run(command)
        sockets = str(self.socket_directory).replace('"', '""')
        lines = dict(settings) | {"unix_socket_directories": f'"{sockets}"'}
        text = "".join(f"{name} = {_quoted(value)}\n" for name, value in lines.items())
        # Written as the account, not as root: in its own directory it could have laid a link.
        self._run(["tee", "-a", self.data_directory / "postgresql.conf"], text)

    def _run(self, command: list[str | Path], text: str = "") -> None:
        answer = self._account.run(command, self.directory, text)
        if answer.returncode != 0:
            raise _failure(self.directory, "\n".join(answer.stdout.splitlines()[-_LOG_LINES:]))

    def _end(self, kind: signal.Signals) -> None:
        if not stop_server(self.data_directory, kind, _STOP_SECONDS):
            self.kill()


@contextmanager
def sandbox_cluster(
    installation: Installation, parent: Path, *, settings: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A running throw-away cluster in a new directory below `parent`, removed at the end.

    Removed also after an exception, Ctrl-C, SIGTERM or SIGHUP. What a killed process left in
    `parent` is swept first. Without autovacuum nobody gathers statistics: run ANALYZE after a load
    and before large queries. Raises `TargetFailed`.
    """
    with _ended_by_signals(), claimed_directory(parent.resolve()) as directory:
        cluster = Cluster.create(
            installation, directory, settings=SANDBOX_SETTINGS | dict(settings or {})
        )
        cluster.start()
        yield cluster


def sweep_sandboxes(parent: Path) -> None:
    """Stop and delete the sandboxes in `parent` whose owner process is dead."""
    for lock in sorted(parent.resolve().glob("sandbox-*.lock")):
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except (FileNotFoundError, PermissionError):
            continue  # removed this instant, or another user's: theirs to sweep
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            discard(lock.with_suffix(""))
            lock.unlink(missing_ok=True)
        except BlockingIOError:
            continue  # its owner is alive
        finally:
            os.close(descriptor)


@contextmanager
def claimed_directory(parent: Path) -> Iterator[Path]:
    """The path of a sandbox that others leave alone while this process lives.

    The lock is there before the directory and goes after it, so no directory is ever without one.
    """
    try:
        _make_parents(parent)
        sweep_sandboxes(parent)
        directory, descriptor = _claim(parent)
    except OSError as error:
        raise _failure(parent, str(error)) from error
    try:
        yield directory
    finally:
        discard(directory)
        directory.with_name(f"{directory.name}.lock").unlink(missing_ok=True)
        os.close(descriptor)


def _claim(parent: Path) -> tuple[Path, int]:
    while True:
        directory = parent / f"sandbox-{secrets.token_hex(4)}"
        lock = directory.with_name(f"{directory.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A sweeper may have taken the file for a dead owner's in the moment before the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(descriptor)):
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return directory, descriptor
        os.close(descriptor)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process by an exception, so that `finally` blocks run.

    Only where they would otherwise kill it at once: handlers of the program have precedence.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    replaced = []
    if threading.current_thread() is threading.main_thread():
        replaced = [
            number
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is signal.SIG_DFL
        ]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _socket_directory(directory: Path) -> Path:
    inside = directory / "socket"
    if len(os.fsencode(inside / ".s.PGSQL.65535")) < _SOCKET_PATH_BYTES:
        return inside
    # Derived from the path, so that whoever finds the cluster finds its socket too.
    return Path("/tmp", f"cellarer-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}")


def _make_parents(directory: Path) -> None:
    """Make `directory` and its missing parents so that the server's account may pass through."""
    if directory.is_dir():
        return
    _make_parents(directory.parent)
    directory.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        directory.chmod(0o711)


def _make_directory(directory: Path) -> None:
    try:
        _make_parents(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        occupied = any(directory.iterdir())
    except OSError as error:
        raise _failure(directory, str(error)) from error
    if occupied:
        raise TargetFailed(
            f"cannot create a cluster in {directory}",
            detail="the directory is not empty",
            hint="Name a directory that does not exist yet, or empty this one.",
        )
    directory.chmod(0o700)


def discard(directory: Path) -> None:
    """End whatever serves the cluster in `directory` and delete all of it."""
    data_directory = directory / "data"
    if not stop_server(data_directory, signal.SIGQUIT, _KILL_SECONDS):
        kill_server(data_directory, _KILL_SECONDS)
    shutil.rmtree(_socket_directory(directory), ignore_errors=True)
    # A program that was interrupted may create a last file while the tree is being deleted.
    for _ in range(10):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
    raise TargetFailed(
        f"cannot delete {directory}",
        hint="Delete it by hand; the next start tries again as well.",
    )


def _failure(directory: Path, detail: str) -> TargetFailed:
    hint = "The detail holds the last words of PostgreSQL."
    if "No space left" in detail or "Disk quota" in detail:
        hint = f"Free some space on the disk that holds {directory}, or choose another directory."
    elif "invalid locale" in detail:
        hint = "Choose a locale that `locale -a` lists, or install the missing one."
    elif "Permission denied" in detail:
        hint = service_account().way_in
    return TargetFailed(f"no PostgreSQL cluster in {directory}", detail=detail, hint=hint)


def _last_lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        return []


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
