"""Git repositories: what comes back is every ref, what is new is all that is stored anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cellarer.errors import SourceFailed, TargetFailed, UsageError
from cellarer.git.mirror import MOST_PACKS
from cellarer.targets.git import GitTarget
from sources.git_backups import Backups, named
from sources.repositories import commit, git, made, refs
from targets.recorded_points import Listener


def test_every_ref_comes_back(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    point = backups.take()
    bare = backups.restored(point) / f"{named(repository)}.git"
    expected = refs(repository)
    assert len(expected) == 5
    assert refs(bare) == expected
    assert git(bare, "symbolic-ref", "HEAD") == "refs/heads/main"
    git(bare, "fsck", "--full", "--strict")
    assert backups.failed(point) == []
    # It leads back to where it came from, and can be pushed elsewhere as it is.
    assert git(bare, "config", "remote.origin.url") == str(repository)
    git(tmp_path, "init", "-q", "--bare", "elsewhere")
    git(bare, "push", "-q", "--mirror", tmp_path / "elsewhere")
    assert refs(tmp_path / "elsewhere") == expected


def test_ten_commits_add_about_ten_commits(tmp_path: Path) -> None:
    repository = made(tmp_path / "one", commits=40)
    for number in range(30):
        commit(repository, f"large{number}", os.urandom(20_000).hex())
    backups = Backups(tmp_path, repository)
    first, unchanged = backups.take(), backups.take()
    assert first.stored_bytes > 30 * 20_000
    assert unchanged.added_bytes < 5000
    for number in range(10):
        commit(repository, f"new{number}", os.urandom(1000).hex())
    second = backups.take()
    assert second.added_bytes < 40_000
    bare = backups.restored(second) / f"{named(repository)}.git"
    assert refs(bare) == refs(repository)
    assert backups.failed(second) == []


def test_a_force_push_does_not_lose_what_was_there(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    lost = git(repository, "rev-parse", "HEAD")
    backups = Backups(tmp_path, repository)
    first = backups.take()
    git(repository, "reset", "-q", "--hard", "HEAD~2")
    git(repository, "tag", "-d", "v1")
    commit(repository, "other", "history")
    second = backups.take()
    old = backups.restored(first, name="old") / f"{named(repository)}.git"
    new = backups.restored(second, name="new") / f"{named(repository)}.git"
    assert git(old, "rev-parse", "main") == lost
    assert "refs/tags/v1" in refs(old)
    assert refs(new) == refs(repository)
    assert "refs/tags/v1" not in refs(new)
    assert backups.failed(first) == backups.failed(second) == []


def test_many_backups_keep_few_packs(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    mirrors = tmp_path / "state" / "code"
    for number in range(MOST_PACKS + 2):
        commit(repository, "file", f"{number}")
        point = backups.take()
    [mirror] = mirrors.rglob("*.git")
    assert len(list(mirror.rglob("*.pack"))) < MOST_PACKS / 2
    assert backups.failed(point) == []
    lost = commit(repository, "secret", "hunter2")
    backups.take()
    git(repository, "reset", "-q", "--hard", "HEAD~1")
    assert git(mirror, "cat-file", "-t", lost) == "commit"
    last = backups.take(full_read=True)
    assert len(list(mirror.rglob("*.pack"))) == 1
    bare = backups.restored(last) / f"{named(repository)}.git"
    assert refs(bare) == refs(repository)
    with pytest.raises(AssertionError):
        git(bare, "cat-file", "-t", lost)


def test_several_repositories_and_those_that_a_command_lists(tmp_path: Path) -> None:
    named_one, listed = made(tmp_path / "a" / "app"), made(tmp_path / "b" / "app", commits=5)
    backups = Backups(
        tmp_path, named_one, list_command=["printf", f"# all\n{listed}\n{named_one}\n"]
    )
    point = backups.take()
    out = backups.restored(point)
    assert refs(out / f"{named(named_one)}.git") == refs(named_one)
    assert refs(out / f"{named(listed)}.git") == refs(listed)
    some = backups.restored(point, named(listed), name="some")
    assert [p.name for p in some.rglob("*.git")] == ["app.git"]
    with pytest.raises(UsageError, match="matches nothing-such"):
        backups.restored(point, "nothing-such", name="none")


@pytest.mark.parametrize("command", [["false"], ["/nowhere/list"], ["printf", ""]])
def test_a_list_that_is_not_whole_makes_no_point(tmp_path: Path, command: list[str]) -> None:
    backups = Backups(tmp_path, list_command=command)
    with pytest.raises(SourceFailed):
        backups.take()
    assert backups.scene.open().commits() == []


def test_with_its_files(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    place = backups.restored(backups.take(), work_tree=True) / named(repository)
    assert (place / "file2.txt").read_text() == "content 2\n" * 200
    assert git(place, "status", "--porcelain") == ""
    commit(place, "more", "work goes on")
    assert git(place, "rev-parse", "HEAD~1") == git(repository, "rev-parse", "HEAD")


def test_what_is_there_stays_unless_asked(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    point = backups.take()
    out = backups.restored(point)
    with pytest.raises(TargetFailed, match="there already"):
        backups.restored(point)
    commit(repository, "newer", "x")
    newer = backups.take()
    target = GitTarget(out)
    target.prepare(overwrite=True)
    assert target.look(backups.reader(newer), ()).replaces
    target.restore(backups.reader(newer), (), Listener())
    assert refs(out / f"{named(repository)}.git") == refs(repository)
    assert [p.name for p in (out / named(repository)).parent.iterdir()] == ["one.git"]


# ------------------------------------------------------------------------- repositories that hurt


def nothing_in_it(path: Path) -> Path:
    path.mkdir()
    git(path, "init", "-q", "-b", "trunk")
    return path


def with_sha256(path: Path) -> Path:
    return made(path, options=("--object-format=sha256",))


def detached(path: Path) -> Path:
    made(path)
    git(path, "checkout", "-q", "--detach", "HEAD~1")
    return path


def detached_from_all(path: Path) -> Path:
    detached(path)
    commit(path, "nowhere", "x")
    return path


def odd_names(path: Path) -> Path:
    made(path)
    git(path, "update-ref", "refs/heads/grün/ñ", "HEAD")
    git(path, "update-ref", "refs/tags/blob", git(path, "rev-parse", "HEAD:file0.txt"))
    git(path, "update-ref", "refs/heads/a.b-c", "HEAD")
    return path


def replaced(path: Path) -> Path:
    made(path)
    git(path, "replace", "HEAD", "HEAD~1")
    return path


def alternates(path: Path) -> Path:
    origin = made(path.parent / "origin")
    git(path.parent, "clone", "-q", "--shared", origin, path)
    commit(path, "own", "x")
    return path


@pytest.mark.parametrize(
    "make",
    [nothing_in_it, with_sha256, detached, detached_from_all, odd_names, replaced, alternates],
)
def test_repositories_that_hurt(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    repository = make(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    points = [backups.take(), backups.take()]
    for number, point in enumerate(points):
        bare = backups.restored(point, name=f"out{number}") / f"{named(repository)}.git"
        assert refs(bare) == refs(repository)
        assert (bare / "HEAD").read_text() == (repository / ".git" / "HEAD").read_text()
        assert backups.failed(point) == []
        backups.restored(point, work_tree=True, name=f"tree{number}")


def test_a_branch_that_became_a_directory_of_branches(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    backups.take()
    git(repository, "branch", "-D", "topic")
    git(repository, "branch", "topic/more")
    git(repository, "branch", "-m", "main", "trunk")
    point = backups.take()
    bare = backups.restored(point) / f"{named(repository)}.git"
    assert refs(bare) == refs(repository)
    assert git(bare, "symbolic-ref", "HEAD") == "refs/heads/trunk"
