"""Git repositories with all their refs, fetched by `git` into mirrors and backed up from there.

For what a point holds see `git.contents`. A pack never changes, so the next backup takes those over
that it knows and adds one with what is new.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Entry
from cellarer.errors import CellarerError, SourceFailed
from cellarer.git.contents import (
    FACTS,
    LFS,
    PACKS,
    REFS,
    RepositoryFacts,
    refs_text,
    repository_name,
)
from cellarer.git.dependencies import has_lfs, large_files, submodules
from cellarer.git.mirror import Mirror, advertised
from cellarer.git.program import Credentials, GitFailed
from cellarer.ports import Capture, Stream
from cellarer.sources.examined import examined, source_finding
from cellarer.sources.remembered import Remembered

_BLOCK_BYTES = 1 << 20
_TOLD = 5
_CREDENTIALS = re.compile(r"https?://[^/]*@")


class GitSource:
    """Repositories by their addresses, and those that `list_command` prints, a line each.

    Their mirrors, and what is known of the last point, lie below `state`. With `full_read`
    nothing is taken over unread, and each mirror is made as small as its refs allow.
    """

    kind = "git"

    def __init__(
        self,
        name: str,
        repositories: Sequence[str],
        state: Path,
        *,
        list_command: Sequence[str] = (),
        credentials: Credentials | None = None,
        full_read: bool = False,
    ) -> None:
        self.name = name
        self._repositories, self._list_command = repositories, list_command
        self._state, self._credentials = state / name, credentials
        self._full_read = full_read
        self._known = Remembered(self._state / "point.json")
        if full_read:
            self._known.forget()
        self._marks: dict[str, str] = {}
        self._notes: list[str] = []

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """All repositories as they are now; see `cellarer.ports.Source`.

        Each is fetched before the first byte is stored. Raises `SourceFailed` with all that could
        not be, and then nothing is committed.
        """
        self._marks, self._notes = {}, []
        mirrors = self._mirrors()
        with ExitStack() as locks:
            problems: dict[str, CellarerError] = {}
            for name, mirror in mirrors.items():
                try:
                    locks.enter_context(mirror.locked())
                    mirror.update()
                    if self._full_read:
                        mirror.compact()
                except GitFailed as error:
                    problems[name] = mirror.explained(error)
                except CellarerError as error:
                    problems[name] = error
            self._refuse(problems)
            expected = sum(p.stat().st_size for m in mirrors.values() for p in m.packs())
            yield Capture(self._streams(mirrors), expected)

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """See `cellarer.ports.Remembering`."""
        with suppress(OSError):
            self._known.save(point, entries, self._marks)

    def notes(self) -> Sequence[str]:
        """See `cellarer.ports.Noting`."""
        return self._notes

    def examine(self) -> list[Finding]:
        """Whether each repository answers, and what does not come with it."""
        return examined(self.name, self._examination())

    def _mirrors(self) -> dict[str, Mirror]:
        """Name -> mirror, of everything that is to be backed up. Raises `SourceFailed`."""
        addresses = list(dict.fromkeys([*self._repositories, *self._listed()]))
        mirrors: dict[str, Mirror] = {}
        for address in addresses:
            name = repository_name(address)
            if name in mirrors:
                raise SourceFailed(
                    f"{address} and {mirrors[name].url} would both be stored as {name}",
                    hint="put one of them into a source of its own",
                )
            place = self._state / f"{name}.git"
            mirrors[name] = Mirror(place, address, self._credentials)
        if not mirrors:
            raise SourceFailed(
                f"{self.name} names no repository",
                hint="see what its list_command prints",
            )
        return mirrors

    def _listed(self) -> list[str]:
        """What the command prints. Raises `SourceFailed`."""
        if not self._list_command:
            return []
        shown = " ".join(self._list_command)
        try:
            done = subprocess.run(
                list(self._list_command),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise SourceFailed(
                f"the list_command of {self.name} cannot be run",
                detail=f"{shown}: {error.strerror or error}",
                hint="correct list_command in the config",
            ) from error
        if done.returncode != 0:
            raise SourceFailed(
                f"the list_command of {self.name} ended with status {done.returncode}",
                detail=f"{shown}\n{done.stderr.strip()[-500:]}",
                hint="run it by hand; a list that is not whole would leave repositories out",
            )
        lines = (line.strip() for line in done.stdout.splitlines())
        listed = [line for line in lines if line and not line.startswith("#")]
        if any(_CREDENTIALS.match(line) for line in listed):
            raise SourceFailed(
                f"the list_command of {self.name} prints addresses with credentials in them",
                hint="let it print them without, and set token for the source",
            )
        return listed

    def _refuse(self, problems: dict[str, CellarerError]) -> None:
        if not problems:
            return
        first = next(iter(problems.values()))
        told = list(problems.items())[:_TOLD]
        detail = "\n".join(f"{n}: {e}" + (f"\n{e.detail}" if e.detail else "") for n, e in told)
        if len(problems) > _TOLD:
            detail += f"\nand {len(problems) - _TOLD} more"
        raise SourceFailed(
            f"{len(problems)} of the repositories of {self.name} could not be read",
            detail=detail,
            hint=first.hint or "run git by hand to see what is wrong; nothing was committed",
            retryable=all(error.retryable for error in problems.values()),
        ) from first

    def _streams(self, mirrors: dict[str, Mirror]) -> Iterator[Stream]:
        for name in sorted(mirrors):
            try:
                yield from self._streams_of(name, mirrors[name], mirrors)
            except GitFailed as error:
                self._refuse({name: mirrors[name].explained(error)})

    def _streams_of(
        self, name: str, mirror: Mirror, mirrors: dict[str, Mirror]
    ) -> Iterator[Stream]:
        large = large_files(mirror)
        if not large.known:
            self._notes.append(f"{name} has files in Git LFS: git-lfs is not on this host")
        if large.missing:
            self._notes.append(f"{name}: the server has {len(large.missing)} LFS objects no more")
        refs, object_format = mirror.refs(), mirror.object_format()
        for pack in mirror.packs():
            path = f"{name}/{PACKS}/{pack.name}"
            yield self._file(path, "pack", pack, _pack_blocks(pack, object_format))
        for place in large.there:
            path = f"{name}/{LFS}/{'/'.join(place.parts[-3:])}"
            yield self._file(path, "lfs", place, _lfs_blocks(place))
        facts = RepositoryFacts(
            url=mirror.url,
            head=mirror.head(),
            object_format=object_format,
            refs=len(refs),
            submodules=submodules(mirror, mirrors),
            lfs=large.used,
            lfs_known=large.known,
            lfs_missing=large.missing,
        )
        yield Stream.whole(f"{name}/{REFS}", "refs", refs_text(refs), 0o600)
        yield Stream.whole(f"{name}/{FACTS}", "json", facts.to_json(), 0o600)

    def _file(self, path: str, kind: str, place: Path, blocks: Iterator[bytes]) -> Stream:
        """A file whose name says what is in it: of the same name and size it is the same."""
        size = place.stat().st_size
        self._marks[path] = str(size)
        unchanged = self._known.unchanged(path, self._marks[path])
        return Stream(path, kind, blocks, size, unchanged=unchanged)

    def _examination(self) -> Iterator[Finding]:
        mirrors = self._mirrors()
        for name, mirror in mirrors.items():
            try:
                yield from self._look_at(name, mirror, mirrors)
            except CellarerError as error:
                message = f"{name} cannot be read: {error}"
                yield source_finding(self.name, "repository", "error", message, error.hint)

    def _look_at(self, name: str, mirror: Mirror, mirrors: dict[str, Mirror]) -> Iterator[Finding]:
        refs = advertised(mirror.url, self._credentials)
        yield source_finding(self.name, "repository", "info", f"{name} has {refs} refs")
        if not (mirror.path / "HEAD").exists():
            return
        if not has_lfs() and large_files(mirror, fetch=False).used:
            yield source_finding(
                self.name,
                "lfs",
                "error",
                f"{name} has files in Git LFS, which are not backed up",
                "install git-lfs on this host",
            )
        for module in submodules(mirror, mirrors):
            if not module.covered:
                yield source_finding(
                    self.name,
                    "submodule",
                    "warning",
                    f"{name} contains {module.url} as {module.path}, which is not backed up",
                    "add it to the repositories if it is yours",
                )


def _blocks(place: Path) -> Iterator[bytes]:
    try:
        with place.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise SourceFailed(f"{place} cannot be read", detail=error.strerror or "") from error


def _pack_blocks(place: Path, object_format: str) -> Iterator[bytes]:
    """A pack, compared with the sum of it that stands at its end. Raises `SourceFailed`."""
    digest = hashlib.new(object_format)
    left = place.stat().st_size - digest.digest_size
    end = b""
    for block in _blocks(place):
        digest.update(block[: max(left, 0)])
        end += block[max(left, 0) :]
        left -= len(block)
        yield block
    if digest.digest() != end:
        raise SourceFailed(
            f"{place} is not what git wrote",
            detail="the sum at its end does not fit",
            hint=f"remove {place.parents[2]}: the repository is fetched anew then",
        )


def _lfs_blocks(place: Path) -> Iterator[bytes]:
    """An object of Git LFS, compared with its name. Raises `SourceFailed`."""
    digest = hashlib.sha256()
    for block in _blocks(place):
        digest.update(block)
        yield block
    if digest.hexdigest() != place.name:
        raise SourceFailed(
            f"{place} is not what its name says", hint="remove it: it is fetched anew then"
        )
