"""Restores files and directories with all that belongs to them, below a directory."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from cellarer.errors import DamagedData, TargetFailed, UsageError
from cellarer.filesystem.node import FILES, TREE, Node, decoded, kind_of, parse_tree, parts
from cellarer.ports import Outlook, PointReader, Progress, Restored
from cellarer.targets.files import create_file, open_below, sweep_partials

_WRITERS, _WAITING = 8, 32
_LISTED = 5


class FilesTarget:
    """Writes what a point of files holds below `path`, each file whole before it gets its name.

    Owners are set where that is allowed, by their names where the host knows them. Patterns in
    `only` are of whole paths, or name a directory with all beneath.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._overwrite = False
        self._lacking: set[str] = set()
        self._written: set[str] = set()

    def prepare(self, overwrite: bool) -> None:
        """Say whether what is there may be replaced."""
        self._overwrite = overwrite
        if os.path.lexists(self._path) and not self._path.is_dir():
            raise TargetFailed(
                f"{self._path} is no directory", hint="name one that is, or is not there"
            )

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        """What would be read and replaced. Raises what a restore would refuse."""
        present, size = self._present(reader, only)
        return Outlook(size, tuple(present), as_verified=False)

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        """Write the files. Raises `TargetFailed`, `DamagedData`."""
        began = time.monotonic()
        self._present(reader, only)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            restored = self._write(reader, only, progress)
        except OSError as error:
            raise TargetFailed(
                f"cannot write {error.filename or self._path}",
                detail=error.strerror or str(error),
                hint=_way_out(error),
            ) from error
        for text in sorted(self._lacking):
            progress.note(text)
        return Restored(restored, time.monotonic() - began, reader.point)

    def _present(self, reader: PointReader, only: tuple[str, ...]) -> tuple[list[str], int]:
        """The first files that are there already, and what is to be read."""
        present, size, used = list[str](), 0, set[str]()
        held = {entry.path.removeprefix(f"{FILES}/") for entry in reader.entries()}
        for node in chosen_nodes(reader, only, used):
            if node.kind == "file" and (node.same or node.path) not in held:
                raise DamagedData(f"restore point {reader.point} lacks the content of {node.path}")
            size += 0 if node.same else node.size_bytes
            place = self._path.joinpath(*map(os.fsdecode, parts(node.path)))
            taken = node.kind != "directory" and os.path.lexists(place)
            if taken and place.is_dir() and not place.is_symlink():
                raise TargetFailed(
                    f"{place} is a directory, where a {node.kind} should be",
                    hint="move it out of the way, or name another directory",
                )
            if (taken or _blocked(node, place)) and len(present) <= _LISTED:
                present.append(str(place))
        if missing := [pattern for pattern in only if pattern not in used]:
            raise UsageError(
                f"nothing in restore point {reader.point} matches {missing[0]}",
                hint="`cellarer show` lists what it holds.",
            )
        if present and not self._overwrite:
            raise TargetFailed(
                f"{self._path} holds files of these names already",
                detail=", ".join(present[:_LISTED]) + (", ..." if len(present) > _LISTED else ""),
                hint="Name another directory, or add --overwrite.",
            )
        return present[:_LISTED], size

    def _write(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> int:
        """Files by several threads; links when what they lead to is there, directories at last."""
        directories: list[Node] = []
        links: list[Node] = []
        restored = 0
        with ThreadPoolExecutor(_WRITERS, "write") as writers:
            waiting: list[Future[int]] = []
            try:
                for node in chosen_nodes(reader, only, set()):
                    if node.kind == "directory":
                        directories += [node] if self._make_directory(node) else []
                    elif node.same:
                        links.append(node)
                    else:
                        waiting.append(writers.submit(self._make, reader, node, progress))
                    if len(waiting) > _WAITING:
                        restored += waiting.pop(0).result()
                restored += sum(future.result() for future in waiting)
            finally:
                for future in waiting:
                    future.cancel()
        for node in links:
            self._link(reader, node, progress)
        for node in reversed(directories):
            names = [os.fsdecode(name) for name in parts(node.path)]
            with open_below(self._path, names) as descriptor:
                self._belongings(node, descriptor)
                os.utime(descriptor, ns=(node.mtime_ns, node.mtime_ns))
                os.fsync(descriptor)
        return restored

    def _make_directory(self, node: Node) -> bool:
        """Whether it is new, or to be made as it was: what is there stays as it is unasked."""
        *above, name = (os.fsdecode(part) for part in parts(node.path))
        with open_below(self._path, above) as directory:
            there = _kind(name, directory)
            if there not in (None, "directory"):
                # Without --overwrite this was refused before.
                os.unlink(name, dir_fd=directory)
        with open_below(self._path, [*above, name]) as descriptor:
            sweep_partials(descriptor)
        return self._overwrite or there != "directory"

    def _make(self, reader: PointReader, node: Node, progress: Progress) -> int:
        """A node that is no directory; how many bytes were read for it."""
        *above, name = (os.fsdecode(part) for part in parts(node.path))
        with open_below(self._path, above) as directory:
            if node.kind == "file":
                blocks = _counted(reader.read(node.stream), progress)
                create_file(directory, name, blocks, 0o600, None, sparse=node.sparse)
                self._written.add(node.path)
            else:
                self._make_special(node, directory, name)
            self._settle(node, directory, name)
        return node.size_bytes if node.kind == "file" else 0

    def _make_special(self, node: Node, directory: int, name: str) -> None:
        self._make_way(name, directory)
        if node.kind == "symlink":
            os.symlink(decoded(node.link), os.fsencode(name), dir_fd=directory)
        elif node.kind == "fifo":
            os.mkfifo(name, 0o600, dir_fd=directory)
        elif node.device and os.geteuid() == 0:
            kind = stat.S_IFBLK if node.device[0] == "block" else stat.S_IFCHR
            os.mknod(name, kind | 0o600, os.makedev(*node.device[1:]), dir_fd=directory)
        else:
            self._lacking.add("devices were left out: only root may make them")

    def _link(self, reader: PointReader, node: Node, progress: Progress) -> None:
        """Another name of a file; a copy where that is not restored with it."""
        *above, name = (os.fsdecode(part) for part in parts(node.path))
        *first_above, first = (os.fsdecode(part) for part in parts(node.same))
        with open_below(self._path, above) as directory:
            if node.same in self._written:
                with open_below(self._path, first_above) as source:
                    self._make_way(name, directory)
                    places = {"src_dir_fd": source, "dst_dir_fd": directory}
                    os.link(first, name, **places, follow_symlinks=False)
                return
            original = replace(node, path=node.same, same="")
            blocks = _counted(reader.read(original.stream), progress)
            create_file(directory, name, blocks, 0o600, None, sparse=node.sparse)
            self._settle(node, directory, name)

    def _make_way(self, name: str, directory: int) -> None:
        if self._overwrite:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)

    def _settle(self, node: Node, directory: int, name: str) -> None:
        """Whose it is, what may be done with it, and when it was changed."""
        if _kind(name, directory) is None:
            return
        if node.kind == "file":
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                self._belongings(node, descriptor)
            finally:
                os.close(descriptor)
        else:
            if os.geteuid() == 0:
                owner = _owner(node)
                os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
            if node.kind != "symlink":
                os.chmod(name, node.mode, dir_fd=directory)
        os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _belongings(self, node: Node, descriptor: int) -> None:
        """The owner first: a change of that takes rights away."""
        if os.geteuid() == 0:
            os.fchown(descriptor, *_owner(node))
        elif node.uid != os.geteuid():
            self._lacking.add("owners were left out: only root may give files away")
        os.fchmod(descriptor, node.mode)
        for name, value in node.attributes.items():
            try:
                os.setxattr(descriptor, name, value)
            except OSError as error:
                self._lacking.add(f"attribute {name} could not be set: {error.strerror}")


def chosen_nodes(reader: PointReader, only: tuple[str, ...], used: set[str]) -> Iterator[Node]:
    """The nodes that match any pattern, with the directories above them; `used` gets the patterns.

    Raises `DamagedData` for a point without a tree.
    """
    if not any(entry.path == TREE for entry in reader.entries()):
        raise DamagedData(f"restore point {reader.point} has no tree of files")
    wanted = [pattern.strip("/") for pattern in only]
    above: list[Node] = []
    for node in parse_tree(reader.read(TREE)):
        while above and not node.path.startswith(f"{above[-1].path}/"):
            above.pop()
        fitting = [raw for raw, each in zip(only, wanted, strict=True) if _matches(node.path, each)]
        used.update(fitting)
        if fitting or not only:
            yield from above
            above = []
            yield node
        elif node.kind == "directory":
            above.append(node)


def _way_out(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a link is in the way, and none is followed: choose an empty directory"
    return (
        "free space there, or name a directory that you may write to; what was written is whole,"
        " and --overwrite replaces it when you run it again"
    )


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or path.startswith(f"{pattern}/") or fnmatchcase(path, pattern)


def _blocked(node: Node, place: Path) -> bool:
    """Whether something else is where a directory should be."""
    there = os.path.lexists(place)
    return node.kind == "directory" and there and (place.is_symlink() or not place.is_dir())


def _kind(name: str, directory: int) -> str | None:
    """What there is of a name in a directory; None for nothing."""
    try:
        return kind_of(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode) or "socket"
    except FileNotFoundError:
        return None


def _counted(blocks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        yield block
        progress.advance(len(block))


def _owner(node: Node) -> tuple[int, int]:
    return _uid(node.user, node.uid), _gid(node.group, node.gid)


@cache
def _uid(name: str, number: int) -> int:
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return number


@cache
def _gid(name: str, number: int) -> int:
    with suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    return number
