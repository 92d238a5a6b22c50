"""Which files of a cluster belong into a base backup: the rules of `pg_basebackup`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellarer.errors import SourceFailed
from cellarer.postgres.basebackup import DATA, TABLESPACES
from cellarer.postgres.data_directory import CONTROL_FILE

_EMPTIED = {
    *("pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp"),
    *("pg_subtrans", "pg_wal"),
}
"""Directories whose content is of no use after a recovery; they themselves have to be there."""

_LEFT_OUT = {
    *("backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old"),
    *("backup_manifest", "postmaster.pid", "postmaster.opts", "current_logfiles.tmp"),
    "postgresql.auto.conf.tmp",
}
_LEFT_OUT_PREFIXES = ("pgsql_tmp", "pg_internal.init")

_RELATION = re.compile(r"(?P<number>[0-9]+)(?:_(?P<fork>fsm|vm|init))?(?:\.(?P<segment>[0-9]+))?")
_MAIN_FORK = re.compile(
    rf"(?:{DATA}/(?P<shared>global)/|(?:{DATA}/base/"
    rf"|(?:{TABLESPACES}/(?P<apart>[0-9]+)|{DATA}/pg_tblspc/(?P<inside>[0-9]+))/PG_[^/]+/)"
    r"(?P<database>[0-9]+)/)(?P<number>[0-9]+)(?:\.[0-9]+)?"
)
_TEMPORARY = re.compile(r"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?")
_TABLESPACE = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class BaseFile:
    """A file to back up: the path of its stream, the file, and how large it was when listed.

    `relation` is a fork of one.
    """

    path: str
    place: str
    relation: bool
    size_bytes: int


@dataclass(frozen=True)
class Listing:
    """What is to be backed up, in the order of the paths of streams, but for `pg_control`.

    `tablespaces` has where each lies, by its oid.
    """

    files: tuple[BaseFile, ...]
    directories: tuple[str, ...]
    tablespaces: dict[int, str]


def list_files(data_directory: Path) -> Listing:
    """What lies in a data directory and its tablespaces now. Raises `SourceFailed`."""
    files: list[BaseFile] = []
    directories: list[str] = []
    tablespaces = _tablespaces(data_directory)
    roots = {DATA: str(data_directory)}
    roots |= {f"{TABLESPACES}/{oid}": path for oid, path in tablespaces.items()}
    for prefix, root in roots.items():
        for relative, sizes in _walk(root):
            if relative:
                directories.append(f"{prefix}/{relative}")
            files += _chosen(prefix, root, relative, sizes)
    files.sort(key=lambda file: file.path)
    return Listing(tuple(files), tuple(sorted(directories)), tablespaces)


def segment_of(path: str) -> int:
    """Which segment of its relation a file is, by its name; they have as many pages each."""
    match = _RELATION.fullmatch(path.rpartition("/")[2])
    return int(match["segment"] or 0) if match else 0


@dataclass(frozen=True)
class Locator:
    """Which relation a file is of: the oids of its tablespace and its database, and its number."""

    tablespace: int
    database: int
    relation: int


def locator_of(path: str) -> Locator | None:
    """Of which relation a stream is a file of the main fork; None where it is of none.

    The shared tablespace and the default one have the same oids in every cluster.
    """
    match = _MAIN_FORK.fullmatch(path)
    if match is None:
        return None
    if match["shared"]:
        return Locator(1664, 0, int(match["number"]))
    space = match["apart"] or match["inside"] or 1663
    return Locator(int(space), int(match["database"]), int(match["number"]))


def filenode_of(path: str) -> int:
    """The number in the name of a relation's file; 0 for other files."""
    match = _RELATION.fullmatch(path.rpartition("/")[2])
    return int(match["number"]) if match else 0


def is_relation(path: str) -> bool:
    """Whether a path below a data directory, or below a tablespace, is a fork of a relation."""
    folder, _, name = path.rpartition("/")
    return _of_databases(folder) and _RELATION.fullmatch(name) is not None


def _tablespaces(data_directory: Path) -> dict[int, str]:
    """Where the tablespaces lie that are links; those that lie in place are files like others."""
    found = {}
    place = str(data_directory / "pg_tblspc")
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if _TABLESPACE.fullmatch(entry.name) and entry.is_symlink():
                    found[int(entry.name)] = str(Path(entry.path).readlink())
    except OSError as error:
        raise _unreadable(place, error) from error
    return dict(sorted(found.items()))


def _walk(root: str, relative: str = "") -> Iterator[tuple[str, dict[str, int]]]:
    """Directories below a root, parents first, each with its files and how large they are."""
    sizes: dict[str, int] = {}
    below: list[str] = []
    place = f"{root}/{relative}" if relative else root
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                inside = f"{relative}/{entry.name}" if relative else entry.name
                if entry.name.startswith(_LEFT_OUT_PREFIXES):
                    continue
                if entry.is_dir(follow_symlinks=inside == "pg_wal"):
                    below.append(inside)
                elif (size := _file_bytes(entry)) is not None:
                    sizes[entry.name] = size
    except FileNotFoundError:
        return  # dropped this instant
    except OSError as error:
        raise _unreadable(place, error) from error
    yield relative, {} if relative in _EMPTIED else sizes
    for inside in sorted(below):
        if relative == "pg_wal":
            yield inside, {}
        elif relative not in _EMPTIED:
            yield from _walk(root, inside)


def _file_bytes(entry: os.DirEntry[str]) -> int | None:
    """How large a file is, or what a link leads to; None for none, and where it is gone."""
    try:
        found = entry.stat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _chosen(prefix: str, root: str, relative: str, sizes: dict[str, int]) -> Iterator[BaseFile]:
    """The files of one directory that belong into the backup."""
    databases = _of_databases(relative)
    unlogged = {
        match["number"]
        for name in sizes
        if databases and (match := _RELATION.fullmatch(name)) and match["fork"] == "init"
    }
    for name, size_bytes in sizes.items():
        inside = f"{relative}/{name}" if relative else name
        match = _RELATION.fullmatch(name) if databases else None
        if match and match["number"] in unlogged and match["fork"] != "init":
            continue
        if databases and _TEMPORARY.fullmatch(name):
            continue
        if name in _LEFT_OUT or (prefix == DATA and inside == CONTROL_FILE):
            continue
        yield BaseFile(f"{prefix}/{inside}", f"{root}/{inside}", match is not None, size_bytes)


def _of_databases(folder: str) -> bool:
    """Whether relations lie in a directory, given below a data directory or a tablespace."""
    parts = folder.split("/")
    if parts[0] == "pg_tblspc" and len(parts) > 1:
        parts = parts[2:]
    if parts == ["global"] or (len(parts) == 2 and parts[0] == "base"):
        return True
    return len(parts) == 2 and parts[0].startswith("PG_")


def _unreadable(place: str, error: OSError) -> SourceFailed:
    return SourceFailed(
        f"{place} cannot be read",
        detail=error.strerror or str(error),
        hint='Run cellarer as the user of the server, or set read = "replication" for the source.',
    )
