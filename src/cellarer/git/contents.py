"""What a restore point holds of each repository, and under which names.

NAME/packs/pack-….pack     all objects, in packs as git made them
NAME/lfs/aa/bb/…           objects of Git LFS, named by their SHA-256
NAME/refs                  every ref: object id, a blank, its name
NAME/repository.json       where it came from, its HEAD, what else belongs to it
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData
from cellarer.ports import PointReader

REFS, FACTS, PACKS, LFS = "refs", "repository.json", "packs", "lfs"
_OWN = re.compile(
    rf"{REFS}|{re.escape(FACTS)}|{PACKS}/pack-[0-9a-f]+\.pack"
    rf"|{LFS}/[0-9a-f]{{2}}/[0-9a-f]{{2}}/[0-9a-f]{{64}}"
)
"""The streams of a repository, below its name. They become names of files."""

_FORMAT = 1
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Submodule:
    """A repository that another one contains, by its address; `covered` by the same point."""

    path: str
    url: str
    covered: bool


@dataclass(frozen=True)
class RepositoryFacts:
    """What is known of a repository beside its refs.

    `head` is the ref that HEAD names, or an object id. `lfs` says whether it has files in Git LFS,
    of which `lfs_missing` are the ids of those that could not be had; `lfs_known` is False where
    nobody could tell which there are.
    """

    url: str
    head: str
    object_format: str
    refs: int
    submodules: Sequence[Submodule] = ()
    lfs: bool = False
    lfs_known: bool = True
    lfs_missing: Sequence[str] = ()

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> RepositoryFacts:
        """Raises `DamagedData`."""
        try:
            found: dict[str, Any] = json.loads(data)
            if found.pop("format") != _FORMAT:
                raise ValueError("it is of another format")
            submodules = tuple(Submodule(**each) for each in found.pop("submodules"))
            texts = (found["url"], found["head"], found["object_format"])
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a field has another type")
            return cls(**found, submodules=submodules)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedData(f"{FACTS} is broken", detail=str(error)) from error


@dataclass(frozen=True)
class Repository:
    """One repository of a point: its name, and the entries of its packs and its LFS objects."""

    name: str
    facts: RepositoryFacts
    refs: dict[str, str]
    packs: Sequence[Entry]
    lfs: Sequence[Entry]


def refs_text(refs: dict[str, str]) -> bytes:
    """Refs as they are stored."""
    lines = (f"{refs[name]} {name}\n" for name in sorted(refs))
    return "".join(lines).encode("utf-8", "surrogateescape")


def parse_refs(data: bytes) -> dict[str, str]:
    """Ref name -> object id."""
    return listed_refs(data.decode("utf-8", "surrogateescape"))


def listed_refs(text: str) -> dict[str, str]:
    """The same of lines of text. A name may hold what Python takes for the end of a line."""
    lines = (line.partition(" ") for line in text.split("\n") if line)
    return {name: oid for oid, _, name in lines}


def read_repositories(reader: PointReader) -> list[Repository]:
    """The repositories of a point, without their objects. Raises `DamagedData`."""
    entries = reader.entries()
    names = [e.path.removesuffix(f"/{FACTS}") for e in entries if e.path.endswith(f"/{FACTS}")]
    below: dict[str, list[Entry]] = {name: [] for name in names}
    for entry in entries:
        name = next((n for n in _above(entry.path) if n in below), None)
        if name is None or not _OWN.fullmatch(entry.path.removeprefix(f"{name}/")):
            raise DamagedData("a point of repositories holds what is of none", detail=entry.path)
        below[name].append(entry)
    found = []
    for name, own in below.items():
        if any(part.lower() in ("", ".", "..", ".git") for part in name.split("/")):
            raise DamagedData("a repository has an impossible name", detail=repr(name))
        found.append(
            Repository(
                name,
                RepositoryFacts.parse(_small(reader, f"{name}/{FACTS}")),
                parse_refs(_small(reader, f"{name}/{REFS}")),
                [entry for entry in own if entry.path.startswith(f"{name}/{PACKS}/")],
                [entry for entry in own if entry.path.startswith(f"{name}/{LFS}/")],
            )
        )
    return found


def _above(path: str) -> Iterator[str]:
    """The directories that a path lies in, the nearest first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _small(reader: PointReader, path: str) -> bytes:
    parts, size = [], 0
    for block in reader.read(path):
        size += len(block)
        if size > _MOST_BYTES:
            raise DamagedData(f"{path} is too large to be true")
        parts.append(block)
    return b"".join(parts)


def repository_name(address: str) -> str:
    """The name under which a repository is stored: server and path, without `.git`."""
    parts = urlsplit(address)
    if parts.scheme and "://" in address:
        path = f"{parts.hostname or ''}/{parts.path}"
    else:
        host, colon, rest = address.partition(":")
        path = f"{host.rpartition('@')[2]}/{rest}" if colon and "/" not in host else address
    segments = [part for part in path.split("/") if part not in ("", ".", "..")]
    name = "/".join(segments).removesuffix(".git").removesuffix("/")
    return name or "repository"
