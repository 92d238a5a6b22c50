"""The server of a standby: on its own configuration, ruled and asked from outside.

It runs as it will run after a promotion: what its configuration lacks on this host shows today. It
is started by `pg_ctl` and outlives whoever started it. It is asked by `psql` as the account that
owns it, the way an administrator would; nothing is put into its access rules.
"""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cellarer.domain.wal import lsn_text, parse_lsn
from cellarer.errors import TargetFailed, ToolMissing
from cellarer.postgres.account import Account
from cellarer.postgres.binaries import Installation, server_for
from cellarer.postgres.control_settings import OF_PRIMARY, SEGMENT_BYTES, control_data
from cellarer.postgres.data_directory import PID_FILE, VERSION_FILE
from cellarer.postgres.processes import kill_server, server_pid, stop_server
from cellarer.postgres.superuser import first_superusers

LOG = "cellarer-standby.log"
"""In the data directory: what the server says where it does not collect its log itself."""

_PROGRAMS = ("postgres", "pg_ctl", "pg_controldata", "psql")
_START_SECONDS, _STOP_SECONDS, _PROMOTE_SECONDS = 60, 600.0, 600.0
# What PostgreSQL says of a history that does not lead through what is there.
_ASTRAY = ("is not a child of this server's history", "does not contain minimum recovery point")
_LOG_LINES, _LOG_BYTES = 12, 16 << 20
_LOOK_SECONDS = 0.05
_STATE = """SELECT json_build_object('recovering', pg_is_in_recovery(),
    'lsn', CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0')
        ELSE pg_current_wal_flush_lsn() END,
    'committed', pg_last_xact_replay_timestamp(),
    'timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
    'paused', CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
    'archive_mode', current_setting('archive_mode'),
    'synchronous', current_setting('synchronous_standby_names'))"""
_WRITE = (
    "CREATE SCHEMA {name} CREATE TABLE proof (n integer); INSERT INTO {name}.proof VALUES (100)"
)
_READ = "SELECT n FROM {name}.proof"
_CLEAN = "DROP SCHEMA {name} CASCADE"
# Standbys of the old primary, which its commits may have waited for, are not waited for by us.
_SESSION = (
    "dbname=postgres connect_timeout=15 application_name=cellarer"
    " options='-c statement_timeout=10min -c default_transaction_read_only=off"
    " -c synchronous_commit=local'"
)


@dataclass(frozen=True)
class ServerState:
    """What a server says of itself; `lsn` is how far it replayed, or wrote as a primary.

    `committed` is when the last transaction that it replayed was committed, on the source's clock.
    `timeline` is that of its last checkpoint, which may be behind. `synchronous` names the standbys
    that its commits wait for.
    """

    recovering: bool
    lsn: int
    committed: datetime | None
    timeline: int
    paused: bool
    archive_mode: str
    synchronous: str

    @property
    def moment(self) -> str:
        """When the last transaction was committed that it replayed, or an LSN without any."""
        if self.committed is None:
            return f"LSN {lsn_text(self.lsn)}"
        moment = self.committed.astimezone(UTC)
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Address:
    """Where a server listens: a directory with its socket, or an address."""

    host: str
    port: int


class StandbyServer:
    """The server of one data directory."""

    def __init__(self, data: Path, account: Account) -> None:
        self.data = data
        self._account = account
        self._installation = installation_of(data)
        self._superuser = ""
        self._room: dict[str, str] = {}
        self.said = ""
        """Why it could not be asked the last time; empty where it answered."""

    @property
    def pid(self) -> int | None:
        """The process that serves the directory."""
        return server_pid(self.data)

    @property
    def address(self) -> Address | None:
        """Where it listens, while it runs."""
        try:
            lines = (self.data / PID_FILE).read_text().splitlines()
            return Address(lines[4].split(",")[0].strip() or lines[5].strip(), int(lines[3]))
        except (OSError, IndexError, ValueError):
            return None

    def start(self) -> None:
        """Start it as a standby, and wait until it has begun. Raises `TargetFailed`."""
        self._shorten_log()
        wanted = {"hot_standby": "on", "wal_retrieve_retry_interval": "1s", "primary_conninfo": ""}
        self._room = self._raised()
        options = " ".join(
            f"-c {shlex.quote(f'{name}={value}')}" for name, value in (wanted | self._room).items()
        )
        answer = self._run(
            *("pg_ctl", "start", "--wait", "--silent", "-D", self.data),
            *("-t", str(_START_SECONDS), "-l", self.data / LOG, "-o", options),
        )
        if answer[0] != 0 and self.pid is None:
            raise self.failure("the standby does not start", answer[1])

    def stop(self) -> None:
        """Shut it down in order; where it does not, at once: its next start goes on from there."""
        if not stop_server(self.data, signal.SIGINT, _STOP_SECONDS):
            kill_server(self.data, 10.0)

    def lacks_room(self) -> bool:
        """Whether the primary was given more than this server was started with: then PostgreSQL
        pauses, until it is started again."""
        return self._raised() != self._room

    def state(self) -> ServerState | None:
        """What it says of itself; None while it does not answer, and then `said` is why."""
        text = self._ask(_STATE)
        if text is None:
            return None
        said = json.loads(text)
        committed = said["committed"]
        return ServerState(
            recovering=said["recovering"],
            lsn=parse_lsn(said["lsn"]),
            committed=datetime.fromisoformat(committed) if committed else None,
            timeline=said["timeline"],
            paused=said["paused"],
            archive_mode=said["archive_mode"],
            synchronous=said["synchronous"],
        )

    def promote(self) -> None:
        """Promote it, and wait until it is a primary. Raises `TargetFailed`."""
        code, said = self._run("pg_ctl", "promote", "--no-wait", "-D", self.data)
        if code != 0:
            raise self.failure("the standby cannot be promoted", said)
        deadline = time.monotonic() + _PROMOTE_SECONDS
        while (state := self.state()) is None or state.recovering:
            if self.pid is None:
                raise self.failure("the server ended while it was promoted")
            if time.monotonic() > deadline:
                raise self.failure("the server was told to promote, and still recovers", self.said)
            time.sleep(_LOOK_SECONDS)

    def prove_writes(self, name: str) -> None:
        """Write a table, read it back and remove it. Raises `TargetFailed`.

        `name` is of a schema that is there for a moment. A new timeline is then on the disk, too.
        """
        for statement in (_WRITE, _READ, _CLEAN, "CHECKPOINT"):
            answer = self._ask(statement.format(name=name))
            if answer is None or (statement is _READ and answer != "100"):
                raise self.failure(
                    "the promoted server does not take writes", self.said or f"read {answer}"
                )

    def reload(self) -> None:
        """Let it read its settings anew."""
        self._run("pg_ctl", "reload", "-D", self.data)

    def segment_bytes(self) -> int:
        """How large its segments of WAL are. Raises `TargetFailed`."""
        return int(self._control()[SEGMENT_BYTES])

    def failure(self, message: str, said: str = "") -> TargetFailed:
        """An error with the server's last words."""
        try:
            with (self.data / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 20_000))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        detail = "\n".join([*([said] if said else []), *lines[-_LOG_LINES:]])
        if any(words in detail for words in _ASTRAY):
            return TargetFailed(
                f"the standby cannot follow: it has replayed what the newest timeline left out"
                f" ({self.data})",
                detail=detail,
                hint="Move its directory away and run again: the standby is made anew.",
            )
        return TargetFailed(
            f"{message} ({self.data})",
            detail=detail,
            hint=f"The detail holds the last words of PostgreSQL; more is in {self.data / LOG} or"
            " the server's own log. A setting that does not fit this host is changed by --set"
            " NAME=VALUE.",
        )

    def _raised(self) -> dict[str, str]:
        """Settings that are lower than the primary's, which no standby may have."""
        control, raised = self._control(), {}
        for name, key in OF_PRIMARY.items():
            code, own = self._run("postgres", "-C", name, "-D", self.data)
            if code == 0 and own.strip().isdecimal() and int(own) < int(control[key]):
                raised[name] = control[key]
        return raised

    def _control(self) -> Mapping[str, str]:
        return control_data(self._installation, self._account, self.data)

    def _ask(self, query: str) -> str | None:
        """The answer to a query, None where it did not come to one."""
        address = self.address
        if address is None or self.pid is None:
            self.said = "no server runs"
            return None
        names = [self._superuser] if self._superuser else first_superusers(self.data)
        for name in names:
            code, said = self._run(
                *("psql", "-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-c", query),
                *("-h", address.host, "-p", str(address.port), "-U", name),
                *("-d", _SESSION),
            )
            if code == 0:
                self._superuser, self.said = name, ""
                return said.strip()
            self.said = said.strip()
        return None

    def _run(self, program: str, *arguments: str | Path) -> tuple[int, str]:
        command = [self._installation.program(program), *arguments]
        answer = self._account.run(command, self.data)
        return answer.returncode, answer.stdout

    def _shorten_log(self) -> None:
        log = self.data / LOG
        if log.is_file() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


def installation_of(data: Path) -> Installation:
    """The programs of exactly the version of a data directory. Raises `ToolMissing`."""
    text = (data / VERSION_FILE).read_text().strip()
    return programs_for(int(text))


def programs_for(major: int) -> Installation:
    """All programs of exactly this version that a standby needs. Raises `ToolMissing`."""
    found = server_for(major)
    if found.major != major or not found.has(_PROGRAMS):
        raise ToolMissing(
            f"a standby of PostgreSQL {major} needs its programs on this host",
            detail=f"found are those of {found.version} in {found.bin_directory}",
            hint=f"install postgresql-{major}, with its server and client programs",
        )
    return found
