"""Sources, targets, provers and retention, as the config names them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cellarer.bootstrap.vaults import resolved, state_directory
from cellarer.config import Config, Files, Git, PostgresBase, PostgresDump, Retention
from cellarer.domain.assertion import Assertion
from cellarer.domain.retention import Policy
from cellarer.errors import UsageError
from cellarer.flows.retain import Rules
from cellarer.ports import Prover, Source, Target

if TYPE_CHECKING:
    from cellarer.vault.vault import Vault

BUILT = (PostgresDump, PostgresBase, Git, Files)

GIT, FILES = "git", "files"
"""The kinds of points that are restored into directories, each in its own way."""

PGDATA = "pgdata:"
"""What a restore's target begins with that is a data directory; `recoveries.py` opens those."""

_KEYWORDS = re.compile(r"\s*(host|hostaddr|port|user|password|dbname|service)\s*=")


def jobs() -> int:
    """How many PostgreSQL processes a restore runs at once: one for each core, eight at most."""
    return max(1, min(os.cpu_count() or 1, 8))


def open_sources(config: Config, names: Iterable[str], *, full_read: bool = False) -> list[Source]:
    """The named sources, or all that are built where none is named.

    Raises `UsageError` for names that are not in the config or not built yet.
    """
    wanted = list(names)
    if not config.sources:
        raise UsageError(
            "the config has no source",
            hint='add one: [sources.database] with kind = "postgres_dump" and a dsn',
        )
    unknown = [name for name in wanted if name not in config.sources]
    if unknown:
        raise UsageError(
            f"there is no source {unknown[0]} in the config",
            hint=f"sources are: {', '.join(config.sources)}",
        )
    built = built_sources(config)
    not_built = [name for name in wanted if name not in built]
    if not_built:
        kind = config.sources[not_built[0]].kind
        if kind == "wal":
            raise UsageError(
                f"source {not_built[0]} is write-ahead log, of which no snapshot is taken",
                hint=f"it is stored by `cellarer wal stream {not_built[0]}`, or by archive_command",
            )
        raise UsageError(
            f"source {not_built[0]} cannot be backed up yet",
            detail=f"sources of kind {kind} are not built",
            hint=f"sources that can: {', '.join(built) or 'none'}",
        )
    return [open_source(config, name, full_read=full_read) for name in wanted or built]


def open_source(config: Config, name: str, *, full_read: bool = False) -> Source:
    """One source of a kind that is built; `full_read` where nothing is to be left unread."""
    settings = config.sources[name]
    if isinstance(settings, Git):
        return _git_source(config, name, settings, full_read=full_read)
    if isinstance(settings, Files):
        from cellarer.sources.files import FilesSource

        state = state_directory() / "trees"
        return FilesSource(
            name, settings.paths, state, exclude=settings.exclude, full_read=full_read
        )
    assert isinstance(settings, PostgresDump | PostgresBase)
    dsn = resolved(settings.dsn, config.directory)
    if isinstance(settings, PostgresDump):
        from cellarer.sources.postgres_dump import PostgresDumpSource

        return PostgresDumpSource(name, dsn, settings.databases)
    from cellarer.sources.postgres_base import PostgresBaseSource

    directory = settings.data_directory
    return PostgresBaseSource(
        name,
        dsn,
        state_directory() / "files",
        way=settings.read,
        data_directory=Path(directory) if directory else None,
        full_read=full_read,
    )


def _git_source(config: Config, name: str, settings: Git, *, full_read: bool) -> Source:
    from cellarer.git.program import Credentials
    from cellarer.sources.git import GitSource

    token = resolved(settings.token, config.directory) if settings.token else None
    return GitSource(
        name,
        settings.repositories,
        state_directory() / "git",
        list_command=settings.list_command,
        credentials=Credentials(token, settings.user) if token else None,
        full_read=full_read,
    )


def built_sources(config: Config) -> list[str]:
    """The names of the sources that this version can back up."""
    return [name for name, s in config.sources.items() if isinstance(s, BUILT)]


def retention(config: Config) -> Rules:
    """The rules of the config, for all sources and for each that has its own."""
    return Rules(
        general=_policy(config.retention),
        policies={n: _policy(s.retention) for n, s in config.sources.items() if s.retention},
        zone=ZoneInfo(config.schedule.timezone),
        repack_bytes=config.retention.repack,
        wal_window=config.retention.wal_window,
    )


def _policy(settings: Retention) -> Policy:
    return Policy(**{name: getattr(settings, name) for name in Retention.model_fields})


def open_target(text: str) -> Target:
    """A restore's target as people write it: `postgresql://…` or a directory."""
    if text.startswith(("postgresql://", "postgres://")):
        from cellarer.targets.postgres import PostgresTarget

        return PostgresTarget(text, jobs())
    if _KEYWORDS.match(text):
        # Taken for a directory, it would be made and shown, with the password that it may hold.
        raise UsageError(
            "the target is a connection string of keywords",
            hint="write it as postgresql://USER@HOST:PORT/DATABASE",
        )
    scheme = urlsplit(text).scheme
    if scheme not in ("", "file"):
        raise UsageError(
            f"{scheme}:// cannot be restored to yet",
            hint="name a directory or postgresql://HOST/DATABASE",
        )
    from cellarer.targets.directory import DirectoryTarget

    return DirectoryTarget(_path(text))


def open_target_of(text: str, kind: str, *, work_tree: bool) -> Target:
    """The target of points of this kind. Raises `UsageError` where they cannot go there."""
    if work_tree and kind != GIT:
        raise UsageError("--work-tree is for git repositories", hint="leave it out")
    if kind not in (GIT, FILES):
        return open_target(text)
    if text.startswith(("postgresql://", "postgres://")):
        raise UsageError(f"a point of {kind} does not go into a database", hint="name a directory")
    if kind == GIT:
        from cellarer.targets.git import GitTarget

        return GitTarget(_path(text), work_tree=work_tree)
    from cellarer.targets.file_tree import FilesTarget

    return FilesTarget(_path(text))


def _path(text: str) -> Path:
    return Path(urlsplit(text).path if urlsplit(text).scheme else text)


def open_prover(config: Config, vault: Vault, source: str, kind: str) -> Prover:
    """What brings points of this kind up in a sandbox. Raises `UsageError` where nothing does."""
    if kind == "postgres_base":
        from cellarer.bootstrap.recoveries import course_of_proof
        from cellarer.targets.base_sandbox import BaseProver

        claimed = assertions(config, source)
        return BaseProver(claimed, sandboxes(), jobs(), course_of_proof(vault))
    if kind == GIT:
        from cellarer.targets.git_prover import GitProver

        return GitProver()
    if kind == FILES:
        from cellarer.targets.files_prover import FilesProver

        return FilesProver()
    if kind != "postgres_dump":
        raise UsageError(f"points of kind {kind} cannot be proven yet")
    from cellarer.targets.sandbox import PostgresProver

    return PostgresProver(assertions(config, source), sandboxes(), jobs())


def assertions(config: Config, source: str) -> list[Assertion]:
    """What the config claims of a source's data; nothing for a source it does not name."""
    settings = config.sources.get(source)
    claimed = settings.assertions if isinstance(settings, PostgresDump | PostgresBase) else ()
    return [Assertion(a.name, a.sql, a.expect, a.database) for a in claimed]


def sandboxes() -> Path:
    """The directory below which throw-away clusters live: short, and open to be entered."""
    directory = Path(tempfile.gettempdir()) / f"cellarer-{os.getuid()}"
    directory.mkdir(mode=0o711, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise UsageError(
            f"{directory} belongs to somebody else",
            hint="set TMPDIR to a directory of your own",
        )
    return directory


def presentations() -> Mapping[str, Callable[[Iterable[bytes]], Iterable[bytes]]]:
    """How `cat` shows streams of some kinds: a table as COPY text, without its framing."""
    from cellarer.postgres.archive import rows

    return {"table": lambda blocks: rows(iter(blocks))}
