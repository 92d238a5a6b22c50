"""A server on a restored data directory that nobody but its owner reaches.

It takes nothing from the host's or the source's configuration that could matter to others: no
network, no archiving, no preloaded libraries, access rules of its own. All of that stands on its
command line, so that the data directory keeps what it was restored with.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg

from cellarer.errors import TargetFailed
from cellarer.postgres.account import Account, reachable
from cellarer.postgres.binaries import Installation
from cellarer.postgres.control_settings import AS_ON_PRIMARY, OF_PRIMARY, control_data
from cellarer.postgres.data_directory import read_control
from cellarer.postgres.processes import kill_server, server_arguments, stop_server
from cellarer.postgres.superuser import first_superusers
from cellarer.postgres.wal_feed import ASKING_COMMAND, WalFeed

Connection = psycopg.Connection[tuple[object, ...]]

_PORT = 5432
_OWN_KNOCKING = re.compile(
    r"FATAL:  the database system is (?:starting up|in recovery mode|shutting down"
    r"|not (?:yet )?accepting connections)"
)
_LOG_LINES = 12
_STOP_SECONDS = 600.0
_KILL_SECONDS = 10.0
_OWNED = "owned"
_OWN_FILES = {
    "postgresql.conf": "",
    "pg_hba.conf": "local all all trust\n",
    "pg_ident.conf": "",
}
_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "unix_socket_group": "",
    "external_pid_file": "",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "warning",
    "log_line_prefix": "",
    "lc_messages": "C",
    "timezone": "UTC",
    "hot_standby": "on",
    "huge_pages": "try",
    "shared_buffers": "128MB",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "synchronous_standby_names": "",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "recovery_min_apply_delay": "0",
    "autovacuum": "off",
    # What the server of the new timeline has to archive is marked, and waits for its real start.
    "archive_mode": "on",
    "archive_command": "",
    "archive_library": "",
    "restore_command": ASKING_COMMAND,
    "wal_retrieve_retry_interval": "500ms",
    "max_wal_size": "2GB",
}


class PrivateServer:
    """A server on `data`, with its socket and log in a directory of its own under /tmp.

    Use it as a context: at its end the server is gone and so is the directory. The server's WAL
    comes from `feed`. `settings` have precedence over those above.
    """

    def __init__(
        self,
        installation: Installation,
        data: Path,
        account: Account,
        feed: WalFeed,
        settings: Mapping[str, str],
    ) -> None:
        self.data = data
        self._installation = installation
        self._account = account
        self._feed = feed
        self._settings = settings
        self._directory = private_directory(data)
        self._process: subprocess.Popen[bytes] | None = None
        self._server: threading.Thread | None = None
        self._owned: int | None = None
        self._superuser = ""

    def __enter__(self) -> Self:
        sweep_private_server(self.data)
        try:
            self._make_directory()
            self.start()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server wrote, the newest part of it."""
        try:
            return (self._directory / "server.log").read_text(errors="replace")[-200_000:]
        except OSError:
            return ""

    def start(self) -> None:
        """Start it. It does not serve yet when this returns."""
        programs = reachable(self._installation, self._account, self._directory)
        settings = _SETTINGS | self._of_primary() | self._places() | dict(self._settings)
        if programs.major < 15:
            settings.pop("archive_library")
        command: list[str | Path] = [programs.program("postgres"), "-D", self.data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self._directory / "server.log").open("wb") as log:
            self._process = self._account.start(command, self.data, log)
        questions, answers = self._process.stdout, self._process.stdin
        assert questions is not None
        assert answers is not None
        self._server = threading.Thread(
            target=self._feed.serve,
            args=(questions, answers, self.data, self._account),
            name="wal-feed",
            daemon=True,
        )
        self._server.start()

    def start_again(self) -> None:
        """Stop it where it runs, and start it with what the control file says by now."""
        if self.running:
            self.stop()
        self._reap()
        self.start()

    def dsn(self, database: str) -> str:
        """A connection URI as the first superuser. Valid once `connect` has worked."""
        host = quote(str(self._directory), safe="")
        user, name = quote(self._superuser, safe=""), quote(database, safe="")
        return f"postgresql://{user}@/{name}?host={host}&port={_PORT}"

    def connect(self) -> Connection | None:
        """A connection in autocommit mode; None where the server does not take one yet."""
        names = [self._superuser] if self._superuser else first_superusers(self.data)
        for name in names:
            self._superuser = name
            try:
                return psycopg.connect(self.dsn("postgres"), autocommit=True, connect_timeout=15)
            except psycopg.OperationalError as error:
                if "does not exist" in str(error) and "role" in str(error):
                    continue
                break
        self._superuser = ""
        return None

    def stop(self) -> None:
        """Shut it down in order. Raises `TargetFailed` unless the files say that it was."""
        if not stop_server(self.data, signal.SIGINT, _STOP_SECONDS):
            raise self.failure("the server does not stop")
        self._reap()
        control = read_control(self.data)
        if control is None or not control.shut_down:
            raise self.failure("the server did not shut down in order")

    def failure(self, message: str, hint: str = "") -> TargetFailed:
        """An error with the server's last words."""
        lines = [
            line
            for line in self.log.splitlines()
            if line.strip() and not _OWN_KNOCKING.search(line)
        ]
        return TargetFailed(
            f"{message} ({self.data})",
            detail="\n".join(lines[-_LOG_LINES:]),
            hint=hint or "The detail holds the last words of PostgreSQL.",
        )

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700)
            for name, text in _OWN_FILES.items():
                (self._directory / name).write_text(text)
                self._account.own(self._directory / name)
            self._owned = os.open(self._directory / _OWNED, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._owned, fcntl.LOCK_EX)
            self._account.own(self._directory)
        except OSError as error:
            raise TargetFailed(
                f"cannot make {self._directory} for the server that recovers {self.data}",
                detail=error.strerror or str(error),
                hint="Remove what is there, or free some space below /tmp.",
            ) from error

    def _places(self) -> dict[str, str]:
        directory = self._directory
        return {
            "unix_socket_directories": '"' + str(directory).replace('"', '""') + '"',
            "config_file": str(directory / "postgresql.conf"),
            "hba_file": str(directory / "pg_hba.conf"),
            "ident_file": str(directory / "pg_ident.conf"),
        }

    def _of_primary(self) -> dict[str, str]:
        said = control_data(self._installation, self._account, self.data)
        values = {name: said[key] for name, key in (OF_PRIMARY | AS_ON_PRIMARY).items()}
        # Connections of our own, and of what checks in parallel.
        values["max_connections"] = str(max(50, int(values["max_connections"])))
        return values

    def _reap(self) -> None:
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_SECONDS)
        if self._server is not None:
            self._server.join(_KILL_SECONDS)

    def _clean(self) -> None:
        self._feed.close()
        end_server(self.data)
        self._reap()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None


def private_directory(data: Path) -> Path:
    """Where the private server of a data directory has its socket: derived from the path, so that
    whoever comes after a killed owner finds and removes it. The path of a socket must be short.
    """
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path("/tmp", f"cellarer-private-{name}")


def sweep_private_server(data: Path) -> None:
    """End the private server that a killed owner left on a data directory, if there is one.

    A server that anybody else started is not touched. Raises `TargetFailed` where the owner lives.
    """
    directory = private_directory(data)
    if _owner_lives(directory):
        raise TargetFailed(
            f"{data} is being recovered by another process",
            hint="Wait until that is done, or name another directory.",
        )
    if f"={directory}/" in server_arguments(data):
        end_server(data)
    shutil.rmtree(directory, ignore_errors=True)


def _owner_lives(directory: Path) -> bool:
    """Whether whoever made it holds its lock, which ends with the process however that ends."""
    try:
        descriptor = os.open(directory / _OWNED, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def end_server(data: Path) -> None:
    """End the server on a data directory at once; its next start recovers."""
    if not stop_server(data, signal.SIGQUIT, _KILL_SECONDS):
        kill_server(data, _KILL_SECONDS)
