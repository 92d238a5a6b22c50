"""PostgreSQL's files beside and of its log, as far as they have to be looked into."""

from __future__ import annotations

from pathlib import Path

from cellarer.errors import SourceFailed, UsageError
from cellarer.postgres.data_directory import CONTROL_FILE, read_control

PAGE_BYTES = 8192
"""The block size of WAL (`XLOG_BLCKSZ`) in every build that is distributed."""


def system_of(directory: Path, command: str) -> str:
    """The system identifier of the cluster in whose data directory PostgreSQL runs `command`.

    Raises `UsageError` where no cluster is there, `SourceFailed` where nobody can look.
    """
    try:
        control = read_control(directory)
    except OSError as error:
        raise unreadable(str(directory / CONTROL_FILE), error) from error
    if control is None:
        raise UsageError(
            "it is not known which cluster this belongs to",
            detail=f"{directory} is no data directory: it has no {CONTROL_FILE}",
            hint=f"{command} runs in the data directory; elsewhere add --system IDENTIFIER, as "
            "pg_controldata shows it",
        )
    return control.system_identifier


def unreadable(name: str, error: OSError) -> SourceFailed:
    """That a file of a server's cannot be read, to be raised."""
    return SourceFailed(
        f"{name} cannot be read",
        detail=str(error),
        hint="name a file that is there, as PostgreSQL gives it"
        if isinstance(error, FileNotFoundError)
        else "run this as the user that runs PostgreSQL",
    )


def data_end(path: Path, start: int) -> int:
    """Where the log in a segment's file ends that is being received; the rest of it is zeros.

    Every page of log begins with a header, so the first without one was never written. Looked for
    from `start` on. Zeros at the very end of what was written cannot be told from the rest, and
    need not be: a reader fills up with zeros.
    """
    end, at = start, start - start % PAGE_BYTES
    with path.open("rb") as file:
        file.seek(at)
        while page := file.read(PAGE_BYTES):
            written = len(page.rstrip(b"\0"))
            if not written:
                break
            end, at = max(end, at + written), at + len(page)
    return end
