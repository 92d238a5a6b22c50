"""Git repositories that cannot be read, are far away, or do not hold all that belongs to them."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import DamagedData, SourceFailed, TargetFailed
from cellarer.git.contents import (
    RepositoryFacts,
    parse_refs,
    read_repositories,
    refs_text,
    repository_name,
)
from cellarer.git.program import Credentials
from cellarer.ports import Stream
from cellarer.targets.git import GitTarget
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.writer import SnapshotWriter
from sources.git_backups import Backups, named
from sources.repositories import TOKEN, commit, git, made, redirecting, refs, served
from stand_ins import found
from targets.recorded_points import Listener

# ------------------------------------------------------------------------------ what goes wrong


def test_a_repository_that_is_gone_makes_no_point_and_all_are_named(tmp_path: Path) -> None:
    there = made(tmp_path / "there")
    backups = Backups(tmp_path, tmp_path / "gone", there, tmp_path / "away")
    with pytest.raises(SourceFailed, match="2 of the repositories") as raised:
        backups.take()
    assert str(tmp_path / "gone").strip("/") in raised.value.detail
    assert str(tmp_path / "away").strip("/") in raised.value.detail
    assert backups.scene.open().commits() == []


def test_a_repository_that_lost_all_its_refs_is_not_believed(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    point = backups.take()
    for ref in refs(repository):
        git(repository, "update-ref", "-d", ref)
    for _ in range(2):
        with pytest.raises(SourceFailed, match="1 of the repositories") as raised:
            backups.take()
        assert "no refs any more" in raised.value.detail
        assert "remove" in raised.value.hint
    assert backups.failed(point) == []


def test_a_mirror_that_was_lost_costs_a_fetch(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    backups.take()
    shutil.rmtree(tmp_path / "state")
    point = backups.take()
    assert refs(backups.restored(point) / f"{named(repository)}.git") == refs(repository)


def test_a_clone_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    place = tmp_path / "state" / "code" / f"{named(repository)}.partial"
    (place / "objects").mkdir(parents=True)
    (place / "HEAD").write_text("ref: refs/heads/nonsense\n")
    assert backups.failed(backups.take()) == []


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_a_pack_that_decayed_in_the_mirror_is_not_stored(tmp_path: Path, share: float) -> None:
    repository = made(tmp_path / "one", commits=20)
    backups = Backups(tmp_path, repository)
    point = backups.take()
    [pack] = (tmp_path / "state").rglob("*.pack")
    content = bytearray(pack.read_bytes())
    content[min(int(share * len(content)), len(content) - 1)] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    (tmp_path / "state" / "code" / "point.json").unlink()
    with pytest.raises(SourceFailed) as raised:
        backups.take()
    mirror = pack.parents[2]
    assert f"remove {mirror}" in raised.value.hint
    assert [c.session for c in backups.scene.open().commits()] == [point.id]
    shutil.rmtree(mirror)
    assert backups.failed(backups.take()) == []


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    backups = Backups(tmp_path, made(tmp_path / "one"))
    with backups.source().capture(), pytest.raises(SourceFailed, match="under way"):
        backups.take()
    assert backups.failed(backups.take()) == []


# ------------------------------------------------------------------------------- over the network


def test_over_http_with_a_token_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = made(tmp_path / "web" / "app")
    run, commands = subprocess.run, []

    def noted(command: list[str], *arguments: object, **more: object) -> object:
        commands.append(" ".join(map(str, command)))
        return run(command, *arguments, **more)  # type: ignore[call-overload]

    with served(tmp_path / "web") as (address, asked):
        url = f"{address}/app/.git"
        with pytest.raises(SourceFailed) as raised:
            Backups(tmp_path / "a", url).take()
        assert "token" in raised.value.hint
        wrong = Credentials("wrong-token")
        with pytest.raises(SourceFailed) as raised:
            Backups(tmp_path / "b", url, credentials=wrong).take()
        assert "wrong-token" not in f"{raised.value.message}{raised.value.detail}"
        monkeypatch.setattr(subprocess, "run", noted)
        backups = Backups(tmp_path / "c", url, credentials=Credentials(TOKEN))
        first = backups.take()
        commit(repository, "more", "x")
        second = backups.take()
        assert [f.level for f in backups.source().examine()] == ["info"]
    assert any(asked)
    assert commands
    assert not [command for command in commands if TOKEN in command]
    for place in (tmp_path / "c").rglob("*"):
        assert not (place.is_file() and TOKEN.encode() in place.read_bytes()), place
    [repository_] = read_repositories(backups.reader(second))
    assert repository_.refs == refs(repository)
    assert backups.failed(first) == backups.failed(second) == []


@pytest.mark.parametrize("asks", [True, False])
def test_no_token_goes_to_where_a_server_redirects_to(tmp_path: Path, asks: bool) -> None:
    made(tmp_path / "web" / "app")
    with (
        served(tmp_path / "web", token=None) as (other, asked),
        redirecting(other, asks=asks) as address,
        suppress(SourceFailed),
    ):
        credentials = Credentials(TOKEN)
        Backups(tmp_path, f"{address}/app/.git", credentials=credentials).take()
    assert len(asked) >= 1
    assert set(asked) == {""}


def test_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for ssh runs here what it was asked to run on the host."""
    repository = made(tmp_path / "one")
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\nexec sh -c "$1"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    backups = Backups(tmp_path, f"git@forge.example.com:{repository}")
    point = backups.take()
    name = f"forge.example.com{repository}"
    assert refs(backups.restored(point) / f"{name}.git") == refs(repository)


def test_variables_of_a_hook_mean_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made(tmp_path / "other", commits=9)
    repository = made(tmp_path / "one")
    backups = Backups(tmp_path, repository)
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(other / ".git"))
        hook.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
        point = backups.take()
    [found_] = read_repositories(backups.reader(point))
    assert found_.refs == refs(repository)


# --------------------------------------------------------------------------- what belongs to them


def test_submodules_are_named(tmp_path: Path) -> None:
    library = made(tmp_path / "library")
    repository = made(tmp_path / "one")
    git(repository, "submodule", "--quiet", "add", library, "vendor/library")
    with (repository / ".gitmodules").open("a") as modules:
        modules.write('[submodule "else"]\n\tpath = else\n\turl = ../else.git\n')
    commit(repository, "more", "x")
    backups = Backups(tmp_path, repository, library)
    point = backups.take()
    found = {r.name: r.facts.submodules for r in read_repositories(backups.reader(point))}
    told = [(s.path, s.url, s.covered) for s in found[named(repository)]]
    assert told == [
        ("else", str(tmp_path / "else.git"), False),
        ("vendor/library", str(library), True),
    ]
    findings = [f for f in backups.source().examine() if f.level == "warning"]
    assert [f.message for f in findings if "else.git" in f.message]
    assert len(findings) == 1


def needs_lfs() -> None:
    if shutil.which("git-lfs") is None:
        if os.environ.get("CI"):
            pytest.fail("no git-lfs on this machine")
        pytest.skip("no git-lfs on this machine")


def test_large_files_come_with_it(tmp_path: Path) -> None:
    needs_lfs()
    repository = made(tmp_path / "one")
    git(repository, "lfs", "install", "--local")
    git(repository, "lfs", "track", "*.bin")
    large = os.urandom(60_000).hex()
    commit(repository, "picture.bin", large)
    old = git(repository, "lfs", "ls-files", "--long").split()[0]
    commit(repository, "picture.bin", os.urandom(1000).hex())
    backups = Backups(tmp_path, f"file://{repository}")
    first = backups.take()
    second = backups.take()
    assert second.added_bytes < 5000
    assert backups.failed(first) == backups.failed(second) == []
    name = named(repository)
    bare = backups.restored(second) / f"{name}.git"
    assert (bare / "lfs" / "objects" / old[:2] / old[2:4] / old).read_text() == large
    # The server has lost it, and so has the mirror.
    for place in (repository / ".git", tmp_path / "state"):
        for path in place.rglob(old):
            path.unlink()
    third = backups.take()
    assert backups.failed(third) == [f"Git LFS of {name}"]
    [facts] = [r.facts for r in read_repositories(backups.reader(third))]
    assert facts.lfs_missing == [old]


def test_large_files_of_older_commits_count_and_a_server_that_is_away_is_an_error(
    tmp_path: Path,
) -> None:
    needs_lfs()
    repository = made(tmp_path / "lfs" / "one")
    git(repository, "lfs", "install", "--local")
    git(repository, "lfs", "track", "*.bin")
    commit(repository, "picture.bin", os.urandom(1000).hex())
    git(repository, "rm", "-q", "picture.bin", ".gitattributes")
    commit(repository, "moved", "off")
    backups = Backups(tmp_path, f"file://{repository}")
    point = backups.take()
    [found_] = read_repositories(backups.reader(point))
    assert (found_.facts.lfs, len(found_.lfs)) == (True, 1)
    assert backups.failed(point) == []
    oid = found_.lfs[0].path.rpartition("/")[2]
    assert (backups.restored(point, name="b") / f"{named(repository)}.git" / "lfs" / "objects"
            / oid[:2] / oid[2:4] / oid).is_file()  # fmt: skip
    commit(repository, ".lfsconfig", "[lfs]\n\turl = http://127.0.0.1:9/nothing\n")
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(SourceFailed, match="1 of the repositories"):
        backups.take()


def test_large_files_that_nobody_can_fetch_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = made(tmp_path / "one")
    commit(repository, ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
    monkeypatch.setattr("cellarer.git.dependencies.has_lfs", lambda: False)
    monkeypatch.setattr("cellarer.sources.git.has_lfs", lambda: False)
    backups = Backups(tmp_path, repository)
    point = backups.take()
    assert backups.failed(point) == [f"Git LFS of {named(repository)}"]
    levels = [f.level for f in backups.source().examine()]
    assert levels == ["info", "error"]


# ----------------------------------------------------------------------------------- hostile points


@pytest.mark.parametrize(
    "path",
    [
        "app/lfs/../../../../evil/authorized_keys",
        "app/lfs/aa/bb/short",
        "app/packs/../../evil.pack",
        "app/packs/pack-1.idx",
        "app/.git/hooks/pre-commit",
        "elsewhere",
    ],
)
def test_a_point_that_holds_what_is_of_no_repository_is_refused(tmp_path: Path, path: str) -> None:
    scene = found()
    facts = RepositoryFacts("x", "refs/heads/main", "sha1", 0).to_json()
    writer = SnapshotWriter(scene.open(), "code", "git", scene.now)
    try:
        streams = {"app/refs": b"", "app/repository.json": facts, path: b"evil"}
        for name, content in streams.items():
            writer.add(Stream(name, "x", iter([content])))
        point = writer.commit()
    finally:
        writer.abandon()
    target = GitTarget(tmp_path / "out")
    target.prepare(overwrite=False)
    with pytest.raises(DamagedData):
        target.restore(SnapshotReader(scene.open(), point), (), Listener())
    assert not (tmp_path / "evil").exists()


def test_no_repository_is_restored_into_the_files_of_another(tmp_path: Path) -> None:
    outer, inner = made(tmp_path / "app"), made(tmp_path / "app" / "docs" / "inner")
    backups = Backups(tmp_path, outer, inner)
    point = backups.take()
    with pytest.raises(TargetFailed, match="files of another repository"):
        backups.restored(point, work_tree=True)
    backups.restored(point, named(inner), work_tree=True)


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://git.example.com/team/app.git", "git.example.com/team/app"),
        ("https://git.example.com:8443/app/", "git.example.com/app"),
        ("git@git.example.com:team/app.git", "git.example.com/team/app"),
        ("ssh://git@git.example.com:22/team/app", "git.example.com/team/app"),
        ("/srv/git/app.git", "srv/git/app"),
        ("../elsewhere/app", "elsewhere/app"),
        ("file:///srv/git/app.git", "srv/git/app"),
    ],
)
def test_names_of_repositories(address: str, name: str) -> None:
    assert repository_name(address) == name


@given(st.text(min_size=1, max_size=40))
def test_no_name_leads_elsewhere(address: str) -> None:
    assert not {"", ".", ".."} & set(repository_name(address).split("/"))


@given(
    st.dictionaries(
        st.binary(min_size=1).filter(lambda name: b"\n" not in name),
        st.sampled_from(["a" * 40, "b" * 64]),
    )
)
def test_refs_come_back_as_they_were_written(names: dict[bytes, str]) -> None:
    """A name is any bytes but a few."""
    given_refs = {name.decode("utf-8", "surrogateescape"): oid for name, oid in names.items()}
    assert parse_refs(refs_text(given_refs)) == given_refs
