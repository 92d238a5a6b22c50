"""A file, a directory or a link with all that belongs to it but its content.

A point of files has a stream `tree` with a line of JSON for each node, in the order of the walk:
a directory before what lies in it. Contents are streams `files/PATH`. Paths are absolute, without
the leading slash. Names are bytes; a byte that is not UTF-8, and the percent sign, stands as %XX.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cellarer.errors import DamagedData

TREE, FILES = "tree", "files"

Kind = Literal["file", "directory", "symlink", "fifo", "device"]
KINDS: tuple[Kind, ...] = ("file", "directory", "symlink", "fifo", "device")

_MOST_LINE_BYTES, _LARGEST = 1 << 24, 1 << 62


@dataclass(frozen=True)
class Node:
    """One node. Times are in nanoseconds since 1970; `user` and `group` may have no names: "".

    `link` is what a symbolic link says, `same` the path of an earlier file that this is another
    name of. `device` is block or character, and its numbers. `sparse` says that it had holes.
    `changed` says that a file was written to while it was read, so that its content may be that of
    no moment.
    """

    path: str
    kind: Kind
    mode: int
    mtime_ns: int
    uid: int
    gid: int
    user: str = ""
    group: str = ""
    size_bytes: int = 0
    link: str = ""
    same: str = ""
    device: tuple[str, int, int] | None = None
    sparse: bool = False
    changed: bool = False
    attributes: Mapping[str, bytes] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """As it is stored: what is empty is left out."""
        line = {key: value for key, value in vars(self).items() if value}
        line |= {"mode": self.mode, "mtime_ns": self.mtime_ns, "uid": self.uid, "gid": self.gid}
        if line.pop("attributes", None):
            found = sorted(self.attributes.items())
            line["attributes"] = {k: base64.b64encode(v).decode() for k, v in found}
        return json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"

    @property
    def stream(self) -> str:
        """The path of the stream with its content."""
        return f"{FILES}/{self.path}"


def parse_line(line: bytes) -> Node:
    """Raises `DamagedData`: whoever made the point may have written anything."""
    try:
        found: dict[str, Any] = json.loads(line)
        attributes = {
            str(key): base64.b64decode(value, validate=True)
            for key, value in found.pop("attributes", {}).items()
        }
        if device := found.pop("device", None):
            device = (str(device[0]), int(device[1]), int(device[2]))
        node = Node(**found, device=device, attributes=attributes)
        numbers = (node.mode, node.mtime_ns, node.uid, node.gid, node.size_bytes)
        texts = (node.path, node.user, node.group, node.link, node.same)
        if not all(type(each) is int for each in numbers) or not all(
            isinstance(each, str) for each in texts
        ):
            raise ValueError("a field has another type")
        if node.kind not in KINDS or not 0 <= node.mode <= 0o7777:
            raise ValueError("a field has an impossible value")
        if not all(-_LARGEST <= n < _LARGEST for n in (*numbers, *(node.device or ("",))[1:])):
            raise ValueError("a number is too large")
        if min(node.uid, node.gid, node.size_bytes) < 0 or max(node.uid, node.gid) >= 1 << 32:
            raise ValueError("an owner or a size is impossible")
        if b"\0" in decoded(node.link):
            raise ValueError("a link leads nowhere")
        for path in filter(None, (node.path, node.same)):
            parts(path)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedData("the tree of a point is broken", detail=str(error)) from error
    return node


def parse_tree(blocks: Iterable[bytes]) -> Iterator[Node]:
    """The nodes of a stream, one after another. Raises `DamagedData`."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from map(parse_line, lines)
        if len(rest) > _MOST_LINE_BYTES:
            raise DamagedData("the tree of a point has a line that is too long to be true")
    if rest:
        raise DamagedData("the tree of a point ends within a line")


def encoded(name: bytes) -> str:
    """A name or a path as text from which it can be told again."""
    text = name.decode("utf-8", "surrogateescape").replace("%", "%25")
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def decoded(text: str) -> bytes:
    """The name or path that a text stands for. Raises `ValueError`."""
    first, *more = text.split("%")
    found = first.encode()
    for each in more:
        found += bytes([int(each[:2], 16)]) + each[2:].encode()
    return found


def parts(path: str) -> list[bytes]:
    """The names in a path. Raises `ValueError` for one that leads anywhere else."""
    names = [decoded(part) for part in path.split("/")]
    if any(name in (b"", b".", b"..") or b"/" in name or b"\0" in name for name in names):
        raise ValueError(f"a path leads elsewhere: {path!r}")
    return names


def kind_of(mode: int) -> Kind | None:
    """What a mode says it is; None for a socket, which is made anew by who listens there."""
    for test, kind in (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISBLK, "device"),
        (stat.S_ISCHR, "device"),
    ):
        if test(mode):
            return kind  # type: ignore[return-value]
    return None


def attributes_of(place: bytes) -> dict[str, bytes]:
    """The extended attributes of a file or a directory, ACLs among them. Raises `OSError`."""
    found = {}
    try:
        names = os.listxattr(place)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}  # its file system has none
        raise
    for name in names:
        try:
            found[name] = os.getxattr(place, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # taken away this instant
                raise
    return found
