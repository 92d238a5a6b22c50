"""Directories with a bit of everything, and backups of them into a vault."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cellarer.domain.snapshot import RestorePoint
from cellarer.flows.backup import back_up
from cellarer.sources import files as module
from cellarer.sources.files import FilesSource
from cellarer.targets.file_tree import FilesTarget
from cellarer.targets.files_prover import FilesProver
from cellarer.vault.reader import SnapshotReader
from stand_ins import Founded, found, noise
from targets.recorded_points import Listener

OLD_NS = 1_600_000_000_123_456_789


class Backups:
    """Backups of one directory into a vault."""

    def __init__(self, directory: Path, **more: Any) -> None:
        self.scene: Founded = found()
        self.directory, self.tree, self.more = directory, directory / "tree", more
        self.tree.mkdir()
        self.told = Listener()

    def source(self, **more: Any) -> FilesSource:
        state = self.directory / "state"
        return FilesSource("files", [str(self.tree)], state, **{**self.more, **more})

    def take(self, **more: Any) -> RestorePoint:
        return back_up(self.scene.open(), self.source(**more), self.told, self.scene.now)

    def reader(self, point: RestorePoint) -> SnapshotReader:
        vault = self.scene.open()
        commit = next(commit for commit in vault.commits() if commit.session == point.id)
        return SnapshotReader(vault, commit)

    def restored(
        self, point: RestorePoint, *only: str, overwrite: bool = False, name: str = "out"
    ) -> Path:
        """The directory as it came back."""
        target = FilesTarget(self.directory / name)
        target.prepare(overwrite)
        target.look(self.reader(point), only)
        target.restore(self.reader(point), only, Listener())
        return self.directory / name / str(self.tree).strip("/")

    def failed(self, point: RestorePoint) -> list[str]:
        checks = FilesProver().prove(self.reader(point), Listener()).checks
        return [check.name for check in checks if not check.passed]


@pytest.fixture
def backups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backups:
    """Files that were just written count as settled, so that a test need not wait a minute."""
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**9))
    return Backups(tmp_path)


def state(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below a directory with all that belongs to it."""
    told: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for folder, below, names in os.walk(top):
        for name in [*below, *names, b"."]:
            path = folder + b"/" + name
            found = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)  # noqa: PTH115 - as it is
            elif stat.S_ISREG(found.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            told[os.path.relpath(path, top)] = (
                *(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns),
                *(found.st_nlink if stat.S_ISREG(found.st_mode) else 0, content),
            )
    return told


def filled(tree: Path) -> None:
    """A bit of everything."""
    (tree / "empty").touch()
    (tree / "private").write_bytes(noise(1, 90_000))
    (tree / "private").chmod(0o600)
    (tree / "tool").write_text("#!/bin/sh\n")
    (tree / "tool").chmod(0o4755)
    (tree / "folder" / "deep" / "deeper").mkdir(parents=True)
    (tree / "folder" / "deep" / "note.txt").write_text("hello")
    (tree / "folder" / "nothing").mkdir(mode=0o1777)
    (tree / "link").symlink_to("folder/deep//note.txt")
    (tree / "dangling").symlink_to("/no/where")
    os.link(tree / "private", tree / "twin")
    os.mkfifo(tree / "pipe", 0o640)
    for name in (b"latin-\xe9", b"new\nline", b"100%25 %", "grün ñ".encode(), b"-rf"):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(name)
    if os.geteuid() == 0:
        os.chown(tree / "folder" / "deep" / "note.txt", 12345, 54321)
        os.lchown(tree / "link", 12345, 54321)
    for place in sorted(tree.rglob("*"), reverse=True):
        os.utime(place, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
