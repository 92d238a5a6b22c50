"""Points of files, restored beside what is there, in part, and by what hostile trees say."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import DamagedData, TargetFailed, UsageError
from cellarer.filesystem.node import Node, decoded, encoded, parse_tree, parts
from cellarer.ports import Stream
from cellarer.targets.file_tree import FilesTarget
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.writer import SnapshotWriter
from sources.trees import Backups, backups, filled, state
from targets.recorded_points import Listener

__all__ = ["backups"]


# --------------------------------------------------------------------------------------- restoring


def test_what_is_there_stays_unless_asked(backups: Backups) -> None:
    filled(backups.tree)
    point = backups.take()
    out = backups.restored(point)
    (out / "private").write_text("mine")
    (out / "besides").write_text("stays")
    with pytest.raises(TargetFailed, match="already"):
        backups.restored(point)
    assert (out / "private").read_text() == "mine"
    backups.restored(point, overwrite=True)
    (out / "besides").unlink()
    os.utime(out, ns=(expected := backups.tree.stat().st_mtime_ns, expected))
    assert state(out) == state(backups.tree)


def test_some_of_it(backups: Backups) -> None:
    filled(backups.tree)
    point, top = backups.take(), str(backups.tree).strip("/")
    out = backups.restored(point, f"{top}/folder/deep", f"/{top}/t*")
    names = {str(p.relative_to(out)) for p in out.rglob("*")}
    assert names == {"folder", "folder/deep", "folder/deep/deeper", "folder/deep/note.txt", "tool",
                     "twin"}  # fmt: skip
    assert (out / "twin").read_bytes() == (backups.tree / "private").read_bytes()
    with pytest.raises(UsageError, match="matches nothing"):
        backups.restored(point, "nothing", name="other")


def test_no_link_leads_a_restore_elsewhere(backups: Backups) -> None:
    (backups.tree / "folder").mkdir()
    (backups.tree / "folder" / "file").write_text("x")
    point = backups.take()
    elsewhere = backups.directory / "elsewhere"
    elsewhere.mkdir()
    out = backups.directory / "out" / str(backups.tree).strip("/")
    out.mkdir(parents=True)
    (out / "folder").symlink_to(elsewhere)
    with pytest.raises(TargetFailed):
        backups.restored(point)
    backups.restored(point, overwrite=True)
    assert list(elsewhere.iterdir()) == []
    assert (out / "folder" / "file").read_text() == "x"


@pytest.mark.parametrize(
    "path", ["../evil", "a/../../evil", "", "/etc/x", "a//b", "%2e%2e/x", "a%00"]
)
def test_a_tree_that_leads_elsewhere_is_refused(backups: Backups, path: str) -> None:
    line = Node(path, "file", 0o644, 0, 0, 0).to_line()
    writer = SnapshotWriter(backups.scene.open(), "files", "files", backups.scene.now)
    try:
        writer.add(Stream("tree", "tree", iter([line])))
        commit = writer.commit()
    finally:
        writer.abandon()
    reader = SnapshotReader(backups.scene.open(), commit)
    target = FilesTarget(backups.directory / "out")
    target.prepare(overwrite=True)
    with pytest.raises(DamagedData):
        target.restore(reader, (), Listener())
    assert not (backups.directory / "evil").exists()


def hostile(backups: Backups, *nodes: Node) -> SnapshotReader:
    writer = SnapshotWriter(backups.scene.open(), "files", "files", backups.scene.now)
    try:
        writer.add(Stream("files/loot", "file", iter([b"x"])))
        writer.add(Stream("tree", "tree", iter([node.to_line() for node in nodes])))
        return SnapshotReader(backups.scene.open(), writer.commit())
    finally:
        writer.abandon()


@pytest.mark.parametrize("what", ["directory", "hard link"])
def test_nothing_outside_is_touched_through_links_of_the_point(backups: Backups, what: str) -> None:
    victim = backups.directory / "victim"
    victim.mkdir()
    (victim / "shadow").write_text("secret")
    link = Node("x", "symlink", 0o777, 0, 0, 0, link=str(victim))
    last = (
        Node("x/shadow", "directory", 0o755, 0, 0, 0)
        if what == "directory"
        else Node("loot", "file", 0o644, 0, 0, 0, size_bytes=1, same="x/shadow")
    )
    reader = hostile(backups, link, last)
    target = FilesTarget(backups.directory / "out")
    target.prepare(overwrite=True)
    for _ in range(2):
        with pytest.raises((TargetFailed, DamagedData)):
            target.restore(reader, (), Listener())
    assert (victim / "shadow").read_text() == "secret"
    assert (victim / "shadow").stat().st_nlink == 1


@pytest.mark.parametrize(
    "field",
    [
        *({"mtime_ns": 10**40}, {"uid": 10**20}, {"uid": -1}, {"size_bytes": -1}),
        *({"link": "%zz"}, {"link": "a%00"}, {"mode": 1 << 20}, {"kind": "door"}),
    ],
)
def test_impossible_values_are_damage(field: dict[str, object]) -> None:
    node = Node("loot", "file", 0o644, 0, 0, 0)
    line = Node(**{**vars(node), **field}).to_line()
    with pytest.raises(DamagedData):
        list(parse_tree([line]))


def test_directories_that_are_there_stay_as_they_are(backups: Backups) -> None:
    filled(backups.tree)
    point, top = backups.take(), str(backups.tree).strip("/")
    out = backups.directory / "out" / top
    (out / "folder").mkdir(parents=True)
    (out / "folder").chmod(0o700)
    backups.restored(point, f"{top}/folder/deep/note.txt")
    assert stat.S_IMODE((out / "folder").stat().st_mode) == 0o700
    assert (out / "folder" / "deep" / "note.txt").exists()


def test_a_directory_in_the_place_of_a_file_is_not_replaced(backups: Backups) -> None:
    filled(backups.tree)
    point = backups.take()
    out = backups.restored(point)
    (out / "tool").unlink()
    (out / "tool").mkdir()
    with pytest.raises(TargetFailed, match="is a directory"):
        backups.restored(point, overwrite=True)


@given(st.binary(min_size=1, max_size=60))
def test_names_are_bytes(name: bytes) -> None:
    text = encoded(name)
    text.encode("utf-8")
    assert decoded(text) == name


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_broken_tree(data: bytes) -> None:
    try:
        for node in parse_tree([data]):
            parts(node.path)
    except DamagedData:
        pass
