"""One run of `pg_receivewal`, which writes what the server sends into a directory.

It is given no slot. With one, it would tell the server that it may remove what lies in the
directory, and with that disk the log would be gone. Our slot is moved by what the vault holds, so
that the directory can be lost at any time and is filled again from the server.

Without a slot `pg_receivewal` goes on after the files that it finds, and from where the server is
now if it finds none. An empty file of the name of a partial segment makes it begin with that one.
"""

from __future__ import annotations

import collections
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from psycopg.conninfo import make_conninfo

from cellarer.postgres.binaries import Installation
from cellarer.postgres.conninfo import for_programs, parameters
from cellarer.postgres.processes import end_programs

_STOP_SECONDS = 20.0
_LINES = 20
PROGRAM = "pg_receivewal"
REMOVED = "has already been removed"
"""What the server says of a segment that it has no more."""


class Receiver:
    """`heard` is called from another thread whenever it says something, such as a segment's end."""

    def __init__(
        self,
        installation: Installation,
        dsn: str,
        directory: Path,
        name: str,
        heard: Callable[[], None],
        end_lsn: str = "",
    ) -> None:
        named = make_conninfo("", **parameters(dsn) | {"application_name": name})
        conninfo, environment = for_programs(named)
        command: list[str | Path] = [
            *(installation.program(PROGRAM), directory_argument(directory)),
            *("--no-loop", "--no-password", "--verbose", "--status-interval=1"),
            f"--dbname={conninfo}",
        ]
        if end_lsn:
            command.append(f"--endpos={end_lsn}")
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._heard = heard
        # A session of its own: a Ctrl-C on the terminal is for us, who end it in order.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reading = threading.Thread(target=self._read, name="receiver", daemon=True)
        self._reading.start()

    @property
    def running(self) -> bool:
        """Whether it still receives."""
        return self._process.poll() is None

    @property
    def said(self) -> str:
        """Its last complaints, and nothing of what it says in passing."""
        lines = [line.removeprefix(f"{PROGRAM}: ") for line in self._lines]
        return "\n".join(line for line in lines if line.startswith(("error:", "warning:")))

    def stop(self) -> None:
        """End it, and wait for that: it syncs what it has."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._reading.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                if line.strip():
                    self._lines.append(line.strip())
                self._heard()
        self._heard()


def directory_argument(directory: Path) -> str:
    """The argument by which the receivers of a directory are known."""
    return f"--directory={directory}"


def end_receivers(directory: Path) -> None:
    """End what a killed run of ours left behind: two that write one directory destroy it."""
    end_programs(PROGRAM, directory_argument(directory), _STOP_SECONDS)
