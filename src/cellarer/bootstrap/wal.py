"""Write-ahead log on its way, as the config names it: the agent, streams, and how they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cellarer.bootstrap.vaults import (
    now,
    open_log_reader,
    open_log_writer,
    open_vault,
    resolved,
    state_directory,
)
from cellarer.config import Config, Wal, load
from cellarer.domain.finding import Finding
from cellarer.domain.quantity import about_size
from cellarer.domain.wal_health import LAG_MAY_BE, StreamReport, findings
from cellarer.errors import SourceFailed, UsageError

if TYPE_CHECKING:
    from cellarer.wal.agent import Agent
    from cellarer.wal.logs import Logs
    from cellarer.wal.reports import ReportFile
    from cellarer.wal.standing import WalStatus
    from cellarer.wal.streamer import Streamer
    from cellarer.wal.upstream import Upstream

BEHIND_SEGMENTS = 4
"""So much may wait for archive_command, which hands over whole segments."""


def open_logs(config: Config) -> Logs:
    """The logs of the vault, for a process that runs for long."""
    from cellarer.wal.logs import Logs

    return Logs(lambda: open_vault(config), open_log_writer, open_log_reader)


def open_agent(config_path: Path) -> Agent:
    """The agent of this config."""
    from cellarer.wal.agent import Agent

    config = load(config_path)
    return Agent(config_path, open_logs(config), state_directory() / "wal-spool")


def command_of_recovery(config: Config, system: str, spool: Path) -> str:
    """The `restore_command` of a recovery of this cluster, for a server that recovers by itself.

    `spool` is where segments are fetched ahead; see `archiving.restore_command`.
    """
    from cellarer.postgres.archiving import restore_command

    return restore_command(config.path, system, spool)


def wal_sources(config: Config) -> dict[str, Wal]:
    """The sources of kind `wal`."""
    return {name: each for name, each in config.sources.items() if isinstance(each, Wal)}


def open_streamer(config: Config, name: str, tell: Callable[[str], None]) -> Streamer:
    """The stream of a source. Raises `UsageError` where there is none of this name."""
    from cellarer.wal.streamer import Streamer, StreamSettings

    settings = _streamed(config, name)
    wanted = StreamSettings(
        source=name,
        slot=settings.slot,
        flush_every_seconds=settings.flush_every.total_seconds(),
        spool=_spool(settings) / name,
        spool_limit_bytes=settings.spool_limit,
        when_full=settings.when_full,
        heartbeat=settings.heartbeat == "message",
    )
    upstream = open_upstream(config, name)
    return Streamer(wanted, upstream, open_logs(config), report_file(name), now, tell)


def open_upstream(config: Config, name: str) -> Upstream:
    """The server of a source of log."""
    from cellarer.wal.upstream import Upstream

    settings = wal_sources(config)[name]
    return Upstream(resolved(settings.dsn, config.directory), settings.slot)


def report_file(name: str) -> ReportFile:
    """Where the stream of a source writes down how it stands, on this host."""
    from cellarer.wal.reports import ReportFile

    return ReportFile(state_directory() / "streams" / f"{name}.json")


def report_of(name: str) -> StreamReport | None:
    """How the stream of a source stood when it last wrote that down; None where it never did."""
    return report_file(name).load()


def look_at_streams(config: Config) -> list[Finding]:
    """What is wrong with the streams of the config's sources."""
    lag_may_be = config.objectives.replication_lag or LAG_MAY_BE
    return [
        finding
        for name, settings in wal_sources(config).items()
        if settings.method == "stream"
        for finding in findings(report_of(name), name, now(), lag_may_be)
    ]


def look_at_wal_source(config: Config, name: str) -> list[Finding]:
    """What the server of a source of log has to be set to, and the host to have."""
    from cellarer.wal.examination import look_at_server

    settings = wal_sources(config)[name]
    return look_at_server(
        f"sources.{name}",
        open_upstream(config, name),
        _spool(settings) if settings.method == "stream" else None,
    )


def refuse_log(config: Config, source: str) -> None:
    """Raise `UsageError` where a source is log, which by itself restores to nothing."""
    if source in wal_sources(config):
        bases = [name for name, each in config.sources.items() if each.kind == "postgres_base"]
        raise UsageError(
            f"{source} is write-ahead log: a base backup is restored, and the log with it",
            hint=f"name a source of kind postgres_base: {', '.join(bases) or 'there is none yet'}",
        )


def wal_status(config: Config) -> tuple[dict[str, WalStatus], list[Finding]]:
    """How far the log of each source is in the vault, asked of the server and of the replicas."""
    from cellarer.flows.points import survey
    from cellarer.flows.windows import MISSING, look_at_logs, read_logs
    from cellarer.wal.standing import standing, standing_without_server

    vault = open_vault(config)
    found, problems = {}, look_at_streams(config)
    for name in wal_sources(config):
        try:
            found[name] = standing(
                report_of(name),
                open_upstream(config, name),
                lambda system: open_log_reader(vault, system),
                now(),
            )
        except SourceFailed as error:
            told = Finding.of(error, f"sources.{name}")
            if (told.subject, told.message) not in [(p.subject, p.message) for p in problems]:
                problems.append(told)
            system = (report_of(name) or StreamReport(name, now())).system
            reader = open_log_reader(vault, system) if system else None
            found[name] = standing_without_server(report_of(name), reader)
    problems += [
        Finding(
            "wal-behind",
            "error",
            f"sources.{name}",
            f"{about_size(found[name].lag_bytes or 0)} of log are not in the vault",
            "see archive_command, and what the server's log says of it",
        )
        for name, settings in wal_sources(config).items()
        if settings.method == "archive"
        and (found[name].lag_bytes or 0) > BEHIND_SEGMENTS * found[name].segment_bytes
    ]
    systems = {f"wal.{each.system}" for each in found.values()}
    logs = look_at_logs(read_logs(vault, survey(vault).points, open_log_reader))
    problems += [each for each in logs if each.id in MISSING and each.subject in systems]
    return found, problems


def _streamed(config: Config, name: str) -> Wal:
    sources = wal_sources(config)
    if name not in sources:
        known = ", ".join(sources) or "none"
        raise UsageError(
            f"there is no source {name} of kind wal in the config",
            hint=f'sources of kind "wal" are: {known}',
        )
    if sources[name].method != "stream":
        raise UsageError(
            f"source {name} is not streamed, but handed over by archive_command",
            hint=f'set method = "stream" in [sources.{name}]',
        )
    return sources[name]


def _spool(settings: Wal) -> Path:
    return Path(settings.spool).expanduser() if settings.spool else state_directory() / "spool"
