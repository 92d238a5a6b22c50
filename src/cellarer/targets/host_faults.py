"""Tells the faults of this host from those of the point that is being proven on it.

A sandbox that runs out of room or whose server is killed says nothing about the point. Errors are
told apart by the server's own words at the place where it writes them: a row that holds the same
words stands in quotes, or in a part of the message that is not looked at.
"""

from __future__ import annotations

import re

import psycopg

_ERROR = r"(?:^|(?:ERROR|FATAL|PANIC):  )"
_ROOM = re.compile(
    _ERROR + r"could not .*: (?:No space left on device|Disk quota exceeded|File too large"
    r"|wrote only \d+ of \d+ bytes at block \d+)(?= \(|$)",
    re.MULTILINE,
)
_MEMORY = re.compile(
    _ERROR + r"(?:out of (?:shared )?memory(?= \(|$)|could not .*: (?:Cannot allocate memory|"
    r"Resource temporarily unavailable|Too many open files(?: in system)?)(?= \(|$))",
    re.MULTILINE,
)
_OTHER = re.compile(
    _ERROR + r"could not .*: (?:Input/output error|Read-only file system)(?= \(|$)", re.MULTILINE
)
_GONE = re.compile(
    r"^pg_restore ended with status -\d+|"
    r"(?:^|[a-z0-9]: )(?:server closed the connection unexpectedly|no connection to the server)$|"
    r"(?:^|[a-z0-9]: )could not (?:send data to|receive data from) server: |"
    + _ERROR
    + r"(?:terminating connection because of crash of another server process"
    r"|terminating connection due to (?:administrator command|unexpected postmaster exit)"
    r"|the database system is (?:in recovery mode|starting up|shutting down)|"
    r"the database system is not (?:yet )?accepting connections)|"
    r"^(?:connection failed: )?connection to server ",
    re.MULTILINE,
)


def hint_of_host_fault(detail: str) -> str | None:
    """What to do on this host about an error of its server or programs; None for other errors."""
    if _ROOM.search(detail):
        return (
            "Free space there, or set TMPDIR to a directory on a disk with room for one copy of the"
            " database."
        )
    if _MEMORY.search(detail):
        return "Free memory on this host, or verify on a larger one."
    if _OTHER.search(detail):
        return "See whether the disk of this host is sound, or set TMPDIR to another one."
    if _GONE.search(detail):
        return "Its server was killed, as a host short of memory does: free some, then run again."
    return None


def is_of_the_host(error: psycopg.Error) -> bool:
    """Whether a query failed for want of room or of its server, and not for what it asked."""
    # Classes of SQLSTATE: connection, insufficient resources, operator, system.
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(("08", "53", "57P", "58"))
