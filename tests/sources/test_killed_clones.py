"""A backup that is killed while `git` clones for it."""

from __future__ import annotations

import multiprocessing
import os
import select
from pathlib import Path

from cellarer.git.mirror import Mirror
from sources.repositories import made, refs


class HeldUp:
    """Clones of this user's that wait at the server until they are let go."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._begun, self._go, self.config = (directory / n for n in ("begun", "go", "config"))
        os.mkfifo(self._begun)
        os.mkfifo(self._go)
        hook = directory / "hook"
        hook.write_text(f'#!/bin/sh\necho > {self._begun}\nread go < {self._go}\nexec "$@"\n')
        hook.chmod(0o700)
        self.config.write_text(f"[uploadpack]\npackObjectsHook = {hook}\n")

    def wait(self) -> None:
        self._begun.read_bytes()

    def let_go(self) -> None:
        self._go.write_text("go\n")


def clone(path: Path, repository: Path, config: Path) -> None:
    os.environ["GIT_CONFIG_GLOBAL"] = str(config)
    Mirror(path, str(repository), None).update()


def test_a_clone_that_outlives_its_backup_does_not_disturb_the_next(tmp_path: Path) -> None:
    repository, path = made(tmp_path / "one"), tmp_path / "mirrors" / "one.git"
    processes = multiprocessing.get_context("spawn")
    first, second = HeldUp(tmp_path / "first"), HeldUp(tmp_path / "second")
    killed = processes.Process(target=clone, args=(path, repository, first.config))
    killed.start()
    first.wait()
    [orphan] = [
        int(found.parent.name)
        for found in Path("/proc").glob("[0-9]*/cmdline")
        if (words := words_of(found))[:2] == [b"git", b"clone"] and str(path.parent) in str(words)
    ]
    watched = os.pidfd_open(orphan)
    killed.kill()
    killed.join()
    following = processes.Process(target=clone, args=(path, repository, second.config))
    following.start()
    second.wait()
    first.let_go()
    select.select([watched], [], [])
    os.close(watched)
    second.let_go()
    following.join()
    assert following.exitcode == 0
    assert refs(path) == refs(repository)
    assert not path.with_suffix(".partial").exists()


def words_of(command_line: Path) -> list[bytes]:
    try:
        return command_line.read_bytes().split(b"\0")
    except OSError:
        return []  # it has ended
