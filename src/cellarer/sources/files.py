"""Files and directories of this host, with all that belongs to them.

For what a point holds see `filesystem.node`. A file is taken over unread where its size, its times
and its inode are those of the last point, and those times lay a minute before that was taken: a
later write bears a later time, also by the clock of a file server that is not quite right.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import IO

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Entry
from cellarer.errors import SourceFailed
from cellarer.filesystem.node import FILES, TREE, Node, attributes_of, encoded, kind_of
from cellarer.ports import Capture, Stream
from cellarer.sources.examined import examined, source_finding
from cellarer.sources.reading_files import UNREADABLE, Ahead, Reading, unreadable
from cellarer.sources.remembered import Remembered

_BLOCK_BYTES = 1 << 20
_SETTLED_NS = 60 * 10**9
_TOLD = 5


class FilesSource:
    """What lies at `paths`, but for what matches a pattern of `exclude`.

    A pattern without a slash is of names, another of whole paths. What is remembered lies in
    `state`. With `full_read` nothing is taken over unread.
    """

    kind = "files"

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        state: Path,
        *,
        exclude: Sequence[str] = (),
        full_read: bool = False,
    ) -> None:
        self.name = name
        self._paths, self._exclude = paths, exclude
        self._known = Remembered(state / f"{name}.json")
        if full_read:
            self._known.forget()
        self._marks: dict[str, str] = {}
        self._changed: list[str] = []

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """All files as they are met; see `cellarer.ports.Source`.

        Raises `SourceFailed` with what cannot be read, and then nothing is committed.
        """
        self._marks, self._changed = {}, []
        ahead = Ahead(self._walk(), self._is_unchanged)
        with tempfile.TemporaryFile() as tree, closing(ahead):
            yield Capture(self._streams(ahead, tree))

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """See `cellarer.ports.Remembering`."""
        with suppress(OSError):
            self._known.save(point, entries, self._marks)

    def notes(self) -> Sequence[str]:
        """See `cellarer.ports.Noting`."""
        told = [f"{path} was written to while it was read" for path in self._changed[:_TOLD]]
        more = len(self._changed) - _TOLD
        return [*told, f"and {more} more"] if more > 0 else told

    def examine(self) -> list[Finding]:
        """Whether what it names is there, and may be read."""
        return examined(self.name, self._examination())

    def _examination(self) -> Iterator[Finding]:
        for path in self._paths:
            if not Path(path).exists():
                yield source_finding(
                    self.name,
                    "path",
                    "error",
                    f"{path} is not there",
                    "correct paths in the config",
                )
            elif not os.access(path, os.R_OK):
                yield source_finding(
                    self.name, "path", "error", f"{path} may not be read", UNREADABLE
                )
            else:
                yield source_finding(self.name, "path", "info", f"{path} is there")

    def _streams(self, ahead: Ahead, tree: IO[bytes]) -> Iterator[Stream]:
        began_ns, links = time.time_ns(), dict[tuple[int, ...], str]()
        files = 0
        for place, found in ahead.nodes():
            node = _node(place, found)
            if node is None:
                continue
            if node.kind != "file":
                tree.write(node.to_line())
                continue
            files += 1
            # Not by the inode alone: one that is gone meanwhile is given to the next file.
            inode = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if found.st_nlink > 1 and inode in links:
                tree.write(replace(node, same=links[inode]).to_line())
                continue
            reading = ahead.reading(place, found)
            if reading is None:
                continue  # gone since it was listed
            yield self._stream(node, reading, found, began_ns)
            if found.st_nlink > 1:
                links[inode] = node.path
            if reading.changed:
                self._changed.append(os.fsdecode(place))
                self._marks.pop(node.stream, None)
            tree.write(_as_read(node, reading).to_line())
        if not files and self._known.streams:
            raise SourceFailed(
                f"{self.name} holds no file any more, and had {self._known.streams} at the last"
                " backup",
                hint="see whether a disk is not mounted; if it is meant, use --full-read",
            )
        size = tree.tell()
        tree.seek(0)
        yield Stream(TREE, "tree", iter(lambda: tree.read(_BLOCK_BYTES), b""), size, 0o600)

    def _stream(self, node: Node, reading: Reading, found: os.stat_result, began_ns: int) -> Stream:
        mark = _mark(found)
        if max(found.st_mtime_ns, found.st_ctime_ns) < began_ns - _SETTLED_NS:
            self._marks[node.stream] = mark
        return Stream(
            node.stream,
            "file",
            reading.blocks(),
            found.st_size,
            node.mode,
            datetime.fromtimestamp(found.st_mtime, UTC),
            unchanged=self._known.unchanged(node.stream, mark),
        )

    def _is_unchanged(self, place: bytes, found: os.stat_result) -> bool:
        stream = f"{FILES}/{encoded(place.strip(b'/'))}"
        return self._known.unchanged(stream, _mark(found)) is not None

    def _walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Every node, in an order that stays. A directory that is a link is followed here."""
        tops = {Path(os.path.normpath(Path.cwd() / path)): path for path in self._paths}
        for top, path in tops.items():
            if any(self._covers(other, top) for other in tops):
                continue  # it comes with that directory
            try:
                found = top.stat()
            except OSError as error:
                raise SourceFailed(
                    f"{path} cannot be read",
                    detail=error.strerror or str(error),
                    hint="correct paths in the config, or see to the disk",
                ) from error
            if not stat.S_ISDIR(found.st_mode) and top.is_symlink():
                raise SourceFailed(
                    f"{path} is a link to a file", hint=f"name {top.resolve()} instead"
                )
            yield from self._below(os.fsencode(top), found)

    def _covers(self, other: Path, top: Path) -> bool:
        """Whether what lies at a path comes with another one: no link, nothing left out between."""
        if other not in top.parents:
            return False
        between = [place for place in (top, *top.parents) if other in place.parents]
        if any(self._left_out(os.fsencode(place), directory=True) for place in between):
            return False
        return other.resolve() / top.relative_to(other) == top.resolve()

    def _below(self, top: bytes, found: os.stat_result) -> Iterator[tuple[bytes, os.stat_result]]:
        """A node that the config names, and all beneath it."""
        waiting = [(top, found)]
        while waiting:
            place, found = waiting.pop()
            yield place, found
            if not stat.S_ISDIR(found.st_mode):
                continue
            below = []
            for each in _listed(place):
                try:
                    there = os.lstat(each)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise unreadable(each, error) from error
                if not self._left_out(each, directory=stat.S_ISDIR(there.st_mode)):
                    below.append((each, there))
            waiting += reversed(below)

    def _left_out(self, place: bytes, *, directory: bool) -> bool:
        path = os.fsdecode(place)
        name = path.rpartition("/")[2]
        for pattern in self._exclude:
            if pattern.endswith("/") and not directory:
                continue
            bare = pattern.rstrip("/")
            if bare and fnmatchcase(path if "/" in bare else name, bare):
                return True
        return False


def _listed(place: bytes) -> list[bytes]:
    """What lies in a directory, by name."""
    try:
        with os.scandir(place) as listed:
            names = sorted(entry.name for entry in listed)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(place, error) from error
    return [place.rstrip(b"/") + b"/" + name for name in names]


def _as_read(node: Node, reading: Reading) -> Node:
    """A file as it was when it was opened, with what is known after it was read."""
    opened, size = reading.found, reading.size_bytes
    return replace(node, size_bytes=size, mtime_ns=opened.st_mtime_ns, changed=reading.changed)


def _node(place: bytes, found: os.stat_result) -> Node | None:
    """What there is to know of a node; None for what is gone, or cannot be brought back.

    Raises `SourceFailed`.
    """
    kind = kind_of(found.st_mode)
    if kind is None:
        return None
    device = None
    if kind == "device":
        which = "block" if stat.S_ISBLK(found.st_mode) else "character"
        device = (which, os.major(found.st_rdev), os.minor(found.st_rdev))
    try:
        link = os.readlink(place) if kind == "symlink" else b""  # noqa: PTH115 - as it is
        attributes = attributes_of(place) if kind in ("file", "directory") else {}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(place, error) from error
    return Node(
        encoded(place.strip(b"/")),
        kind,
        stat.S_IMODE(found.st_mode),
        found.st_mtime_ns,
        found.st_uid,
        found.st_gid,
        _user(found.st_uid),
        _group(found.st_gid),
        link=encoded(link),
        device=device,
        sparse=kind == "file" and found.st_blocks * 512 < found.st_size,
        attributes=attributes,
    )


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@cache
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _mark(found: os.stat_result) -> str:
    numbers = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
    return " ".join(map(str, numbers))
