"""Looks at an existing PostgreSQL data directory, without trusting that it is one."""

from __future__ import annotations

import os
import stat
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cellarer.errors import TargetFailed
from cellarer.postgres.processes import server_pid

PID_FILE = "postmaster.pid"
CONTROL_FILE = "global/pg_control"
VERSION_FILE = "PG_VERSION"

# The beginning of pg_control is the same in every version: system identifier, version of the
# file's format, version of the catalogue, state of the cluster; in the byte order of the host.
_CONTROL = struct.Struct("=QIII")
_CONTROL_AT_MOST = 512
"""Bytes that it holds at most, so that a disk writes them as one (PG_CONTROL_MAX_SAFE_SIZE)."""


@dataclass(frozen=True)
class Control:
    """The part of pg_control that says whose it is. `system_identifier` is decimal text."""

    system_identifier: str
    state: int

    @property
    def shut_down(self) -> bool:
        """Whether the server was stopped in order, on a primary or in recovery."""
        return self.state in (1, 2)


def parse_control(data: bytes) -> Control | None:
    """What a control file says, or None where it is too short to be one."""
    if len(data) < _CONTROL.size:
        return None
    identifier, _version, _catalogue, state = _CONTROL.unpack_from(data)
    return Control(str(identifier), state)


def control_is_whole(data: bytes) -> bool:
    """Whether a control file is as it was written: at its end stands a sum of all before.

    Where it ends differs between versions, so the sum may stand at any place that is possible.
    """
    crc, table = 0xFFFFFFFF, _crc_table()
    for at, byte in enumerate(data[:_CONTROL_AT_MOST]):
        if (
            at > _CONTROL.size
            and (crc ^ 0xFFFFFFFF).to_bytes(4, sys.byteorder) == data[at : at + 4]
        ):
            return True
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return False


@cache
def _crc_table() -> list[int]:
    """Of CRC-32C, the polynomial of Castagnoli, with the lowest bit first (RFC 3720, B.4)."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


def read_control(directory: Path) -> Control | None:
    """Whose data directory this is; None where it has no control file, so no server starts it."""
    try:
        return parse_control((directory / CONTROL_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def serving(directory: Path) -> int | None:
    """The process that serves this directory, or may do so, as far as can be seen from here."""
    if (pid := server_pid(directory)) is not None:
        return pid
    try:
        pid = abs(int((directory / PID_FILE).read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return None
    # A stale file is no server. One whose number belongs to somebody else by now looks like one:
    # better refused than overwritten while it runs.
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
    return pid


def refuse_running(directory: Path) -> None:
    """Raise `TargetFailed` where a server runs on this directory."""
    if (pid := serving(directory)) is not None:
        raise TargetFailed(
            f"a server runs on {directory}",
            detail=f"its process is {pid}",
            hint="Stop it first (`pg_ctl stop -D`), or name another directory. If no PostgreSQL "
            f"has that process id, remove {directory / PID_FILE}.",
        )


def looks_like_one(directory: Path) -> bool:
    """Whether this is a data directory, and not anything else that must never be emptied."""
    try:
        return stat.S_ISREG(os.lstat(directory / VERSION_FILE).st_mode)
    except OSError:
        return False
