"""`cellarer backup`: one snapshot of each source."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import table
from cellarer.domain.retention import Decision
from cellarer.domain.snapshot import RestorePoint
from cellarer.errors import CellarerError, DamagedData


@command("backup")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--full-read", is_flag=True, help="Read files as well that seem unchanged.")
def backup(session: Session, sources: tuple[str, ...], full_read: bool) -> int:
    """Take one snapshot of each source; of all of them if none is named."""
    from cellarer import bootstrap
    from cellarer.flows.backup import back_up, renewed
    from cellarer.flows.history import gone
    from cellarer.flows.points import other_clusters, survey

    opened = bootstrap.open_sources(session.config, sources, full_read=full_read)
    vault = bootstrap.open_vault(session.config)
    points: list[RestorePoint] = []
    errors: dict[str, CellarerError] = {}
    for each in opened:
        try:
            points.append(back_up(vault, each, session.progress, bootstrap.now))
        except CellarerError as error:
            if len(opened) == 1:
                raise
            errors[each.name] = error
    with suppress(CellarerError):  # what was stored is stored; `status` says what is wrong
        newest = renewed(vault)  # what was signed too late is no point that could go
        there = survey(newest)
        for point in points:
            if others := other_clusters(there.points, point):
                session.progress.note(
                    f"{point.source} is cluster {point.cluster} now, and there are backups of "
                    f"{', '.join(others)}: if that server was not made anew, correct its dsn"
                )
        for finding in gone(newest, there, bootstrap.seen_heads(newest)):
            session.progress.note(f"{finding.subject} {finding.message}: {finding.hint}")
    document = {
        "points": [point_document(p) for p in points],
        "errors": {name: error.as_json() for name, error in errors.items()},
    }

    def text() -> str:
        failed = [f"error: {name}: {e}\nhint: {e.hint}" for name, e in errors.items()]
        return "\n".join([*([point_table(points)] if points else []), *failed])

    session.emit(document, text)
    flawed = [DamagedData.exit_code] if any(point.flaws for point in points) else []
    return max((*flawed, *(error.exit_code for error in errors.values())), default=0)


def point_document(point: RestorePoint, kept: Decision | None = None) -> dict[str, Any]:
    """A restore point as scripts read it, with what the retention says of it, where known."""
    fields = {f.name: getattr(point, f.name) for f in dataclasses.fields(point)}
    return fields | {
        "expires": kept.expires if kept else None,
        "kept_for": kept.reasons if kept else [],
    }


def point_table(points: list[RestorePoint]) -> str:
    """Restore points for people."""
    from cellarer.domain.quantity import about_duration, about_size

    rows = [
        [
            point.id,
            point.source,
            f"{point.time:%Y-%m-%d %H:%M:%S}",
            about_duration(point.seconds),
            about_size(point.read_bytes),
            about_size(point.stored_bytes),
            _proof(point),
            ", ".join(
                name if state == "stored" else f"{name} {state}"
                for name, state in point.replicas.items()
            ),
        ]
        for point in points
    ]
    columns = ["point", "source", "time (UTC)", "took", "read", "stored", "proof", "replicas"]
    return table(columns, rows, right={"took", "read", "stored"})


def _proof(point: RestorePoint) -> str:
    words = [point.proof.word]
    if point.failed:
        words.append("FAILED")
    if point.flaws:
        words.append("DAMAGED AT ITS SOURCE")
    return ", ".join(words)
