"""Backups of git repositories into a vault, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellarer.domain.snapshot import RestorePoint
from cellarer.flows.backup import back_up
from cellarer.git.contents import repository_name
from cellarer.sources.git import GitSource
from cellarer.targets.git import GitTarget
from cellarer.targets.git_prover import GitProver
from cellarer.vault.reader import SnapshotReader
from stand_ins import Founded, found
from targets.recorded_points import Listener


class Backups:
    """Backups of some repositories into a vault."""

    def __init__(self, directory: Path, *repositories: str | Path, **more: Any) -> None:
        self.scene: Founded = found()
        self.directory = directory
        self.repositories, self.more = [str(each) for each in repositories], more

    def source(self, **more: Any) -> GitSource:
        state = self.directory / "state"
        return GitSource("code", self.repositories, state, **{**self.more, **more})

    def take(self, **more: Any) -> RestorePoint:
        return back_up(self.scene.open(), self.source(**more), Listener(), self.scene.now)

    def reader(self, point: RestorePoint) -> SnapshotReader:
        vault = self.scene.open()
        commit = next(commit for commit in vault.commits() if commit.session == point.id)
        return SnapshotReader(vault, commit)

    def restored(
        self, point: RestorePoint, *only: str, work_tree: bool = False, name: str = "out"
    ) -> Path:
        out = self.directory / name
        target = GitTarget(out, work_tree=work_tree)
        target.prepare(overwrite=False)
        target.look(self.reader(point), only)
        target.restore(self.reader(point), only, Listener())
        return out

    def failed(self, point: RestorePoint) -> list[str]:
        judged = GitProver().prove(self.reader(point), Listener())
        assert judged.checks[0].name == "restore"
        return [check.name for check in judged.checks if not check.passed]


def named(repository: Path) -> str:
    return repository_name(str(repository))
