"""Finds the processes of one private cluster, whoever started them.

They are known by the data directory in the server's arguments, never by a process id read from a
file: the file may be stale and its number by now belong to someone else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.01
_REMOVE_SEGMENT = 0  # IPC_RMID, the same on Linux and macOS


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    arguments: str


def server_pid(data_directory: Path) -> int | None:
    """The process id of the postmaster that serves `data_directory`, or None."""
    serving = {
        process.pid: process
        for process in _processes()
        if _is_server_of(process.arguments, data_directory)
    }
    # A backend that was forked this instant still shows the postmaster's arguments.
    heads = [one.pid for one in serving.values() if one.parent not in serving]
    return min(heads, default=None)


def stop_server(data_directory: Path, kind: signal.Signals, timeout_seconds: float) -> bool:
    """Signal the postmaster of `data_directory`, if any, and wait for its end.

    `SIGINT` is PostgreSQL's fast shutdown, `SIGQUIT` its immediate one. Returns whether no server
    runs there any more.
    """
    pid = server_pid(data_directory)
    if pid is None:
        return True
    with suppress(ProcessLookupError):
        os.kill(pid, kind)
    return _gone({pid}, timeout_seconds)


def kill_server(data_directory: Path, timeout_seconds: float) -> bool:
    """SIGKILL every process of the server at once, as a power cut would.

    Returns whether all of them are gone. The kernel's memory segment, which would outlive them
    until the next start, is removed as well.
    """
    segment = _memory_segment(data_directory)
    pid = server_pid(data_directory)
    if pid is None:
        return True
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no further process meanwhile
    family = {one.pid for one in _processes() if pid in (one.pid, one.parent)}
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    gone = _gone(family, timeout_seconds)
    if gone and segment is not None:
        ctypes.CDLL(None).shmctl(segment, _REMOVE_SEGMENT, None)
    return gone


def end_programs(name: str, argument: str, timeout_seconds: float) -> None:
    """End every program of this name that has this argument, with SIGKILL if it must be."""
    pids = {
        process.pid
        for process in _processes()
        if process.arguments.partition(" ")[0].endswith(f"/{name}")
        and f" {argument} " in f"{process.arguments} "
    }
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
        if _gone(pids, timeout_seconds):
            return


def _gone(pids: set[int], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while any(process.pid in pids for process in _processes()):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _is_server_of(arguments: str, data_directory: Path) -> bool:
    program, _, rest = arguments.partition(" -D ")
    return program.endswith("/postgres") and rest.strip() == str(data_directory)


def _memory_segment(data_directory: Path) -> int | None:
    """The id of the System V segment, which the server writes on line 7 of its pid file."""
    try:
        line = (data_directory / "postmaster.pid").read_text().splitlines()[6]
        return int(line.split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _processes() -> list[_Process]:
    """Everything that runs; not what has ended and only waits to be reaped by its parent."""
    if Path("/proc/self/stat").exists():
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [process for pid in pids if (process := _from_proc(pid)) is not None]
    return _from_ps()


def _from_proc(pid: int) -> _Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    # The program's name stands in parentheses and may itself contain some.
    state, parent = stat.rpartition(b")")[2].split()[:2]
    if state in (b"Z", b"X"):
        return None
    return _Process(pid, int(parent), os.fsdecode(arguments.rstrip(b"\0").replace(b"\0", b" ")))


def _from_ps() -> list[_Process]:
    """The same from `ps`, for systems without /proc."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,state=,args="],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=True,
    ).stdout
    found = []
    for line in listing.splitlines():
        pid, parent, state, *arguments = line.split(None, 3)
        if not state.startswith("Z"):
            found.append(_Process(int(pid), int(parent), " ".join(arguments)))
    return found
