"""Warm standbys: restored from the vault, fed from it, promoted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg

from cellarer.bootstrap.recoveries import directory_in, plan
from cellarer.bootstrap.sources import PGDATA, jobs
from cellarer.bootstrap.vaults import now, open_vault, resolved
from cellarer.bootstrap.wal import open_logs, refuse_log
from cellarer.config import Config, PostgresBase, Wal
from cellarer.domain.recovery_target import recovery_target
from cellarer.errors import CellarerError, TargetFailed, UsageError, VaultUnreachable
from cellarer.flows import restore as flow
from cellarer.flows.points import survey
from cellarer.ports import Progress
from cellarer.postgres.basebackup import read_facts
from cellarer.postgres.connection import connect
from cellarer.postgres.conninfo import described
from cellarer.postgres.data_directory import read_control
from cellarer.postgres.standby_feed import FEED_COMMAND, StandbyFeed
from cellarer.postgres.standby_server import StandbyServer, programs_for
from cellarer.targets.pgdata import PgdataTarget, account_for
from cellarer.targets.recovery import Course
from cellarer.targets.standby_directory import (
    NEW,
    UNFINISHED,
    look_at,
    refuse_recovery_settings,
    settle,
)
from cellarer.wal.standby import Standby
from cellarer.wal.upstream import Upstream


def open_standby(
    config: Config,
    source: str,
    to: str,
    moved: Mapping[str, Path],
    settings: Mapping[str, str],
    progress: Progress,
    tell: Callable[[str], None],
    *,
    only_look: bool = False,
) -> Standby:
    """The standby of a source in the data directory that `pgdata:PATH` names.

    It is made where there is none, from the newest base backup, unless `only_look`; it is not
    started. Raises `UsageError`, `TargetFailed` for a directory that is anything else, and what
    restoring raises.
    """
    refuse_log(config, source)
    refuse_recovery_settings(settings)
    data = _directory(to)
    kind = look_at(data)
    if kind in (NEW, UNFINISHED):
        if only_look:
            raise UsageError(f"there is no standby in {data}", hint="run without --status first")
        _restore(config, source, data, moved, progress, unfinished=kind == UNFINISHED)
        tell(f"the newest base backup is restored to {data}")
    else:
        _refuse_other(config, source, data)
    if not only_look:
        for name in settle(data, settings):
            tell(f"there was no {name} in the base backup: a minimal one is written")
    control = read_control(data)
    assert control is not None
    account = account_for(data)
    server = StandbyServer(data, account)
    feed = StandbyFeed(data, account)
    return Standby(server, feed, open_logs(config), control.system_identifier, now, tell)


_SILENCE = ("refused", "timeout", "timed out", "no route", "unreachable", "no such file",
            "could not translate", "name or service", "name resolution")  # fmt: skip
"""What is said where nobody answers; all else is a server that lives, and may be the primary."""


def living_primaries(config: Config, to: str) -> list[str]:
    """The servers of the config that are the primary of this standby, and answer."""
    control = read_control(_directory(to))
    found = []
    for name, source in config.sources.items():
        if not isinstance(source, PostgresBase | Wal) or control is None:
            continue
        dsn = resolved(source.dsn, config.directory)
        try:
            identity, _ = Upstream(dsn, "").identify()
            with connect(dsn) as connection:
                recovering = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        except (CellarerError, psycopg.Error) as error:
            told = f"{error} {getattr(error, 'detail', '')}"
            if not any(sign in told.lower() for sign in _SILENCE):
                found.append(f"a server answers at {described(dsn)}, and cannot be asked: {error}")
            continue
        if identity.system == control.system_identifier and recovering == (False,):
            found.append(f"the server of source {name} answers at {described(dsn)}")
    return found


def _directory(to: str) -> Path:
    if not to.startswith(PGDATA):
        raise UsageError("a standby needs a data directory", hint="write it as --to pgdata:/PATH")
    return directory_in(to).absolute()


def _restore(
    config: Config,
    source: str,
    data: Path,
    moved: Mapping[str, Path],
    progress: Progress,
    *,
    unfinished: bool,
) -> None:
    vault = open_vault(config, reading=True)
    target = recovery_target()
    recovery = plan(vault, source, "latest", target, now())
    course = Course(
        target,
        "latest",
        lambda _name: None,
        FEED_COMMAND,
        recovery.reach.last,
        replay_bytes=recovery.replay_bytes,
    )
    goal = PgdataTarget(data, course, moved, jobs(), delta=unfinished, standby=True)
    reader = flow.open_point(vault, recovery.plan.point.id)
    chosen = flow.look(reader, recovery.plan, goal, (), overwrite=False)
    programs_for(read_facts(reader).major)
    flow.restore(reader, chosen, goal, (), False, progress)


def _refuse_other(config: Config, source: str, data: Path) -> None:
    """Raise where the standby is of another cluster than the source. A vault that does not answer
    is no reason: a standby whose vault is away is started, and waits for it."""
    control = read_control(data)
    try:
        points = survey(open_vault(config)).points
    except VaultUnreachable:
        return
    systems = {p.wal.system for p in points if p.source == source and p.wal is not None}
    if control is not None and systems and control.system_identifier not in systems:
        raise TargetFailed(
            f"{data} is no standby of {source}",
            detail=f"its system identifier is {control.system_identifier}, the source's"
            f" {', '.join(sorted(systems))}",
            hint="Name another directory, or the source that it belongs to.",
        )
    if not systems:
        raise UsageError(
            f"there is no base backup of {source} in the vault",
            hint="`cellarer points` has the names of sources",
        )
