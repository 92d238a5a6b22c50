"""A mirror of one repository on this host, from which it is backed up.

`git` fetches into it what is new, as one more pack each time; what lies in it is never changed, so
the next point holds the same packs and one more. Losing a mirror costs a fetch of everything.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellarer.errors import SourceFailed
from cellarer.git.contents import listed_refs
from cellarer.git.program import Credentials, Git, GitFailed

MOST_PACKS = 64
"""With more, the smaller ones are put together: each object is written anew a few times in all."""

_FETCH = ("fetch", "--quiet", "--no-write-fetch-head", "--no-tags")
_DECAYED = re.compile(
    r"is corrupt|data stream error|bad object|loose object|pack .* is far too short"
)


class Mirror:
    """The mirror at `path` of the repository at `url`."""

    def __init__(self, path: Path, url: str, credentials: Credentials | None) -> None:
        self.path, self.url = path, url
        self._credentials = credentials
        self._beside = path.with_suffix(".partial")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works with it meanwhile. Raises `SourceFailed` where somebody does."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_suffix(".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SourceFailed(
                    f"another backup of {self.url} is under way",
                    hint="run again when it is done",
                    retryable=True,
                ) from error
            yield

    def update(self) -> None:
        """Bring it up to what the repository has now. Raises `GitFailed`, `SourceFailed`."""
        shutil.rmtree(self._beside, ignore_errors=True)
        if not (self.path / "HEAD").exists():
            self._clone()
        else:
            self._fetch()
        self._set_head()
        if len(self.packs()) > MOST_PACKS:
            self.git().run("repack", "--quiet", "--geometric=2", "-d")

    def compact(self) -> None:
        """Make one pack of what its refs need, leaving out all else. Raises `GitFailed`."""
        self.git().run("repack", "--quiet", "-a", "-d")

    def git(self) -> Git:
        """The program, working in it."""
        return Git(self.path, credentials=self._credentials, secrets_for=[self.url])

    def refs(self) -> dict[str, str]:
        """Ref name -> object id."""
        return listed_refs(self.git().run("for-each-ref", "--format=%(objectname) %(refname)"))

    def head(self) -> str:
        """The ref that HEAD names, or the object id where it names none."""
        return (self.path / "HEAD").read_text().strip().removeprefix("ref: ")

    def object_format(self) -> str:
        """`sha1` or `sha256`."""
        return self.git().run("rev-parse", "--show-object-format").strip()

    def packs(self) -> list[Path]:
        """Its packs, in an order that stays."""
        return sorted((self.path / "objects" / "pack").glob("pack-*.pack"))

    def _clone(self) -> None:
        """Made beside its place, and put there when it is whole.

        Under a name of its own: `git` outlives a backup that is killed, and may be writing yet.
        """
        partial = self._beside / secrets.token_hex(8)
        git = Git(credentials=self._credentials, secrets_for=[self.url])
        options = ("--quiet", "--mirror", "--no-local", "--reject-shallow", "--origin", "origin")
        git.run("clone", *options, "--", self.url, partial)
        shutil.rmtree(self.path, ignore_errors=True)
        partial.rename(self.path)
        self.path.chmod(0o700)
        shutil.rmtree(self._beside, ignore_errors=True)

    def _fetch(self) -> None:
        git = self.git()
        if self.refs() and not advertised(self.url, self._credentials):
            # Asked before anything is fetched: that would take the refs away here as well.
            raise SourceFailed(
                f"{self.url} has no refs any more, and had some at the last backup",
                hint=f"if that is meant, remove {self.path} and run again",
            )
        git.run("config", "remote.origin.url", self.url)
        git.run(*_FETCH, "--prune", "origin")

    def explained(self, error: GitFailed) -> GitFailed:
        """An error of git, with what to do where the mirror itself has decayed."""
        if _DECAYED.search(error.detail) and "remote:" not in error.detail:
            error.hint = f"remove {self.path}: it is fetched anew then"
        return error

    def _set_head(self) -> None:
        """HEAD as it is there: a ref, or a commit, which need not be one of any ref."""
        git = self.git()
        for line in git.run("ls-remote", "--symref", "origin", "HEAD").splitlines():
            found, _, name = line.partition("\t")
            if found.startswith("ref: "):
                git.run("symbolic-ref", "HEAD", found.removeprefix("ref: "))
                return
            if name == "HEAD":
                git.run(*_FETCH, "origin", "HEAD")
                git.run("update-ref", "--no-deref", "HEAD", found)


def advertised(url: str, credentials: Credentials | None) -> int:
    """How many refs a repository has, asked of it now. Raises `GitFailed`."""
    git = Git(credentials=credentials, secrets_for=[url])
    return len(git.run("ls-remote", "--refs", "--", url).splitlines())
