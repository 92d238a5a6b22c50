"""Brings directories to the shape that a base backup had, and onto the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cellarer.postgres.account import Account
from cellarer.targets.files import create_file, open_below
from cellarer.targets.ground import MARK
from cellarer.targets.places import Placed, Places

_MODE = 0o700


class Tree:
    """The directories of one restore, owned by the account that will run the server."""

    def __init__(self, places: Places, account: Account) -> None:
        self._places = places
        self._account = account

    def make_roots(self) -> None:
        """Make the roots, for their owner alone. Raises `OSError`."""
        for root in self._places.roots:
            root.mkdir(mode=_MODE, parents=True, exist_ok=True)
            root.chmod(_MODE)
            self._account.own(root)
            _sync_directory(root.parent)

    def clear(self, keep: Iterable[Placed], directories: Mapping[Path, set[str]]) -> None:
        """Remove what does not belong: every file not in `keep`, every directory not needed.

        Links go, and what they lead to stays. Of a tablespace's directory only what the base
        backup has there is looked into.
        """
        kept: dict[Path, set[str]] = {root: set() for root in self._places.roots}
        kept[self._places.data].add(MARK)
        for placed in keep:
            kept.setdefault(placed.root, set()).add(placed.path)
        for root in self._places.roots:
            wanted = directories.get(root, set())
            own = None if root == self._places.data else {_top(path) for path in wanted}
            _clear(root, kept.get(root, set()), _with_parents(wanted | kept[root]), own)

    def make_directories(self, directories: Mapping[Path, set[str]]) -> None:
        """Make every directory, and a link to each tablespace. Raises `OSError`."""
        for root, paths in directories.items():
            for path in sorted(_with_parents({f"{path}/." for path in paths})):
                with self.open(root, path) as descriptor:
                    os.fchmod(descriptor, _MODE)
        for oid in self._places.outside:
            with self.open(self._places.data, "pg_tblspc") as descriptor:
                with suppress(FileNotFoundError):
                    os.unlink(str(oid), dir_fd=descriptor)
                os.symlink(self._places.tablespaces[oid], str(oid), dir_fd=descriptor)
                if self._account.uid is not None and self._account.gid is not None:
                    ids = self._account.uid, self._account.gid
                    os.chown(str(oid), *ids, dir_fd=descriptor, follow_symlinks=False)

    @contextmanager
    def open(self, root: Path, path: str) -> Iterator[int]:
        """A descriptor of a directory below a root, made where it is missing."""
        with open_below(root, path.split("/") if path else ()) as descriptor:
            self.own(descriptor)
            yield descriptor

    def replace(self, root: Path, path: str, content: str | bytes) -> None:
        """A small file, whole or not at all."""
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        parent, _, name = path.rpartition("/")
        with self.open(root, parent) as directory:
            create_file(directory, name, [data], 0o600, None)
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                self.own(descriptor)
            finally:
                os.close(descriptor)

    def own(self, descriptor: int) -> None:
        """Give what is open to the account."""
        if self._account.uid is not None and self._account.gid is not None:
            os.fchown(descriptor, self._account.uid, self._account.gid)

    def sync_root(self) -> None:
        """Bring the names in the data directory to the disk."""
        _sync_directory(self._places.data)

    def sync(self) -> None:
        """Bring every directory to the disk."""
        for root in self._places.roots:
            for directory, _, _ in os.walk(root):
                _sync_directory(Path(directory))


def _clear(root: Path, files: set[str], directories: set[str], only: set[str] | None) -> None:
    for directory, names, others in os.walk(root):
        below = "" if directory == str(root) else f"{os.path.relpath(directory, root)}/"
        if not below and only is not None:
            names[:] = [name for name in names if name in only]
            others.clear()
        for name in list(names):
            path = Path(directory, name)
            if path.is_symlink():
                path.unlink()
                names.remove(name)
            elif f"{below}{name}" not in directories:
                if name != "lost+found":
                    shutil.rmtree(path)
                names.remove(name)
        for name in others:
            path = Path(directory, name)
            if f"{below}{name}" not in files or path.is_symlink():
                path.unlink()


def _with_parents(paths: Iterable[str]) -> set[str]:
    """The directories above these paths."""
    found: set[str] = set()
    for path in paths:
        parts = path.split("/")[:-1]
        found.update("/".join(parts[: number + 1]) for number in range(len(parts)))
    return found


def _top(path: str) -> str:
    return path.split("/", 1)[0]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
