"""Restores repositories: each as a bare mirror, or with its work tree."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from cellarer.domain.snapshot import Entry
from cellarer.errors import TargetFailed, UsageError
from cellarer.git.contents import LFS, Repository, read_repositories
from cellarer.git.dependencies import has_lfs
from cellarer.git.program import Git, GitFailed
from cellarer.ports import Outlook, PointReader, Progress, Restored

_PARTIAL = ".cellarer-{}.partial"
_DURABLE = {"core.fsync": "all", "core.fsyncMethod": "fsync"}


class GitTarget:
    """Writes repositories below `path`, each under its name: `NAME.git`, or `NAME` with its files.

    Each is whole before it gets its name, with all refs and the address that it came from.
    Patterns in `only` choose repositories by name.
    """

    def __init__(self, path: Path, *, work_tree: bool = False) -> None:
        self._path, self._work_tree = path.absolute(), work_tree
        self._overwrite = False

    def prepare(self, overwrite: bool) -> None:
        """Say whether what is there may be replaced."""
        self._overwrite = overwrite
        if os.path.lexists(self._path) and not self._path.is_dir():
            raise TargetFailed(
                f"{self._path} is no directory", hint="name one that is, or is not there"
            )

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        """What would be read and replaced. Raises what a restore would refuse."""
        chosen = chosen_repositories(reader, only)
        present = self._present(chosen)
        sizes = (entry.size_bytes for each in chosen for entry in (*each.packs, *each.lfs))
        return Outlook(sum(sizes), tuple(str(place) for place in present), as_verified=False)

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        """Write the repositories. Raises `TargetFailed`, `DamagedData`."""
        began = time.monotonic()
        chosen = chosen_repositories(reader, only)
        self._present(chosen)
        restored_bytes = 0
        for repository in chosen:
            place = self._place(repository)
            with _renamed_when_whole(place) as partial:
                directory = partial / ".git" if self._work_tree else partial
                restored_bytes += write_repository(reader, repository, directory, progress)
                if self._work_tree:
                    _check_out(partial, repository, progress)
        return Restored(restored_bytes, time.monotonic() - began, reader.point)

    def _place(self, repository: Repository) -> Path:
        name = repository.name if self._work_tree else f"{repository.name}.git"
        return self._path.joinpath(*name.split("/"))

    def _present(self, chosen: Sequence[Repository]) -> list[Path]:
        """What is there already. Raises `TargetFailed` where it must stay."""
        places = {self._place(repository) for repository in chosen}
        if inside := [place for place in places if not places.isdisjoint(place.parents)]:
            raise TargetFailed(
                f"{inside[0]} would lie in the files of another repository",
                hint="restore them one by one, with --only and into directories of their own",
            )
        present = [place for place in sorted(places) if os.path.lexists(place)]
        if present and not self._overwrite:
            raise TargetFailed(
                f"{present[0]} is there already",
                hint="Name another directory, or add --overwrite.",
            )
        return present


def chosen_repositories(reader: PointReader, only: tuple[str, ...]) -> list[Repository]:
    """Those of a point that match any pattern. Raises `UsageError` for one that matches none."""
    found = read_repositories(reader)
    for pattern in only:
        if not any(_matches(repository, pattern) for repository in found):
            raise UsageError(
                f"no repository in restore point {reader.point} matches {pattern}",
                detail=f"there are {', '.join(repository.name for repository in found)}",
            )
    return [r for r in found if not only or any(_matches(r, pattern) for pattern in only)]


def write_repository(
    reader: PointReader, repository: Repository, directory: Path, progress: Progress
) -> int:
    """A repository in a directory that is not there, as a bare one; how many bytes it took.

    Each ref is set by `git`, which refuses one whose object is not there.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        Git().run(
            *("init", "--quiet", "--bare", "--template="),
            f"--object-format={repository.facts.object_format}",
            directory,
        )
        git = Git(directory, _DURABLE)
        written = 0
        for entry in repository.packs:
            place = directory / "objects" / "pack" / entry.path.rpartition("/")[2]
            written += _write(reader, entry, place, progress)
            git.run("index-pack", place)
        for entry in repository.lfs:
            below = entry.path.removeprefix(f"{repository.name}/{LFS}/")
            written += _write(reader, entry, directory / "lfs" / "objects" / below, progress)
        created = (f"create {name} {oid}\n" for name, oid in sorted(repository.refs.items()))
        git.run("update-ref", "--stdin", text="".join(created))
        _set_head(git, repository)
        git.run("config", "remote.origin.url", repository.facts.url)
        git.run("config", "remote.origin.fetch", "+refs/*:refs/*")
        git.run("config", "remote.origin.mirror", "true")
        git.run("pack-refs", "--all")
    except GitFailed as error:
        raise TargetFailed(
            f"{repository.name} could not be restored: {error}",
            detail=error.detail,
            hint=error.hint or "restore an older point, and see `cellarer verify`",
        ) from error
    except OSError as error:
        raise TargetFailed(
            f"cannot write {directory}",
            detail=error.strerror or str(error),
            hint="free space there, or name a directory that you may write to",
        ) from error
    return written


def _set_head(git: Git, repository: Repository) -> None:
    head = repository.facts.head
    if head.startswith("refs/"):
        git.run("symbolic-ref", "HEAD", head)
    elif head:
        git.run("update-ref", "--no-deref", "HEAD", head)


def _check_out(place: Path, repository: Repository, progress: Progress) -> None:
    """The files of HEAD beside the repository in `.git`, where HEAD leads to a commit."""
    settings: dict[str, str] = {}
    if repository.facts.lfs and has_lfs():
        settings = {
            "filter.lfs.process": "git-lfs filter-process",
            "filter.lfs.smudge": "git-lfs smudge -- %f",
            "filter.lfs.clean": "git-lfs clean -- %f",
            "filter.lfs.required": "true",
        }
    elif repository.facts.lfs:
        progress.note(f"{repository.name}: git-lfs is not here; its files are the pointers to them")
        settings = {"filter.lfs.process": "", "filter.lfs.smudge": "", "filter.lfs.required": ""}
    git = Git(place, settings)
    git.run("config", "core.bare", "false")
    git.run("config", "remote.origin.mirror", "false")
    git.run("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    if not git.says("rev-parse", "--quiet", "--verify", "HEAD^{commit}"):
        progress.note(f"{repository.name}: its HEAD leads to no commit, so no file was written")
        return
    try:
        git.run("reset", "--quiet", "--hard")
    except GitFailed as error:
        raise TargetFailed(
            f"the files of {repository.name} could not be written: {error}",
            detail=error.detail,
            hint="restore it without --work-tree",
        ) from error


def _write(reader: PointReader, entry: Entry, place: Path, progress: Progress) -> int:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        for block in reader.read(entry.path):
            file.write(block)
            progress.advance(len(block))
        file.flush()
        os.fsync(file.fileno())
    place.chmod(0o444)
    return entry.size_bytes


@contextmanager
def _renamed_when_whole(place: Path) -> Iterator[Path]:
    """A directory beside a place, put there at the end; what was there goes only then."""
    partial = place.with_name(_PARTIAL.format(place.name))
    old = partial.with_suffix(".old")
    try:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)  # by a restore that was killed
        yield partial
        if os.path.lexists(place):
            place.rename(old)
        try:
            partial.rename(place)
        except OSError:
            old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _matches(repository: Repository, pattern: str) -> bool:
    name = repository.name
    return (
        name == pattern
        or name.startswith(f"{pattern.rstrip('/')}/")
        or name.rpartition("/")[2] == pattern
        or fnmatchcase(name, pattern)
    )
