"""Points of files, restored beside what is there, in part, and by what hostile trees say."""

from __future__ import annotations

import os

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
