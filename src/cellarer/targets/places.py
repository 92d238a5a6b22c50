"""Where the streams of a base backup go: the data directory, and a place for each tablespace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData, UsageError
from cellarer.postgres.basebackup import (
    CONTROL_PATH,
    DATA,
    FACTS_PATH,
    LABEL_PATH,
    TABLESPACE_MAP_PATH,
    TABLESPACES,
    WAL,
    BackupFacts,
)
from cellarer.postgres.recovery_settings import RECOVERY_SIGNAL, STANDBY_SIGNAL

# A backup of a standby holds its signal, which would make the restored server one.
_NOT_RESTORED = {
    *(f"{DATA}/{name}" for name in (RECOVERY_SIGNAL, STANDBY_SIGNAL)),
    *(FACTS_PATH, CONTROL_PATH, TABLESPACE_MAP_PATH),
}
_IN_PLACE = "pg_tblspc/"


@dataclass(frozen=True)
class Placed:
    """A stream, and where it goes: a path below a root."""

    entry: Entry
    root: Path
    path: str


@dataclass(frozen=True)
class Places:
    """The roots of a restore. `tablespaces` leads from oids to directories."""

    data: Path
    tablespaces: Mapping[int, Path]
    in_place: frozenset[int]

    @property
    def roots(self) -> list[Path]:
        """The data directory first, then the tablespaces that lie outside of it."""
        return [self.data, *(self.tablespaces[oid] for oid in self.outside)]

    @property
    def outside(self) -> list[int]:
        """The oids of the tablespaces that a link leads to."""
        return [oid for oid in self.tablespaces if oid not in self.in_place]

    def files(self, entries: Sequence[Entry]) -> list[Placed]:
        """Every stream that becomes a file before the control file does. Raises `DamagedData`."""
        return [
            Placed(entry, *self._place(entry.path))
            for entry in entries
            if entry.path not in _NOT_RESTORED
        ]

    def directories(self, facts: BackupFacts) -> Iterator[tuple[Path, str]]:
        """Every directory that has to be there: its root, and its path below."""
        for path in facts.directories:
            if path in (DATA, *(f"{TABLESPACES}/{oid}" for oid in self.tablespaces)):
                continue
            yield self._place(path)
        yield self.data, "pg_wal"
        yield self.data, "pg_wal/archive_status"
        yield self.data, "pg_tblspc"

    def tablespace_map(self) -> bytes:
        """The file that tells the recovering server where the tablespaces are."""
        lines = [f"{oid} {_escaped(str(self.tablespaces[oid]))}\n" for oid in self.outside]
        return "".join(lines).encode("utf-8", "surrogateescape")

    def _place(self, path: str) -> tuple[Path, str]:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in path:
            raise _foreign(path)
        if path == LABEL_PATH:
            return self.data, path
        head, rest = parts[0], "/".join(parts[1:])
        if head == DATA and rest:
            return self.data, rest
        if head == WAL and len(parts) == 2:
            return self.data, f"pg_wal/{rest}"
        if head == TABLESPACES and len(parts) > 2 and parts[1].isdecimal():
            root = self.tablespaces.get(int(parts[1]))
            if root is not None:
                return root, "/".join(parts[2:])
        raise _foreign(path)


def places(data: Path, facts: BackupFacts, moved: Mapping[str, Path]) -> Places:
    """The places of a restore; `moved` leads from tablespaces (paths or names) to new directories.

    Raises `UsageError` where that names no tablespace, or places that overlap.
    """
    known = {one.path for one in facts.tablespaces} | {one.name for one in facts.tablespaces}
    if unknown := [old for old in moved if old not in known]:
        listed = ", ".join(f"{one.name} at {one.path}" for one in facts.tablespaces)
        raise UsageError(
            f"the base backup has no tablespace {unknown[0]}",
            detail=f"it has {listed or 'none'}",
            hint="give --tablespace OLD=NEW with the path or the name that it had",
        )
    chosen: dict[int, Path] = {}
    in_place = set()
    for one in facts.tablespaces:
        new = moved.get(one.path) or moved.get(one.name)
        if new is None and one.path.startswith(_IN_PLACE):
            chosen[one.oid] = data / "pg_tblspc" / str(one.oid)
            in_place.add(one.oid)
            continue
        chosen[one.oid] = (new or Path(one.path)).absolute()
    found = Places(data, chosen, frozenset(in_place))
    _refuse_overlap(found.roots)
    return found


def _refuse_overlap(roots: Sequence[Path]) -> None:
    resolved = [root.resolve() for root in roots]
    for number, root in enumerate(resolved):
        for other in resolved[:number]:
            if root.is_relative_to(other) or other.is_relative_to(root):
                raise UsageError(
                    f"{root} and {other} lie in each other",
                    hint="give each tablespace a directory of its own outside of the data"
                    " directory: --tablespace OLD=NEW",
                )


def _escaped(path: str) -> str:
    """As the server escapes it in that file."""
    for character in ("\\", "\n", "\r"):
        path = path.replace(character, f"\\{character}")
    return path


def _foreign(path: str) -> DamagedData:
    return DamagedData(
        "the base backup names a file that no data directory has",
        detail=repr(path),
        hint="Nothing has been written. No source names files like that: trust this point not.",
    )
