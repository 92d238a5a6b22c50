"""Runs `pg_restore` and judges every error that it reports.

`pg_restore` goes on after an error and says "errors ignored on restore" at the end. Here an error
is either on the short list of the harmless ones, each with its reason, or the restore has failed.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cellarer.errors import TargetFailed
from cellarer.postgres.complaints import advice
from cellarer.postgres.conninfo import for_programs

_LISTED_ERRORS = 10
_MESSAGE_CHARACTERS = 500
_END_SECONDS = 10.0

_LINE = re.compile(r"^(?:\S*/)?pg_restore(?:\.exe)?: (.*)$")
_ENTRY = re.compile(r"^from TOC entry \d+; \d+ \d+ (.*)$")
_IGNORED = re.compile(r"^warning: errors ignored on restore: (\d+)$")
_VERBOSE_HINT = ("DETAIL: ", "HINT: ")

# (statement, message): only where both match. PostgreSQL 17 and newer set this timeout at the
# start of every restore; servers before 17 do not know it and have no such timeout to turn off.
_HARMLESS = (
    (
        re.compile(r"^SET transaction_timeout = 0;$"),
        re.compile(r'unrecognized configuration parameter "transaction_timeout"'),
    ),
)


@dataclass
class RestoreError:
    """One error as `pg_restore` reports it, with the entry of the archive that it is about."""

    entry: str
    message: str
    statement: str = ""

    @property
    def harmless(self) -> bool:
        """Whether nothing of the data or the schema is missing because of it."""
        return any(
            statement.search(self.statement) and message.search(self.message)
            for statement, message in _HARMLESS
        )

    def __str__(self) -> str:
        return f"{self.entry}: {self.message}" if self.entry else self.message


@dataclass
class Report:
    """What `pg_restore` wrote: the first errors that count, how many, and warnings."""

    errors: list[RestoreError] = field(default_factory=list)
    error_count: int = 0
    harmless_count: int = 0
    ignored_count: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every error that was reported is known to be harmless."""
        return self.error_count == 0 and self.ignored_count <= self.harmless_count

    def read(self, lines: Iterable[str]) -> Report:
        """Take in the lines of standard error, which are `--verbose`, and return this report."""
        entry, current = "", None
        for line in lines:
            text = line.rstrip("\n")
            match = _LINE.match(text)
            if match is None:
                if current is not None:
                    _extend(current, text)
                continue
            self._close(current)
            current, said = None, match[1]
            if found := _ENTRY.match(said):
                entry = found[1]
            elif said.startswith("error: "):
                current = RestoreError(entry, said.removeprefix("error: "))
            elif found := _IGNORED.match(said):
                self.ignored_count = int(found[1])
            elif said.startswith("warning: ") and len(self.warnings) < _LISTED_ERRORS:
                self.warnings.append(said.removeprefix("warning: "))
        self._close(current)
        return self

    def _close(self, error: RestoreError | None) -> None:
        if error is None:
            return
        if error.harmless:
            self.harmless_count += 1
            return
        self.error_count += 1
        if len(self.errors) < _LISTED_ERRORS:
            self.errors.append(error)


def run_pg_restore(
    program: Path, dsn: str, arguments: Sequence[str | Path], archive: Iterable[bytes] = ()
) -> list[str]:
    """Run `pg_restore` into the database of `dsn`, with `archive` on its standard input.

    Returns its warnings. Raises `TargetFailed` with the first errors and what they are about. When
    `archive` raises, the program is stopped in the middle of the table, which the server then
    rolls back, and the exception goes on.
    """
    conninfo, environment = for_programs(dsn)
    command = [program, "--verbose", "--no-password", "--dbname", conninfo, *arguments]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        report, errors = Report(), process.stderr
        # Read at the same time, or a program with much to say and one with much to send
        # would wait for each other.
        reading = threading.Thread(target=lambda: report.read(_lines(errors)), daemon=True)
        reading.start()
        try:
            _feed(process.stdin, archive)
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            reading.join()
    _judge(status, report)
    return report.warnings


def _feed(pipe: IO[bytes], archive: Iterable[bytes]) -> None:
    # A program that ended early breaks the pipe; its status and its words say why.
    with suppress(BrokenPipeError):
        for block in archive:
            pipe.write(block)
    with suppress(BrokenPipeError):
        pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the program. On SIGTERM it also cancels what its workers run in the server."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _judge(status: int, report: Report) -> None:
    # Status 1 with its closing count is how it ends after errors that it went on from; without the
    # count it died, whatever it had said before.
    went_on = status == 1 and report.ignored_count > 0
    if report.clean and (status == 0 or went_on):
        return
    if report.error_count == 0:
        detail = f"pg_restore ended with status {status} and {report.ignored_count} errors"
    else:
        detail = "\n".join(str(error) for error in report.errors)
        if report.error_count > len(report.errors):
            detail += f"\nand {report.error_count - len(report.errors)} more"
    raise TargetFailed(
        "pg_restore reported an error"
        if report.error_count <= 1
        else f"pg_restore reported {report.error_count} errors",
        detail=detail,
        hint=_hint(detail),
    )


def _hint(detail: str) -> str:
    if "extension" in detail and "not available" in detail:
        return "Install the packages of the missing extensions beside the server."
    if "permission denied" in detail or "must be owner" in detail or "must be superuser" in detail:
        return "Connect as a user who may do this, best a superuser of the target server."
    if "No space left" in detail or "Check free disk space" in detail:
        return "Free space on the disk of the target server: it has to hold old and new at once."
    return advice(detail).hint or "Remove the cause."


def _lines(pipe: IO[bytes]) -> Iterable[str]:
    # A statement may hold a very long line; only its beginning matters.
    while line := pipe.readline(65536):
        yield line.decode("utf-8", "replace")


def _extend(error: RestoreError, text: str) -> None:
    if text.startswith("Command was: "):
        error.statement = text.removeprefix("Command was: ")
    elif error.statement:
        if text.strip():
            error.statement = f"{error.statement}\n{text}"[:_MESSAGE_CHARACTERS]
    elif text.startswith(_VERBOSE_HINT):
        error.message = f"{error.message} ({text})"[:_MESSAGE_CHARACTERS]
