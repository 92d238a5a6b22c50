"""A directory as a store: an object is on the disk, whole and synced, or it is not there.

An object is written to a temporary file, synced, and then given its name by a hard link, which
fails where the name is taken. A link shows the whole content or nothing, which opening the final
name and writing to it would not; and unlike a rename it never replaces what is there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo
from cellarer.stores.object_keys import check_key, check_prefix, check_range, check_size, is_key

INCOMING = ".incoming"
"""Where temporary files lie. No key begins with a dot, so nothing in it can be an object."""

ABANDONED_SECONDS = 3600.0
"""Age at which a temporary file is a killed writer's where the file system has no locks to tell.
Were its writer alive, it would fail to link and report so; nothing would be lost."""

_BLOCK_BYTES = 1 << 20


class LocalStore:
    """One replica's bytes in a directory, which is made when the first object comes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._incoming = self._directory / INCOMING
        self._swept = False
        # Directories that are known to survive a power cut themselves.
        self._durable: set[Path] = set()

    @property
    def url(self) -> str:
        return self._directory.as_uri()

    def create(self, key: str, data: bytes) -> None:
        check_key(key)
        target = self._directory / key
        with self._explained(f"{key} cannot be stored"):
            self._sweep()
            try:
                self._store(target, data)
            except FileNotFoundError:
                # Somebody removed a directory under a running program: make them anew, once.
                self._durable.clear()
                self._store(target, data)

    def read(self, key: str) -> bytes:
        check_key(key)
        with self._explained(f"{key} cannot be read"), self._opened(key) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            check_size(key, size_bytes)
            return _read(descriptor, 0, size_bytes)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_key(key)
        check_range(offset, length)
        with self._explained(f"{key} cannot be read"), self._opened(key) as descriptor:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes < offset + length:
                raise DamagedData(
                    f"{key} ends too early",
                    detail=f"{size_bytes} bytes where {offset + length} are needed; {self.url}",
                )
            return _read(descriptor, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return self._walk(self._directory / prefix, prefix)

    def delete(self, key: str) -> None:
        check_key(key)
        target = self._directory / key
        with (
            self._explained(f"{key} cannot be deleted"),
            suppress(FileNotFoundError, NotADirectoryError),
        ):
            if not target.is_dir():
                target.unlink()

    def remove_empty(self, prefix: str) -> None:
        """Remove the directory of a prefix unless something is in it."""
        directory = self._directory / prefix.rstrip("/")
        self._durable.discard(directory)
        with suppress(OSError):
            directory.rmdir()

    def free_bytes(self) -> int | None:
        """The room that the file system has for this user, also where nothing is stored yet."""
        present = next(p for p in (self._directory, *self._directory.parents) if p.exists())
        with self._explained("the free space cannot be read"):
            return shutil.disk_usage(present).free

    def _store(self, target: Path, data: bytes) -> None:
        with self._temporary(data) as temporary:
            self._link(temporary, target, data)

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """A synced file with this content, under a name that nobody else has, locked and removed.

        Only a sweep in the moment before the lock takes it away: then linking fails, and `create`
        tries again.
        """
        self._make_durable(self._incoming)
        temporary = self._incoming / secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            _sync(descriptor)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)

    def _link(self, temporary: Path, target: Path, data: bytes) -> None:
        """Give the temporary file its name, durably, unless the name is taken."""
        self._make_durable(target.parent)
        try:
            try:
                os.link(temporary, target)
            except FileNotFoundError:
                # Another one removed the directory, which was empty still.
                self._durable.discard(target.parent)
                self._make_durable(target.parent)
                os.link(temporary, target)
        except FileExistsError:
            if not _holds(target, data):
                key = target.relative_to(self._directory)
                raise ObjectExists(
                    f"{key} is there already, with other content", detail=self.url
                ) from None
        # Also where the same bytes were there already: whoever linked them may not have synced yet.
        _sync_directory(target.parent)

    def _make_durable(self, directory: Path) -> None:
        """Make a directory of this store, and sync every entry on the way to it.

        A directory that exists may be another writer's, made a moment ago and not yet synced, so
        each is synced once in the life of this object, whoever made it.
        """
        if directory in self._durable:
            return
        if directory != self._directory:
            self._make_durable(directory.parent)
            directory.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(directory.parent)
        elif directory.is_dir():
            # Whose parent we may not read, we have not made: it was there before.
            with suppress(PermissionError):
                _sync_directory(directory.parent)
        else:
            absent = [path for path in (directory, *directory.parents) if not path.exists()]
            for path in reversed(absent):
                path.mkdir(mode=0o700, exist_ok=True)
                _sync_directory(path.parent)
        self._durable.add(directory)

    def _sweep(self) -> None:
        """Remove the temporary files of killed writers, once in the life of this object."""
        if self._swept:
            return
        self._swept = True
        with suppress(FileNotFoundError):
            for path in self._incoming.iterdir():
                # Gone since, or another user's: theirs to sweep.
                with suppress(FileNotFoundError, PermissionError):
                    if _is_abandoned(path):
                        path.unlink()

    def _walk(self, directory: Path, prefix: str) -> Iterator[ObjectInfo]:
        """The objects below a directory. One directory's names are held at a time and level."""
        with self._explained(f"{prefix or 'the store'} cannot be listed"):
            names = _names(directory)
        place = str(directory)
        for name in names:
            if name.endswith("/"):
                yield from self._walk(directory / name, prefix + name)
                continue
            size_bytes = self._size(f"{place}/{name}", prefix + name)
            if size_bytes is not None:
                yield ObjectInfo(prefix + name, size_bytes)

    def _size(self, path: str, key: str) -> int | None:
        """The size of an object in bytes; None where it was deleted since it was listed.

        Called a hundred thousand times in a listing, so without `Path` and `_explained`.
        """
        try:
            return os.stat(path).st_size  # noqa: PTH116
        except FileNotFoundError:
            return None
        except OSError:
            with self._explained(f"{key} cannot be listed"):
                raise

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        """A descriptor of the object. Raises `ObjectMissing`."""
        try:
            descriptor = os.open(self._directory / key, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(key) from None
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise self._missing(key)
            yield descriptor
        finally:
            os.close(descriptor)

    def _missing(self, key: str) -> ObjectMissing:
        if self._directory.is_dir():
            return ObjectMissing(f"there is no {key}", detail=self.url)
        return ObjectMissing(
            f"there is no {key}",
            detail=f"{self._directory} does not exist",
            hint="is the disk mounted?",
        )

    @contextmanager
    def _explained(self, message: str) -> Iterator[None]:
        """Turn what the operating system says into `StoreError`."""
        try:
            yield
        except OSError as error:
            place = f" ({error.filename})" if error.filename else ""
            raise StoreError(
                message,
                detail=f"{error.strerror or error}{place}; {self.url}",
                hint=_HINTS.get(error.errno or 0, "see the system's log for this disk"),
                retryable=error.errno in _PASSING,
            ) from error


def _names(directory: Path) -> list[str]:
    """Names in a directory in the order of the keys below; those of directories end in `/`.

    With the `/` at the end a directory sorts where its content does: `a-b`, then `a/c`.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name + "/" if entry.is_dir() else entry.name
                for entry in entries
                if is_key(entry.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_abandoned(temporary: Path) -> bool:
    """Whether no living process writes this file, as its lock tells; without locks, its age."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return os.fstat(descriptor).st_mtime < time.time() - ABANDONED_SECONDS
    finally:
        os.close(descriptor)
    return True


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Exactly so many bytes; the caller knows that they are there."""
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _holds(path: Path, data: bytes) -> bool:
    """Whether the file has exactly this content."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != len(data):
            return False
        return all(
            file.read(_BLOCK_BYTES) == data[at : at + _BLOCK_BYTES]
            for at in range(0, len(data), _BLOCK_BYTES)
        )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Return when what was written is on the medium."""
    if sys.platform == "darwin":
        import fcntl

        # There fsync(2) leaves the bytes in the drive's cache; see its manual page.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


_PASSING = {errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
_NO_ACCESS = "give the user who runs cellarer the right to read and write there"
_NO_LINKS = (
    "this file system has no hard links, without which an object cannot be created safely; "
    "use another one, such as ext4, XFS, ZFS or NFS"
)
_HINTS = {
    errno.ENOSPC: "the disk is full: free space or enlarge it",
    errno.EDQUOT: "the quota is used up: raise it or free space",
    errno.EIO: "the disk fails: look at the system's log, and replace it",
    errno.EROFS: "the file system is mounted read-only; after errors the system does so by itself",
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_LINKS + "; or " + _NO_ACCESS,
    errno.EOPNOTSUPP: _NO_LINKS,
    errno.ENOSYS: _NO_LINKS,
    errno.EXDEV: "the whole store must lie on one file system; mount nothing inside it",
    errno.EEXIST: "a file lies where a directory is needed",
    errno.ENOTDIR: "a file lies where a directory is needed",
    errno.EISDIR: "a directory lies where an object is to be",
    errno.ESTALE: "the network file system went away; look at its mount",
}
