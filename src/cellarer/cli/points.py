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
    from cellarer.domain.quantity import about_duration
    from cellarer.domain.snapshot import ahead
    from cellarer.flows.points import survey

    moment = parse_moment(at)
    vault = bootstrap.open_vault(session.config)
    all_there_is = survey(vault)
    found = all_there_is.of(source, moment)
    if source is not None and not found and source not in session.config.sources:
        raise UsageError(
            f"there is no source {source}, in the config or in the vault",
            hint=f"sources are: {', '.join(session.config.sources)}",
        )
    now = bootstrap.now()
    warnings = [finding.message for finding in bootstrap.look_back(vault, all_there_is)]
    warnings += [f"{key} is damaged and was left out" for key in vault.unreadable]
    warnings += [
        f"{point.id} is dated {about_duration(early.total_seconds())} in the future"
        for point in found
        if (early := ahead(point.time, now))
    ]
    document = {"points": [point_document(p) for p in found], "windows": [], "warnings": warnings}

    def text() -> str:
        lines = [point_table(found) if found else "no restore points yet"]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])

    session.emit(document, text)


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
