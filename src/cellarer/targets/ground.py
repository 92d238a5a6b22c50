"""Looks at the directories that a base backup would be restored into, and refuses what is not safe.

Nothing here changes anything. A restore that was interrupted is known by the mark that it left; it
has no control file, so that no server starts it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cellarer.domain.quantity import about_size
from cellarer.errors import TargetFailed
from cellarer.postgres.basebackup import BackupFacts
from cellarer.postgres.data_directory import looks_like_one, read_control, refuse_running
from cellarer.targets.places import Placed, Places

MARK = "cellarer-restore.json"
"""Lies in a data directory from the first change to the last."""

_ALWAYS_THERE = {"lost+found"}
_SPARE_BYTES = 64 * 2**20
_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Mark:
    """Whose restore is under way, and which directories it writes into."""

    system_identifier: str
    point: str
    roots: tuple[str, ...]

    def to_json(self) -> bytes:
        """The content of the file."""
        return json.dumps(
            {"system_identifier": self.system_identifier, "point": self.point, "roots": self.roots}
        ).encode()


def read_mark(data: Path) -> Mark | None:
    """The mark of an interrupted restore, if there is one."""
    try:
        values = json.loads((data / MARK).read_bytes())
        roots = tuple(str(root) for root in values["roots"])
        return Mark(str(values["system_identifier"]), str(values["point"]), roots)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def examine(places: Places, facts: BackupFacts, *, delta: bool, overwrite: bool) -> list[str]:
    """The directories whose content would be replaced. Raises `TargetFailed` for what must not be.

    With `delta` or `overwrite` a data directory may be there; without `overwrite` only one of the
    same system. Anything else that is not empty is refused whatever was asked for.
    """
    data = places.data
    _refuse_no_directory(places.roots)
    refuse_running(data)
    occupied = [root for root in places.roots if _content(root)]
    mark = read_mark(data)
    if data in occupied:
        _judge_data(data, facts, mark, delta=delta, overwrite=overwrite)
    linked = _linked(data) | set(mark.roots if mark else ())
    for root in occupied:
        if root != data and str(root) not in linked:
            raise TargetFailed(
                f"the directory of a tablespace, {root}, is not empty",
                detail=f"no link in {data / 'pg_tblspc'} leads there, so it may be another"
                " server's",
                hint="Give it another place: --tablespace OLD=NEW.",
            )
    return [str(root) for root in occupied]


def refuse_no_room(
    places: Places, files: Iterable[Placed], replay_bytes: int, freed: Iterable[Path]
) -> None:
    """Raise `TargetFailed` where a file system has not the room for what goes there.

    `freed` are the directories whose content makes place; `replay_bytes` of WAL come to the data
    directory besides.
    """
    needed: dict[int, int] = defaultdict(int)
    shown: dict[int, Path] = {}
    device = {root: _device(root, shown) for root in places.roots}
    for placed in files:
        needed[device[placed.root]] += _rounded(placed.entry.size_bytes)
    needed[device[places.data]] += replay_bytes + _SPARE_BYTES
    for root in freed:
        needed[device[root]] -= sum(_allocated(root))
    for number, want in needed.items():
        room = os.statvfs(shown[number])
        free = room.f_bavail * room.f_frsize
        if want > free:
            raise TargetFailed(
                f"there is not enough room at {shown[number]}",
                detail=f"{about_size(want)} are needed, {about_size(free)} are free",
                hint="Free some space, name a directory on a larger disk, or move tablespaces"
                " elsewhere: --tablespace OLD=NEW. Nothing has been written.",
            )


def _judge_data(
    data: Path, facts: BackupFacts, mark: Mark | None, *, delta: bool, overwrite: bool
) -> None:
    control = read_control(data)
    if not (mark or looks_like_one(data)):
        raise TargetFailed(
            f"{data} holds something that is no PostgreSQL data directory",
            detail=", ".join(_content(data)[:5]),
            hint="Name an empty directory, or one that is not there.",
        )
    if not (delta or overwrite):
        what = "an interrupted restore" if mark and not control else "a data directory"
        raise TargetFailed(
            f"{data} is not empty: it holds {what}",
            hint="Name another directory. Or add --delta, to write only what differs, or"
            " --overwrite, to replace all of it.",
        )
    there = control.system_identifier if control else mark.system_identifier if mark else None
    if there != facts.system_identifier and not overwrite:
        raise TargetFailed(
            f"{data} is of another database system",
            detail=f"its identifier is {there or 'unknown'}, the base backup's"
            f" {facts.system_identifier}",
            hint="Name another directory, or add --overwrite to replace it all the same.",
        )


def _refuse_no_directory(roots: Iterable[Path]) -> None:
    for root in roots:
        if os.path.lexists(root) and (root.is_symlink() or not root.is_dir()):
            raise TargetFailed(
                f"{root} is no directory",
                detail="links are not followed" if root.is_symlink() else "a file lies there",
                hint="Name the directory itself, or one that is not there.",
            )


def _content(root: Path) -> list[str]:
    try:
        return sorted({path.name for path in root.iterdir()} - _ALWAYS_THERE)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise TargetFailed(
            f"{root} cannot be looked into",
            detail=error.strerror or "",
            hint="Run this as the user that owns it.",
        ) from error


def _linked(data: Path) -> set[str]:
    """Where the links of an existing data directory's tablespaces lead."""
    links = data / "pg_tblspc"
    try:
        return {str(link.readlink()) for link in links.iterdir() if link.is_symlink()}
    except OSError:
        return set()


def _device(root: Path, shown: dict[int, Path]) -> int:
    """The file system of a directory, or of the nearest parent that is there."""
    there = next(path for path in (root, *root.parents) if path.is_dir())
    number = there.stat().st_dev
    shown.setdefault(number, there)
    return number


def _allocated(root: Path) -> Iterator[int]:
    for directory, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(directory, name))  # noqa: PTH118 - millions of them
            yield status.st_blocks * 512


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
