"""What belongs to a repository and does not lie in it: objects of Git LFS, and submodules."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from cellarer.git.contents import Submodule, repository_name
from cellarer.git.mirror import Mirror
from cellarer.git.program import Git, GitFailed

_GONE = re.compile(
    r"does not exist|\b(?:404|410)\b|[Nn]ot [Ff]ound|[Mm]issing|no such file", re.IGNORECASE
)
_REFUSED = re.compile(
    r"\b(?:401|403|5\d\d)\b|refused|no such host|timeout|timed out|unauthorized|forbidden"
    r"|credentials|authentication",
    re.IGNORECASE,
)
"""What a server of LFS says of objects that it has not, and what of anything else."""

_SUBMODULE = re.compile(r"submodule\.(?P<name>.*)\.(?P<key>path|url) (?P<value>.*)")


@dataclass(frozen=True)
class LargeFiles:
    """The objects of Git LFS that a mirror has, and those that it should have.

    `known` is False where git-lfs is not on this host, so that nobody can tell.
    """

    used: bool
    known: bool = True
    there: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()


def has_lfs() -> bool:
    """Whether git-lfs is on this host."""
    return Git().says("lfs", "version")


def large_files(mirror: Mirror, *, fetch: bool = True) -> LargeFiles:
    """Fetch what Git LFS has of a repository. Raises `GitFailed` where that may go better later."""
    git = mirror.git()
    if not _uses_lfs(git):
        return LargeFiles(used=False)
    if not has_lfs():
        return LargeFiles(used=True, known=False)
    if fetch:
        try:
            git.run("lfs", "fetch", "--all", "origin")
        except GitFailed as error:
            if not _GONE.search(error.detail) or _REFUSED.search(error.detail):
                raise
            # What the server has not got any more is named below.
    listed = git.run("lfs", "ls-files", "--all", "--long").splitlines()
    wanted = sorted({line.partition(" ")[0] for line in listed})
    places = {oid: mirror.path / "lfs" / "objects" / oid[:2] / oid[2:4] / oid for oid in wanted}
    return LargeFiles(
        used=True,
        there=tuple(place for place in places.values() if place.is_file()),
        missing=tuple(oid for oid, place in places.items() if not place.is_file()),
    )


def submodules(mirror: Mirror, names: Collection[str]) -> list[Submodule]:
    """The submodules of all branches; `names` are the repositories that are backed up with it."""
    git = mirror.git()
    branches = [oid for ref, oid in mirror.refs().items() if ref.startswith("refs/heads/")]
    asked = "".join(f"{oid}:.gitmodules\n" for oid in sorted(set(branches)))
    answers = git.run("cat-file", "--batch-check", text=asked).splitlines() if asked else []
    blobs = {words[0] for words in map(str.split, answers) if words[1:2] == ["blob"]}
    found: dict[tuple[str, str], Submodule] = {}
    for blob in sorted(blobs):
        for path, url in _in_modules(git, blob):
            address = _resolved(url, mirror.url)
            covered = repository_name(address) in names
            found[path, address] = Submodule(path, address, covered)
    return [found[key] for key in sorted(found)]


def _in_modules(git: Git, blob: str) -> list[tuple[str, str]]:
    try:
        listed = git.run("config", "--blob", blob, "--get-regexp", r"^submodule\..*\.(path|url)$")
    except GitFailed:
        return []  # it names none, or is no configuration: git itself cannot use it either
    parts: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        match = _SUBMODULE.fullmatch(line)
        if match:
            parts.setdefault(match["name"], {})[match["key"]] = match["value"]
    return [(each.get("path", name), each["url"]) for name, each in parts.items() if "url" in each]


def _resolved(url: str, base: str) -> str:
    """An address that may be relative to that of the repository which names it."""
    if not url.startswith(("./", "../")):
        return url
    parts = urlsplit(base)
    if parts.scheme and "://" in base:
        path = posixpath.normpath(posixpath.join(parts.path, url))
        return urlunsplit(parts._replace(path=path))
    host, colon, path = base.partition(":")
    if colon and "/" not in host:
        return f"{host}:{posixpath.normpath(posixpath.join(path, url))}"
    return posixpath.normpath(posixpath.join(base, url))


def _uses_lfs(git: Git) -> bool:
    """Whether any commit has or had files there."""
    changed = ("log", "--all", "-1", "--format=%H", "-Sfilter=lfs")
    return bool(git.run(*changed, "--", ":(glob)**/.gitattributes").strip())
