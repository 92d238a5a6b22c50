"""`cellarer points`: restore points, newest first; `points hold` and `points release`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cellarer.cli.backup import point_document, point_table
from cellarer.cli.frame import Session, command
from cellarer.cli.render import iso_time
from cellarer.errors import UsageError

if TYPE_CHECKING:
    from cellarer.flows.windows import RecoveryWindow


class _Points(click.Group):
    """Lists where nothing else is asked for: `points`, `points SOURCE`, `points hold POINT`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The command to run, and its arguments."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("points", cls=_Points)
def points() -> None:
    """List restore points, newest first; hold and release them."""


@command("list")
@click.argument("source", required=False)
@click.option("--at", metavar="TIME", help="Only points not after this time (ISO 8601, UTC).")
def list_(session: Session, source: str | None, at: str | None) -> None:
    """List restore points, newest first. The word `list` may be left out."""
    from cellarer import bootstrap
    from cellarer.domain.quantity import about_duration
    from cellarer.domain.retention import hold_reason
    from cellarer.domain.snapshot import ahead, behind_the_clock
    from cellarer.flows.immutability import immutable_until, seen_locks
    from cellarer.flows.points import left_out, survey
    from cellarer.flows.retain import decide, holds
    from cellarer.flows.windows import look_at_logs, read_logs

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
    plan = decide(all_there_is, bootstrap.retention(session.config), now)
    decisions = {decision.point.id: decision for decision in plan.keep}
    warnings = [finding.message for finding in bootstrap.look_back(vault, all_there_is)]
    warnings += [
        f"{point.id} is dated {about_duration(early.total_seconds())} in the future"
        for point in found
        if (early := ahead(point.time, now))
    ]
    warnings += [
        f"{point} was committed after a point that is dated"
        f" {about_duration(early.total_seconds())} later"
        for point, early in behind_the_clock(all_there_is.points, now).items()
    ]
    seen, held = seen_locks(all_there_is.entries), holds(all_there_is.entries)
    documents = [
        point_document(point, decisions.get(point.id))
        | {"immutable_until": immutable_until(point, seen)}
        for point in found
    ]
    logs = read_logs(vault, all_there_is.points, bootstrap.open_log_reader)
    windows = [
        window
        for log in logs
        for window in log.windows
        if source in (None, window.source) or _is_log(session, source)
    ]
    warnings += [finding.message for finding in look_at_logs(logs)]
    warnings += left_out(vault)
    document = {
        "points": documents,
        "windows": [_window_document(window) for window in windows],
        "warnings": warnings,
    }

    def text() -> str:
        none = "no restore points yet" if not all_there_is.points else "no such restore points"
        lines = [point_table(found) if found else none]
        lines += [
            f"{point.id} is {hold_reason(held[point.id])}" for point in found if point.id in held
        ]
        for name, locks in seen.items():
            count = sum(name in document["immutable_until"] for document in documents)
            if count:
                until = f"before {iso_time(locks.locked_until)}"
                lines.append(f"{name}: nobody can delete what {count} of these need {until}")
        lines += [line for window in windows for line in _window_lines(window)]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])

    session.emit(document, text)


def _is_log(session: Session, source: str | None) -> bool:
    """Whether a source stores write-ahead log; of which cluster only its server would tell."""
    settings = session.config.sources.get(source or "")
    return settings is not None and settings.kind == "wal"


def _window_document(window: RecoveryWindow) -> dict[str, object]:
    from cellarer.domain.wal import lsn_text

    return {
        "source": window.source or None,
        "system": window.system,
        "timeline": window.window.timeline,
        "from": iso_time(window.since) if window.since else None,
        "to": iso_time(window.until) if window.until else None,
        "from_lsn": lsn_text(window.window.from_lsn),
        "to_lsn": lsn_text(window.window.to_lsn),
        "gaps": [
            {
                "from_lsn": lsn_text(gap.from_lsn),
                "to_lsn": lsn_text(gap.to_lsn),
                "first": gap.first,
                "last": gap.last,
            }
            for gap in window.window.gaps
        ],
    }


def _window_lines(window: RecoveryWindow) -> list[str]:
    from cellarer.domain.wal import lsn_text

    until = iso_time(window.until) if window.until else "unknown"
    line = f"{window.source or f'cluster {window.system}'}, timeline {window.window.timeline}: "
    if window.since:
        line += f"any moment from {iso_time(window.since)} to {until}"
    else:
        line += f"WAL until {until}, and no base backup"
    lines = [f"{line} (WAL to {lsn_text(window.window.to_lsn)})"]
    for gap in window.window.gaps:
        names = gap.first if gap.first == gap.last else f"{gap.first} to {gap.last}"
        lines.append(f"  gap: {names} is missing")
    return lines


@command("hold")
@click.argument("point")
@click.option("--reason", default="", help="Why; shown wherever the point is listed.")
def hold(session: Session, point: str, reason: str) -> None:
    """Keep a point whatever the retention says, until it is released."""
    from cellarer import bootstrap
    from cellarer.flows import retain

    vault = bootstrap.open_vault(session.config, collecting=True)
    held = retain.hold(vault, point, reason, bootstrap.now())
    session.emit({"point": held.id, "reason": reason}, lambda: f"{held.id} is on hold")


@command("release")
@click.argument("point")
def release(session: Session, point: str) -> None:
    """Let the retention decide again about a point that is on hold.

    Of what is gone for good, by the id or the hash that `status` names: be told of it no more.
    """
    from cellarer import bootstrap
    from cellarer.flows import retain

    vault = bootstrap.open_vault(session.config, collecting=True)
    freed, gone = retain.release(vault, point, bootstrap.now(), bootstrap.seen_heads(vault))
    text = f"{freed} is given up" if gone else f"{freed} is no longer on hold"
    session.emit({"point": freed}, lambda: text)


for each in (list_, hold, release):
    points.add_command(each)


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
