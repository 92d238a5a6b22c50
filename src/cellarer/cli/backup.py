"""`cellarer backup`: one snapshot of each source."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import table
from cellarer.domain.snapshot import RestorePoint


@command("backup")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
def backup(session: Session, sources: tuple[str, ...]) -> None:
    """Take one snapshot of each source; of all of them if none is named."""
    from cellarer import bootstrap
    from cellarer.flows.backup import back_up

    opened = bootstrap.open_sources(session.config, sources)
    vault = bootstrap.open_vault(session.config)
    points = [back_up(vault, each, session.progress, bootstrap.now) for each in opened]
    session.emit({"points": [point_document(p) for p in points]}, lambda: point_table(points))


def point_document(point: RestorePoint) -> dict[str, Any]:
    """A restore point as scripts read it. Retention fills `expires` and `kept_for` later."""
    fields = {f.name: getattr(point, f.name) for f in dataclasses.fields(point)}
    return fields | {"expires": None, "kept_for": []}


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
            point.proof.word,
            ", ".join(
                name if state == "stored" else f"{name} behind"
                for name, state in point.replicas.items()
            ),
        ]
        for point in points
    ]
    columns = ["point", "source", "time (UTC)", "took", "read", "stored", "proof", "replicas"]
    return table(columns, rows, right={"took", "read", "stored"})
