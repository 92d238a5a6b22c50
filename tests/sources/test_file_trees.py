"""Files of this host: what comes back is all that belonged to them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellarer.errors import SourceFailed
from cellarer.flows.backup import back_up
from cellarer.sources import files as module
from cellarer.sources import reading_files
from cellarer.sources.files import FilesSource
from sources.trees import OLD_NS, Backups, backups, filled, state
from stand_ins import noise
from targets.recorded_points import Listener

__all__ = ["backups"]


def test_everything_that_belongs_to_a_file_comes_back(backups: Backups) -> None:
    filled(backups.tree)
    expected = state(backups.tree)
    point = backups.take()
    assert state(backups.restored(point)) == expected
    assert backups.failed(point) == []
    # Not what nobody can bring back: who listens makes it anew.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(backups.tree / "socket"))
        os.utime(backups.tree, ns=(OLD_NS, OLD_NS))
        assert b"socket" not in state(backups.restored(backups.take(), name="again"))


def test_what_is_unchanged_is_not_read_again(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(backups.tree)
    first = backups.take()
    begun: list[bytes] = []
    begin = reading_files.Reading.begin

    def noted(self: Any) -> bool:
        begun.append(self._place)
        return begin(self)

    monkeypatch.setattr(reading_files.Reading, "begin", noted)
    second = backups.take()
    assert begun == []
    assert second.read_bytes == first.read_bytes
    (backups.tree / "tool").write_text("#!/bin/bash\n")
    backups.take()
    assert begun == [os.fsencode(backups.tree / "tool")]
    backups.take(full_read=True)
    assert len(begun) > 8
    monkeypatch.setattr(module, "_SETTLED_NS", 60 * 10**9)
    point = backups.take(full_read=True)
    begun.clear()
    backups.take()
    assert len(begun) > 8, "what may be written again within a clock's tick is read"
    assert state(backups.restored(point)) == state(backups.tree)


def test_a_log_that_grows_costs_what_is_new(backups: Backups) -> None:
    log = backups.tree / "app.log"
    log.write_bytes(noise(1, 3_000_000))
    backups.take()
    with log.open("ab") as file:
        file.write(noise(2, 50_000))
    point = backups.take()
    assert point.added_bytes < 120_000
    assert (backups.restored(point) / "app.log").read_bytes() == log.read_bytes()


def test_holes_stay_holes(backups: Backups) -> None:
    sparse = backups.tree / "disk.img"
    with sparse.open("wb") as file:
        file.seek(40 << 20)
        file.write(b"in the middle")
        file.truncate(200 << 20)
    point = backups.take()
    assert point.added_bytes < 8 << 20
    again = backups.restored(point) / "disk.img"
    assert again.stat().st_size == 200 << 20
    assert again.stat().st_blocks * 512 < 1 << 20
    with again.open("rb") as file:
        file.seek(40 << 20)
        assert file.read(13) == b"in the middle"
    assert backups.failed(point) == []


def test_attributes_come_back(backups: Backups) -> None:
    place = backups.tree / "tagged"
    place.write_text("x")
    try:
        os.setxattr(place, "user.origin", b"\x00cellar\xff")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    again = backups.restored(backups.take()) / "tagged"
    assert os.getxattr(again, "user.origin") == b"\x00cellar\xff"


def test_what_is_left_out(tmp_path: Path) -> None:
    made = Backups(tmp_path, exclude=["*.tmp", "cache/", f"{tmp_path}/tree/logs/old*"])
    for name in ("a.txt", "b.tmp", "cache/x", "sub/cache/y", "logs/old1", "logs/new", "sub/c.tmp"):
        (made.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (made.tree / name).write_text(name)
    out = made.restored(made.take())
    found_files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert found_files == {"a.txt", "logs/new"}


def test_a_path_that_is_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("content")
    (tmp_path / "alias").symlink_to("real")
    made = Backups(tmp_path)
    each = FilesSource("files", [str(tmp_path / "alias")], tmp_path / "state")
    point = back_up(made.scene.open(), each, Listener(), made.scene.now)
    made.restored(point)
    assert (tmp_path / "out" / str(tmp_path).strip("/") / "alias" / "file").exists()


def test_paths_that_lie_in_others_are_taken_once(tmp_path: Path) -> None:
    made = Backups(tmp_path)
    (made.tree / "sub").mkdir()
    (made.tree / "sub" / "file").write_text("x")
    paths = [f"{made.tree}/sub", str(made.tree), f"{made.tree}/", f"{made.tree}/../tree/sub/file"]
    each = FilesSource("files", paths, tmp_path / "state")
    point = back_up(made.scene.open(), each, Listener(), made.scene.now)
    assert (made.restored(point) / "sub" / "file").read_text() == "x"
    assert point.streams == 2


# ----------------------------------------------------------------------------- what will not stand


def meddling(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Something happens whenever a file is read."""
    pread, count = os.pread, [0]

    def read(descriptor: int, length: int, offset: int) -> bytes:
        block = pread(descriptor, length, offset)
        count[0] += 1
        act(count[0])
        return block

    monkeypatch.setattr(os, "pread", read)


def test_a_file_that_is_written_while_it_is_read_is_read_again(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = backups.tree / "busy"
    place.write_text("before")

    def once(count: int) -> None:
        if count == 1:
            place.write_text("after!")
            os.utime(place, ns=(OLD_NS, OLD_NS))

    meddling(monkeypatch, once)
    point = backups.take()
    assert (backups.restored(point) / "busy").read_text() == "after!"
    assert backups.failed(point) == []


@pytest.mark.parametrize("size", [6, 5 << 20])
def test_a_file_that_is_always_written_to_is_told(
    backups: Backups, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    place = backups.tree / "busy"
    place.write_bytes(bytes(size))

    def always(count: int) -> None:
        os.utime(place, ns=(OLD_NS + count, OLD_NS + count))

    meddling(monkeypatch, always)
    point = backups.take()
    assert any("written to while it was read" in note for note in backups.told.notes)
    assert backups.failed(point) == ["steady"]
    monkeypatch.undo()
    later = backups.take()
    assert backups.failed(later) == []


def test_a_file_that_grew_and_was_changed_before_is_told(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a database does; its size alone says that it only grew."""
    place = backups.tree / "busy.db"
    place.write_bytes(noise(1, 6_000_000))

    def once(count: int) -> None:
        if count == 4:
            with place.open("r+b") as file:
                file.write(b"changed")
                file.seek(0, os.SEEK_END)
                file.write(b"and longer")

    meddling(monkeypatch, once)
    point = backups.take()
    assert backups.failed(point) == ["steady"]


def test_a_log_that_grows_while_it_is_read_is_as_it_was_up_to_there(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = backups.tree / "app.log"
    content = noise(1, 6_000_000)
    place.write_bytes(content)

    def once(count: int) -> None:
        if count == 4:
            with place.open("ab") as file:
                file.write(b"one more line")

    meddling(monkeypatch, once)
    point = backups.take()
    assert backups.failed(point) == []
    assert (backups.restored(point) / "app.log").read_bytes() == content


def test_a_hole_that_cannot_be_told_is_an_error(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (backups.tree / "sparse").open("wb") as file:
        file.seek(9 << 20)
        file.write(b"content")

    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "lseek", broken)
    with pytest.raises(SourceFailed, match="sparse cannot be read"):
        backups.take()


def test_the_other_name_of_a_file_that_goes_meanwhile_keeps_its_content(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        if name == "a":
            (backups.tree / name).write_text("content")
        else:
            os.link(backups.tree / "a", backups.tree / name)
    begin = reading_files.Reading.begin

    def gone(self: Any) -> bool:
        if self._place.endswith(b"/a"):
            (backups.tree / "a").unlink(missing_ok=True)
        return begin(self)

    monkeypatch.setattr(reading_files.Reading, "begin", gone)
    point = backups.take()
    out = backups.restored(point)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"b": "content", "c": "content"}
    assert (out / "b").samefile(out / "c")


def test_an_inode_that_is_used_again_is_another_file(backups: Backups) -> None:
    first, second = backups.tree / "a", backups.tree / "b"
    first.write_text("AAAA")
    os.link(first, backups.directory / "elsewhere")
    each = backups.source()
    with each.capture() as capture:
        streams = iter(capture)
        read = {}
        for stream in streams:
            read[stream.path.rpartition("/")[2]] = b"".join(stream.blocks)
    assert read["a"] == b"AAAA"
    second.write_text("BBBBBB")
    os.link(second, backups.tree / "c")
    point = backups.take()
    out = backups.restored(point)
    assert [(out / name).read_text() for name in "abc"] == ["AAAA", "BBBBBB", "BBBBBB"]


def test_a_path_behind_a_link_of_another_is_taken_as_well(tmp_path: Path) -> None:
    made = Backups(tmp_path)
    (tmp_path / "elsewhere" / "conf").mkdir(parents=True)
    (tmp_path / "elsewhere" / "conf" / "file").write_text("x")
    (made.tree / "current").symlink_to(tmp_path / "elsewhere")
    paths = [str(made.tree), f"{made.tree}/current/conf"]
    each = FilesSource("files", paths, tmp_path / "state")
    reader = made.reader(back_up(made.scene.open(), each, Listener(), made.scene.now))
    assert any(entry.path.endswith("tree/current/conf/file") for entry in reader.entries())


def test_a_directory_that_was_emptied_is_not_believed(backups: Backups) -> None:
    (backups.tree / "file").write_text("x")
    backups.take()
    (backups.tree / "file").unlink()
    for _ in range(2):
        with pytest.raises(SourceFailed, match="no file any more") as raised:
            backups.take()
    assert "mounted" in raised.value.hint
    backups.take(full_read=True)


def test_a_very_deep_tree(backups: Backups) -> None:
    deep = os.open(backups.tree, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    try:
        assert backups.take().streams == 1
    finally:
        subprocess.run(["rm", "-rf", backups.tree / "d"], check=True)


def test_a_file_that_goes_meanwhile_is_left_out(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (backups.tree / name).write_text(name)
    lstat = os.lstat

    def gone(path: Any, *more: Any, **other: Any) -> os.stat_result:
        found = lstat(path, *more, **other)
        if os.fsdecode(path).endswith("/b"):
            (backups.tree / "b").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "lstat", gone)
    point = backups.take()
    monkeypatch.undo()
    assert sorted(p.name for p in backups.restored(point).iterdir()) == ["a", "c"]


def test_what_cannot_be_read_makes_no_point(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    (backups.tree / "secret").write_text("x")
    opened = os.open

    def refused(path: Any, *more: Any, **other: Any) -> int:
        if os.fsdecode(path).endswith("/secret"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *more, **other)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(SourceFailed, match="secret cannot be read") as raised:
        backups.take()
    assert "exclude" in raised.value.hint
    assert backups.scene.open().commits() == []
    monkeypatch.undo()
    with pytest.raises(SourceFailed, match="nowhere"):
        list(FilesSource("f", ["/nowhere"], backups.directory).capture().__enter__())
    levels = [f.level for f in FilesSource("f", ["/nowhere"], backups.directory).examine()]
    assert levels == ["error"]
