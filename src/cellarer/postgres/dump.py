"""Runs `pg_dump` and `pg_dumpall`, and judges how they end.

A dump counts only if the program says that all went well and gives no warning that something is
missing. Warnings that are known to lose no data are handed on; any other one is an error.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, cast

from psycopg.conninfo import make_conninfo

from cellarer.errors import SourceFailed
from cellarer.postgres.binaries import Installation
from cellarer.postgres.complaints import advice
from cellarer.postgres.conninfo import APPLICATION_NAME, for_programs, parameters
from cellarer.postgres.readahead import ReadAhead
from cellarer.postgres.toc import READ_BYTES

_KILL_SECONDS = 10.0
_STDERR_BYTES = 1 << 16
_DETAIL_CHARACTERS = 1000

_WARNING = re.compile(r"^pg_dump(?:all)?: warning: (.*)$")
_TOLERABLE = (
    # The order of tables matters to a restore of data alone, and pg_restore can defer the checks.
    re.compile("circular foreign-key constraints"),
    re.compile("could not resolve dependency loop"),
    # The rows are all there; `doctor` warns of it, and how to include it.
    re.compile("subscriptions not dumped because current user is not a superuser"),
)


class PgDump:
    """One running `pg_dump`, whose archive comes out of `output`.

    It locks its tables as soon as it runs, and waits for its reader once the pipe is full.
    """

    def __init__(
        self, installation: Installation, dsn: str, snapshot: str, lock_timeout_seconds: float
    ) -> None:
        self.application_name = f"{APPLICATION_NAME} pg_dump {secrets.token_hex(8)}"
        """How the server's views tell its session from all others."""
        named = make_conninfo(dsn, application_name=self.application_name)
        conninfo, environment = for_programs(named)
        self._database = parameters(dsn)["dbname"]
        command: list[str | Path] = [
            installation.program("pg_dump"),
            "--format=custom",
            "--compress=0",
            "-b",  # large objects; the long name differs between versions
            "--no-password",
            f"--snapshot={snapshot}",
            f"--lock-wait-timeout={round(lock_timeout_seconds * 1000)}",
            f"--dbname={conninfo}",
        ]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `kill`
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=READ_BYTES,
                env=_quiet(environment),
            )
        except BaseException:
            self._errors.close()
            raise
        pipe = cast("BinaryIO", self._process.stdout)
        # With the default of 64 KiB both sides wait for each other a lot; refused for a user
        # whose pipes take up much memory already, which is no harm.
        with suppress(OSError, AttributeError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, READ_BYTES)
        self.output = ReadAhead(pipe, READ_BYTES)

    def finish(self) -> list[str]:
        """Wait for the end, after everything was read; returns the tolerable warnings.

        Raises `SourceFailed` for any failure, and for a warning that is not known to be harmless.
        """
        status = self._process.wait()
        lines = _lines(self._errors)
        if status != 0:
            raise _failure(f"pg_dump of database {self._database}", status, lines)
        warnings = [match[1] for line in lines if (match := _WARNING.match(line))]
        for warning in warnings:
            if not any(known.search(warning) for known in _TOLERABLE):
                raise SourceFailed(
                    f"pg_dump warns that the dump of database {self._database} may lack something",
                    detail=_detail(lines),
                    hint="Repair or drop the object it names, then run again.",
                )
        return warnings

    def kill(self) -> None:
        """End the process if it still runs, and give back what it held."""
        with self._process, self._errors:
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(_KILL_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self.output.close()


def dump_roles(installation: Installation, dsn: str, database: str, *, passwords: bool) -> bytes:
    """The SQL that creates all roles of the server, with their passwords' hashes or without.

    `database` is any one that the user may connect to. Raises `SourceFailed`.
    """
    conninfo, environment = for_programs(dsn)
    command: list[str | Path] = [
        installation.program("pg_dumpall"),
        "--roles-only",
        "--no-password",
        f"--database={database}",
        f"--dbname={conninfo}",
    ]
    if not passwords:
        command.append("--no-role-passwords")
    with tempfile.TemporaryFile() as errors:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_quiet(environment),
            check=False,
        )
        if answer.returncode != 0:
            raise _failure("pg_dumpall", answer.returncode, _lines(errors))
    return answer.stdout


def _quiet(environment: dict[str, str]) -> dict[str, str]:
    # It would change the encoding of every dump.
    return {name: value for name, value in environment.items() if name != "PGCLIENTENCODING"}


def _lines(errors: IO[bytes]) -> list[str]:
    """The end of what a program wrote to its standard error."""
    size_bytes = errors.seek(0, 2)
    errors.seek(max(0, size_bytes - _STDERR_BYTES))
    return errors.read().decode(errors="replace").splitlines()


def _failure(program: str, status: int, lines: Sequence[str]) -> SourceFailed:
    detail = _detail(lines)
    known = advice(detail)
    ending = f"was ended by signal {-status}" if status < 0 else "failed"
    return SourceFailed(
        f"{program} {ending}", detail=detail, hint=known.hint, retryable=known.retryable
    )


def _detail(lines: Sequence[str]) -> str:
    """What went wrong; the query in hand, which may be long and says little, comes last."""
    told = [line for line in lines if "Query was:" not in line and "Command was:" not in line]
    return " ".join(" ".join(told or lines).split())[:_DETAIL_CHARACTERS]
