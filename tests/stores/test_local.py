"""The directory as a store: what survives kills and power cuts, and what errors say."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellarer.errors import DamagedData, ObjectExists, StoreError
from cellarer.stores.local import ABANDONED_SECONDS, INCOMING, LocalStore

SOURCE = Path(__file__).resolve().parents[2] / "src"
# Creates objects named by their content, in four threads, and says so after each. It writes in
# small pieces, so that most of its time is spent between the first byte of a file and the last.
WRITER = """
import hashlib, os, random, sys, threading
from pathlib import Path
from cellarer.stores.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
write = os.write
os.write = lambda descriptor, data: write(descriptor, data[:512])
def work(seed):
    numbers = random.Random(seed)
    while True:
        data = numbers.randbytes(16) * numbers.randrange(1, 1 << 16)
        name = hashlib.sha256(data).hexdigest()
        store.create(f"packs/{name[:2]}/{name}", data)
        os.write(1, f"{name}\\n".encode())
for number in range(4):
    threading.Thread(target=work, args=(f"{sys.argv[2]}-{number}",), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_writer_leaves_only_whole_objects(tmp_path: Path, seed: int) -> None:
    store = LocalStore(tmp_path / "store")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(seed)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as writer:
        assert writer.stdout
        try:
            # The kill comes at no particular point of what the writer's threads do by then.
            said = [writer.stdout.readline() for _ in range(random.Random(seed).randrange(1, 25))]
        finally:
            writer.kill()
        said += writer.stdout.readlines()
    acknowledged = {line.decode().strip() for line in said if line.endswith(b"\n")}
    listed = [info.key for info in store.list("")]
    for key in listed:
        assert hashlib.sha256(store.read(key)).hexdigest() == key.rsplit("/")[-1]
    assert acknowledged <= {key.rsplit("/")[-1] for key in listed}
    assert acknowledged
    store.create("after", b"")
    assert list((tmp_path / "store" / INCOMING).iterdir()) == []


class Disk:
    """Knows what a power cut would leave: what was synced, as it was at that moment.

    Of a file its content, of a directory its names. A name may also reach the disk unsynced, so a
    file must not get one before its content is there.
    """

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._base = base
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._sync, self._link = os.fsync, os.link
        self.early_names: list[str] = []
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "link", self.link)
        self.fsync_path(base)

    def fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(descriptor) as entries:
                self._names[status.st_ino] = {entry.name: entry.inode() for entry in entries}
        else:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            self._contents[status.st_ino] = path.read_bytes()
        self._sync(descriptor)

    def link(self, source: Path, target: Path) -> None:
        if self._contents.get(source.stat().st_ino) != source.read_bytes():
            self.early_names.append(str(target))
        self._link(source, target)

    def fsync_path(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY)
        self.fsync(descriptor)
        os.close(descriptor)

    def after_power_cut(self, path: Path) -> bytes | None:
        """The content of the file, None where it would not be there."""
        inode = self._base.stat().st_ino
        for name in path.relative_to(self._base).parts:
            found = self._names.get(inode, {}).get(name)
            if found is None:
                return None
            inode = found
        return self._contents.get(inode)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="how the test finds a descriptor's path"
)


@needs_proc
def test_an_object_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path, monkeypatch)
    root = tmp_path / "not" / "yet" / "there"
    store = LocalStore(root)
    for key in ("format.json", "packs/aa/one", "packs/aa/two", "packs/bb/one", "wal/a/b/c/d"):
        store.create(key, key.encode())
        assert disk.after_power_cut(root / key) == key.encode()
    assert disk.early_names == []


@needs_proc
def test_so_does_one_that_another_had_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes again: the first writer may be between its link and its sync."""
    disk = Disk(tmp_path, monkeypatch)
    path = tmp_path / "store" / "packs" / "aa" / "one"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    with path.open("rb") as file:
        os.fsync(file.fileno())
    assert disk.after_power_cut(path) is None
    LocalStore(tmp_path / "store").create("packs/aa/one", b"content")
    assert disk.after_power_cut(path) == b"content"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_only_the_owner_may_look(store: LocalStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store.create("packs/aa/one", b"content")
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert modes == {
        "store": 0o700,
        f"store/{INCOMING}": 0o700,
        "store/packs": 0o700,
        "store/packs/aa": 0o700,
        "store/packs/aa/one": 0o600,
    }


def test_leftovers_of_killed_writers_are_invisible_and_swept(
    store: LocalStore, tmp_path: Path
) -> None:
    store.create("one", b"content")
    dead, alive = (tmp_path / "store" / INCOMING / name for name in ("0" * 32, "1" * 32))
    for path in (dead, alive):
        path.write_bytes(b"half an obj")
    assert [info.key for info in store.list("")] == ["one"]
    with alive.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        LocalStore(tmp_path / "store").create("two", b"")
    assert not dead.exists()
    assert alive.exists(), "its writer is at work"


def test_without_locks_only_old_leftovers_are_swept(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    store.create("one", b"content")
    old, young = (tmp_path / "store" / INCOMING / name for name in ("0" * 32, "1" * 32))
    for path in (old, young):
        path.write_bytes(b"half an obj")
    past = young.stat().st_mtime - 2 * ABANDONED_SECONDS
    os.utime(old, (past, past))
    monkeypatch.setattr(fcntl, "flock", refuse)
    LocalStore(tmp_path / "store").create("two", b"")
    assert not old.exists()
    assert young.exists(), "its writer may be at work"


def test_nothing_temporary_stays(store: LocalStore, tmp_path: Path) -> None:
    store.create("one", b"content")
    with pytest.raises(ObjectExists):
        store.create("one", b"other")
    assert list((tmp_path / "store" / INCOMING).iterdir()) == []


def test_what_others_put_there_is_no_object(store: LocalStore, tmp_path: Path) -> None:
    store.create("one", b"content")
    (tmp_path / "store" / "lost+found").mkdir()
    (tmp_path / "store" / ".DS_Store").write_bytes(b"")
    (tmp_path / "store" / ".snapshot").mkdir()
    assert [info.key for info in store.list("")] == ["one"]


def test_an_object_deleted_during_a_listing_is_left_out(store: LocalStore) -> None:
    for name in ("a/1", "a/2", "b/1", "c/1"):
        store.create(name, b"")
    listing = store.list("")
    seen = [next(listing).key]
    for name in ("a/2", "b/1"):
        store.delete(name)
    seen += [info.key for info in listing]
    assert seen == ["a/1", "c/1"]


def test_a_directory_removed_under_a_running_program_is_made_again(
    store: LocalStore, tmp_path: Path
) -> None:
    store.create("packs/aa/one", b"content")
    (tmp_path / "store" / "packs" / "aa" / "one").unlink()
    (tmp_path / "store" / "packs" / "aa").rmdir()
    (tmp_path / "store" / INCOMING).rmdir()
    store.create("packs/aa/two", b"content")
    assert [info.key for info in store.list("")] == ["packs/aa/two"]


def failing(number: int) -> Callable[..., int]:
    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("function", "number", "hint"),
    [
        ("write", errno.ENOSPC, "disk is full"),
        ("write", errno.EDQUOT, "quota"),
        ("write", errno.EIO, "disk fails"),
        ("fsync", errno.EIO, "disk fails"),
        ("open", errno.EACCES, "right to read and write"),
        ("open", errno.EROFS, "read-only"),
        ("link", errno.EPERM, "hard links"),
        ("link", errno.EOPNOTSUPP, "hard links"),
    ],
)
def test_a_failing_disk_is_said_and_leaves_nothing(
    store: LocalStore, tmp_path: Path, function: str, number: int, hint: str
) -> None:
    store.create("before", b"content")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, function, failing(number))
        with pytest.raises(StoreError) as caught:
            store.create("packs/aa/one", b"content")
    assert hint in caught.value.hint
    assert os.strerror(number) in caught.value.detail
    assert [info.key for info in store.list("")] == ["before"]
    assert list((tmp_path / "store" / INCOMING).iterdir()) == []
    store.create("packs/aa/one", b"content")


def test_a_write_that_takes_only_a_part_is_continued(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    data = random.Random(1).randbytes(12_345)
    store.create("one", data)
    assert store.read("one") == data


def test_a_read_that_brings_only_a_part_is_continued(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reads at most 2 GiB at once, and network file systems less."""
    data = random.Random(1).randbytes(12_345)
    store.create("one", data)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 1000), at))
    assert store.read("one") == data
    assert store.read_range("one", 5, 4321) == data[5 : 5 + 4321]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    directory = other / tmp_path.name
    directory.mkdir()
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def test_a_store_over_two_file_systems_is_refused(
    store: LocalStore, tmp_path: Path, elsewhere: Path
) -> None:
    store.create("one", b"content")
    (tmp_path / "store" / "packs").symlink_to(elsewhere)
    with pytest.raises(StoreError) as caught:
        store.create("packs/two", b"content")
    assert "one file system" in caught.value.hint
    assert list(elsewhere.iterdir()) == []


def test_a_file_where_a_directory_should_be(store: LocalStore, tmp_path: Path) -> None:
    store.create("packs", b"content")
    with pytest.raises(StoreError) as caught:
        store.create("packs/one", b"content")
    assert "a file lies where" in caught.value.hint
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        LocalStore(tmp_path / "file").create("one", b"content")
    with pytest.raises(StoreError):
        LocalStore(tmp_path / "file" / "below").create("one", b"content")


def test_a_directory_where_an_object_should_be(store: LocalStore) -> None:
    store.create("packs/one", b"content")
    with pytest.raises(StoreError) as caught:
        store.create("packs", b"content")
    assert not isinstance(caught.value, ObjectExists)
    assert "a directory lies where" in caught.value.hint


def test_a_disk_that_is_not_mounted_is_thought_of(store: LocalStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.read("format.json")
    assert "mounted" in caught.value.hint


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "not" / "made" / "yet"):
        free_bytes = LocalStore(directory).free_bytes()
        assert free_bytes is not None
        assert 0 < free_bytes < shutil.disk_usage(tmp_path).total
    assert list(tmp_path.iterdir()) == []


def test_what_is_larger_than_any_object_is_not_read(tmp_path: Path) -> None:
    LocalStore(tmp_path).create("packs/one", b"all")
    (tmp_path / "packs/one").chmod(0o600)
    os.truncate(tmp_path / "packs/one", 1 << 40)
    with pytest.raises(DamagedData, match="larger than any object"):
        LocalStore(tmp_path).read("packs/one")
