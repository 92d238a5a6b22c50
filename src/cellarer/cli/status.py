"""`cellarer status`: how things stand."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import table

if TYPE_CHECKING:
    from cellarer.flows.status import ReplicaStatus, SourceStatus, Status


@command("status")
def status(session: Session) -> int:
    """Show newest points, their proofs, replicas and alarms. Exit code 3 if an alarm stands."""
    from cellarer import bootstrap
    from cellarer.flows import status as flow
    from cellarer.flows.immutability import look_at_locks, seen_locks
    from cellarer.flows.points import survey
    from cellarer.flows.windows import look_at_logs, read_logs, wal_debts
    from cellarer.vault.scrub import last_whole

    config = session.config
    vault = bootstrap.open_vault(config)
    built = bootstrap.built_sources(config)
    verify_every, scrub_every = config.schedule.verify, config.schedule.scrub
    now = bootstrap.now()
    all_there_is = survey(vault)
    found = flow.status(
        vault,
        all_there_is.points,
        {name: config.sources[name].every for name in built},
        verify_every if isinstance(verify_every, timedelta) else None,
        now,
        [
            *bootstrap.look_back(vault, all_there_is),
            *look_at_locks(vault, all_there_is.entries, all_there_is.points, now),
            *look_at_logs(read_logs(vault, all_there_is.points, bootstrap.open_log_reader)),
            *bootstrap.look_at_streams(config),
        ],
        flow.Scrubs(
            {
                replica.name: last_whole(all_there_is.entries, replica.name, now)
                for replica in vault.replicas.replicas
            },
            scrub_every if isinstance(scrub_every, timedelta) else None,
        ),
        wal_debts(vault, all_there_is.entries),
    )
    document = {
        "vault_id": vault.id,
        "objectives": [
            {
                "name": f"rpo {name}",
                "class": name,
                "target_seconds": each.rpo,
                "actual_seconds": None,
                "state": "unknown",
            }
            for name, each in config.classes.items()
        ],
        "sources": found.sources,
        "replicas": found.replicas,
        "immutability": seen_locks(all_there_is.entries),
        "jobs": [],
        "incidents": [],
        "alarms": found.alarms,
    }
    session.emit(document, lambda: _text(found))
    return 3 if found.alarms else 0


def _text(found: Status) -> str:
    sources = table(
        ["source", "points", "newest", "age", "proof", "proven"],
        [_source_row(source) for source in found.sources],
        right={"points"},
    )
    replicas = table(
        ["replica", "state", "oldest debt", "scrubbed", "url"],
        [_replica_row(r) for r in found.replicas],
    )
    alarms = [
        f"{click.style('alarm', fg='red', bold=True)}  {alarm.subject}: {alarm.message}\n"
        f"       {alarm.hint}"
        for alarm in found.alarms
    ] or [click.style("no alarms", fg="green")]
    return "\n\n".join([sources, replicas, "\n".join(alarms)])


def _replica_row(replica: ReplicaStatus) -> list[str]:
    from cellarer.domain.quantity import about_duration, about_size

    state, age = replica.message or "up to date", ""
    if not replica.reachable:
        state = "away"
    elif replica.behind_points and not replica.message:
        points = "1 point" if replica.behind_points == 1 else f"{replica.behind_points} points"
        state = f"{points} behind, {about_size(replica.behind_bytes)}"
        age = about_duration(replica.oldest_debt_seconds or 0)
    elif replica.behind_wal and not replica.message:
        state = f"{replica.behind_wal} files of WAL behind"
    scrubbed = f"{replica.scrubbed:%Y-%m-%d}" if replica.scrubbed else "never"
    return [replica.name, state, age, scrubbed, replica.url]


def _source_row(source: SourceStatus) -> list[str]:
    from cellarer.domain.quantity import about_duration

    def ago(seconds: float | None) -> str:
        return "never" if seconds is None else f"{about_duration(seconds)} ago"

    return [
        source.name,
        str(source.points),
        source.point or "none",
        ago(source.age_seconds),
        source.proof or "none",
        ago(source.proof_age_seconds),
    ]
