"""`cellarer points`: restore points, newest first."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from cellarer.cli.backup import point_document, point_table
from cellarer.cli.frame import Session, command
from cellarer.errors import UsageError


@command("points")
@click.argument("source", required=False)
@click.option("--at", metavar="TIME", help="Only points not after this time (ISO 8601, UTC).")
def points(session: Session, source: str | None, at: str | None) -> None:
    """List restore points, newest first."""
    from cellarer import bootstrap
    from cellarer.flows.points import list_points

    moment = parse_moment(at)
    found = list_points(bootstrap.open_vault(session.config), source, moment)
    if source is not None and not found and source not in session.config.sources:
        raise UsageError(
            f"there is no source {source}, in the config or in the vault",
            hint=f"sources are: {', '.join(session.config.sources)}",
        )
    document = {"points": [point_document(p) for p in found], "windows": []}
    session.emit(document, lambda: point_table(found) if found else "no restore points yet")


def parse_moment(text: str | None) -> datetime | None:
    """A moment in ISO 8601; UTC where it names no zone. Raises `UsageError`."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text} is not a time", hint="write it like 2026-11-24T09:30:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
