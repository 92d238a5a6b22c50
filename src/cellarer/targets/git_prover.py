"""Proves a point of repositories: each restored, checked by `git fsck`, compared ref for ref."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from cellarer.domain.snapshot import Check
from cellarer.errors import TargetFailed
from cellarer.git.contents import Repository, listed_refs, read_repositories
from cellarer.git.program import Git, GitFailed
from cellarer.ports import Judgement, PointReader, Progress
from cellarer.targets.git import write_repository
from cellarer.targets.scratch import scratch_directory

RESTORE = "restore"


class GitProver:
    """Restores every repository into a directory for a moment."""

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        """See `ports.Prover`. Raises `DamagedData`, and `TargetFailed` for want of room."""
        began = time.monotonic()
        checks: list[Check] = []
        repositories = read_repositories(reader)
        expected = f"{len(repositories)} repositories"
        with scratch_directory() as directory:
            for number, repository in enumerate(repositories):
                place = directory / f"{number}.git"
                try:
                    write_repository(reader, repository, place, progress)
                except TargetFailed as error:
                    if isinstance(error.__cause__, OSError):
                        raise
                    problem = "\n".join(part for part in (error.message, error.detail) if part)
                    return Judgement([Check(RESTORE, False, expected, problem)])
                checks += _checks(repository, place)
        seconds = time.monotonic() - began
        done = Check(RESTORE, True, expected, f"{expected} in {seconds:.1f} s")
        return Judgement([done, *checks])


def _checks(repository: Repository, place: Path) -> Iterator[Check]:
    git = Git(place)
    name = repository.name
    try:
        git.run("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
        yield Check(f"git fsck of {name}", True, "no error", "no error")
    except GitFailed as error:
        yield Check(f"git fsck of {name}", False, "no error", error.detail)
    refs = listed_refs(git.run("for-each-ref", "--format=%(objectname) %(refname)"))
    wrong = sorted(r for r in {*refs, *repository.refs} if refs.get(r) != repository.refs.get(r))
    told = f"{len(wrong)} differ: {', '.join(wrong[:5])}" if wrong else f"{len(refs)} refs"
    yield Check(f"refs of {name}", not wrong, f"{repository.facts.refs} refs", told)
    if repository.facts.lfs:
        yield _large_files(repository, place)


def _large_files(repository: Repository, place: Path) -> Check:
    """Each object of Git LFS is named by its SHA-256."""
    title, facts = f"Git LFS of {repository.name}", repository.facts
    if not facts.lfs_known:
        return Check(title, False, "all objects", "none: git-lfs was not on the host that backs up")
    objects = sorted((place / "lfs" / "objects").glob("??/??/*"))
    wrong = []
    for path in objects:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                wrong.append(path.name)
    expected = f"{len(repository.lfs) + len(facts.lfs_missing)} objects"
    found = f"{len(objects)} objects"
    if {path.name for path in objects} != {e.path.rpartition("/")[2] for e in repository.lfs}:
        wrong.append("others are there")
    if wrong:
        found = f"{len(wrong)} are not what they are named by: {wrong[0]}"
    elif facts.lfs_missing:
        found += f"; the server had {len(facts.lfs_missing)} no more: {facts.lfs_missing[0]}"
    return Check(title, not wrong and not facts.lfs_missing, expected, found)
