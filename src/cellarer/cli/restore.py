"""`cellarer restore`: a restore point, or a part of it, back to life."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.points import parse_moment
from cellarer.errors import UsageError

if TYPE_CHECKING:
    from cellarer.domain.recovery import RestorePlan


@command("restore")
@click.argument("source")
@click.option("--point", default="latest", show_default=True, metavar="ID", help="Which point.")
@click.option("--at", metavar="TIME", help="The newest point not after this time.")
@click.option("--lsn", metavar="LSN", help="Needs WAL; not built yet.", hidden=True)
@click.option("--xid", metavar="XID", help="Needs WAL; not built yet.", hidden=True)
@click.option("--name", metavar="NAME", help="Needs WAL; not built yet.", hidden=True)
@click.option(
    "--to", required=True, metavar="TARGET", help="A directory, or postgresql://HOST/DATABASE."
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only these tables, such as public.wines; may be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def restore(
    session: Session,
    source: str,
    point: str,
    at: str | None,
    lsn: str | None,
    xid: str | None,
    name: str | None,
    to: str,
    only: tuple[str, ...],
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Restore SOURCE to a database or a directory. Nothing is overwritten unasked."""
    from cellarer import bootstrap
    from cellarer.flows import restore as flow

    if lsn or xid or name:
        raise UsageError(
            "restoring to an LSN, a transaction or a name needs WAL, which is not built yet",
            hint="use --point or --at",
        )
    if at is not None and point != "latest":
        raise UsageError("--at and --point exclude each other", hint="give one of them")
    vault = bootstrap.open_vault(session.config, reading=True)
    target = bootstrap.open_target(to)
    chosen = flow.plan(vault, source, point, parse_moment(at), bootstrap.now())
    plan = flow.look(vault, chosen, target, only, overwrite)
    if dry_run:
        session.emit({"plan": _plan_document(plan), "result": None}, lambda: _plan_text(plan))
        return
    if plan.replaces:
        session.progress.note(_plan_text(plan))
    done = flow.restore(vault, plan, target, only, overwrite, session.progress)
    document = {"plan": _plan_document(plan), "result": done}

    def text() -> str:
        from cellarer.domain.quantity import about_duration, about_size

        # Before something was replaced it has been shown.
        shown = "" if plan.replaces else f"{_plan_text(plan)}\n"
        return (
            f"{shown}restored {about_size(done.restored_bytes)} in "
            f"{about_duration(done.seconds)}: the state of {done.recovered_to}"
        )

    session.emit(document, text)


def _plan_document(plan: RestorePlan) -> dict[str, object]:
    return {
        "point": plan.point.id,
        "reasons": plan.reasons,
        "restore_bytes": plan.restore_bytes,
        "forecast_seconds": plan.forecast_seconds,
        "loss_seconds": plan.loss_seconds,
        "replaces": plan.replaces,
    }


def _plan_text(plan: RestorePlan) -> str:
    from cellarer.domain.quantity import about_duration, about_size

    reasons = "".join(f"\n  {reason}" for reason in plan.reasons)
    forecast = (
        f"\nabout {about_duration(plan.forecast_seconds)}, as its last verification took"
        if plan.forecast_seconds is not None
        else ""
    )
    replaced = "".join(f"\nreplaces {name}, which is there now" for name in plan.replaces)
    return (
        f"point {plan.point.id} of {plan.point.time:%Y-%m-%d %H:%M:%S} UTC{reasons}\n"
        f"{about_size(plan.restore_bytes)} to restore; changes of the last "
        f"{about_duration(plan.loss_seconds)} are not in it{forecast}{replaced}"
    )
