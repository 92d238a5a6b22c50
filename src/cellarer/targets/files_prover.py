"""Proves a point of files: all restored, and each compared with what was noted of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from cellarer.domain.snapshot import Check
from cellarer.errors import TargetFailed
from cellarer.filesystem.node import Node, decoded, kind_of, parts
from cellarer.ports import Judgement, PointReader, Progress
from cellarer.targets.file_tree import FilesTarget, chosen_nodes
from cellarer.targets.scratch import scratch_directory

RESTORE = "restore"
_LINES = 5


class FilesProver:
    """Restores every file into a directory for a moment. Contents are compared with their sums."""

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        """See `ports.Prover`. Raises `DamagedData`, and `TargetFailed` for want of room."""
        began = time.monotonic()
        with scratch_directory() as directory:
            target = FilesTarget(directory / "files")
            target.prepare(overwrite=False)
            try:
                target.restore(reader, (), progress)
            except TargetFailed as error:
                if isinstance(error.__cause__, OSError):
                    raise
                problem = "\n".join(part for part in (error.message, error.detail) if part)
                return Judgement([Check(RESTORE, False, "all files", problem)])
            seconds = time.monotonic() - began
            count, wrong, changed = 0, list[str](), list[str]()
            for node in chosen_nodes(reader, (), set()):
                count += 1
                wrong += _differences(node, directory / "files")
                changed += [node.path] if node.changed else []
        return Judgement(
            [
                Check(RESTORE, True, "all files", f"in {seconds:.1f} s"),
                _listed("files", f"{count} as they were noted", wrong),
                _listed("steady", "no file written to while it was read", changed),
            ]
        )


def _listed(name: str, expected: str, wrong: list[str]) -> Check:
    found = f"{len(wrong)}: {', '.join(wrong[:_LINES])}" if wrong else expected
    return Check(name, not wrong, expected, found)


def _differences(node: Node, root: Path) -> Iterator[str]:
    """What of a restored node is not as it was noted."""
    place = root.joinpath(*map(os.fsdecode, parts(node.path)))
    try:
        found = place.lstat()
    except FileNotFoundError:
        if node.kind != "device" or os.geteuid() == 0:
            yield f"{node.path} is not there"
        return
    if kind_of(found.st_mode) != node.kind:
        yield f"{node.path} is no {node.kind}"
        return
    if node.kind == "symlink":
        if os.readlink(os.fsencode(place)) != decoded(node.link):  # noqa: PTH115 - as it is
            yield f"{node.path} leads elsewhere"
        return
    if found.st_mode & 0o7777 != node.mode:
        yield f"{node.path} has another mode"
    if found.st_mtime_ns != node.mtime_ns:
        yield f"{node.path} has another time"
    if node.kind == "file" and not node.same and found.st_size != node.size_bytes:
        yield f"{node.path} has another size"
    if node.same:
        first = root.joinpath(*map(os.fsdecode, parts(node.same)))
        if not os.path.samestat(found, first.lstat()):
            yield f"{node.path} is no other name of {node.same}"
