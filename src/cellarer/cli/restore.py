"""`cellarer restore`: a restore point, or a part of it, back to life."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.points import parse_moment
from cellarer.errors import UsageError

if TYPE_CHECKING:
    from cellarer.domain.recovery import RestorePlan
    from cellarer.ports import Target
    from cellarer.vault.vault import Vault

_OF_WAL = {
    "lsn": ("--lsn", None),
    "xid": ("--xid", None),
    "name": ("--name", None),
    "immediate": ("--immediate", False),
    "timeline": ("--timeline", "latest"),
    "exclusive": ("--exclusive", False),
    "tablespaces": ("--tablespace", ()),
    "delta": ("--delta", False),
    "no_recover": ("--no-recover", False),
}
"""What only recovering a base backup can do: option, and what it is where it was not given."""


tablespace_option = click.option(
    "--tablespace",
    "tablespaces",
    multiple=True,
    metavar="OLD=NEW",
    help="Puts a tablespace elsewhere, by its name or its directory; may be given several times.",
)


@command("restore")
@click.argument("source")
@click.option("--point", default="latest", show_default=True, metavar="ID", help="Which point.")
@click.option("--at", metavar="TIME", help="To this time; without WAL the newest point before it.")
@click.option("--lsn", metavar="LSN", help="To this position in the WAL.")
@click.option("--xid", metavar="XID", help="To this transaction.")
@click.option("--name", metavar="NAME", help="To this point of pg_create_restore_point().")
@click.option("--immediate", is_flag=True, help="To the end of the base backup, no further.")
@click.option(
    "--timeline",
    default="latest",
    show_default=True,
    metavar="ID",
    help="Along this timeline: latest, current (the base backup's), or a number.",
)
@click.option("--exclusive", is_flag=True, help="Stop just before what --at, --lsn or --xid names.")
@click.option(
    "--to",
    required=True,
    metavar="TARGET",
    help="A directory, postgresql://HOST/DATABASE, or pgdata:PATH for a base backup.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only these tables, such as public.wines, or files; may be given several times.",
)
@tablespace_option
@click.option("--delta", is_flag=True, help="Write only what differs from what is there.")
@click.option("--no-recover", is_flag=True, help="Only write the files.")
@click.option("--work-tree", is_flag=True, help="Of a git repository its files as well.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def restore(
    session: Session,
    /,
    source: str,
    to: str,
    only: tuple[str, ...],
    dry_run: bool,
    overwrite: bool,
    **wishes: Any,
) -> None:
    """Restore SOURCE to a database or a directory. Nothing is overwritten unasked."""
    from cellarer import bootstrap
    from cellarer.flows import restore as flow
    from cellarer.flows.repair import tell_of_damage

    bootstrap.refuse_log(session.config, source)
    choose = _recovery if to.startswith(bootstrap.PGDATA) else _snapshot
    vault, chosen, target = choose(session, source, to, wishes)
    reader = flow.open_point(vault, chosen.point.id)
    plan = flow.look(reader, chosen, target, only, overwrite)
    if dry_run:
        session.emit({"plan": _plan_document(plan), "result": None}, lambda: _plan_text(plan))
        return
    if plan.replaces:
        session.progress.note(_plan_text(plan))
    done = flow.restore(reader, plan, target, only, overwrite, session.progress)
    tell_of_damage(vault, session.progress, bootstrap.now)
    document = {"plan": _plan_document(plan), "result": done}

    def text() -> str:
        from cellarer.domain.quantity import about_duration, about_size

        # Before something was replaced it has been shown.
        shown = "" if plan.replaces else f"{_plan_text(plan)}\n"
        state = f"the state of {done.recovered_to}" if done.recovered_to else "not yet recovered"
        return (
            f"{shown}restored {about_size(done.restored_bytes)} in "
            f"{about_duration(done.seconds)}: {state}"
        )

    session.emit(document, text)


def _recovery(
    session: Session, source: str, to: str, wishes: Mapping[str, Any]
) -> tuple[Vault, RestorePlan, Target]:
    """A base backup and the way through the WAL, into a data directory."""
    from cellarer import bootstrap
    from cellarer.bootstrap import recoveries
    from cellarer.domain.recovery_target import recovery_target

    if wishes["work_tree"]:
        raise UsageError("--work-tree is for git repositories", hint="leave it out")
    directory, moved = recoveries.directory_in(to), moved_tablespaces(wishes["tablespaces"])
    wanted = recovery_target(
        at=parse_moment(wishes["at"]),
        lsn=wishes["lsn"],
        xid=wishes["xid"],
        name=wishes["name"],
        moment="immediate" if wishes["immediate"] else None,
        timeline=wishes["timeline"],
        exclusive=wishes["exclusive"],
    )
    vault = bootstrap.open_vault(session.config, reading=True)
    recovery = recoveries.plan(vault, source, wishes["point"], wanted, bootstrap.now())
    target = recoveries.open_data_directory(
        vault,
        directory,
        recovery,
        wanted,
        moved,
        session.config,
        delta=wishes["delta"],
        recovers=not wishes["no_recover"],
    )
    return vault, recovery.plan, target


def _snapshot(
    session: Session, source: str, to: str, wishes: Mapping[str, Any]
) -> tuple[Vault, RestorePlan, Target]:
    """A point as it was taken, into a database or a directory."""
    from cellarer import bootstrap
    from cellarer.flows import restore as flow

    for wish, (option, unset) in _OF_WAL.items():
        if wishes[wish] != unset:
            raise UsageError(
                f"{option} is for base backups", hint="restore one with --to pgdata:PATH"
            )
    at, point = parse_moment(wishes["at"]), wishes["point"]
    if at is not None and point != "latest":
        raise UsageError("--at and --point exclude each other", hint="give one of them")
    bootstrap.open_target(to)  # what cannot be one is told before the vault is opened
    vault = bootstrap.open_vault(session.config, reading=True)
    plan = flow.plan(vault, source, point, at, bootstrap.now())
    target = bootstrap.open_target_of(to, plan.point.kind, work_tree=wishes["work_tree"])
    return vault, plan, target


def moved_tablespaces(options: tuple[str, ...]) -> dict[str, Path]:
    """Tablespaces with their new places. Raises `UsageError`."""
    moved = {}
    for option in options:
        old, equals, new = option.partition("=")
        if not (old and equals and new):
            raise UsageError(
                f"{option} does not say what goes where", hint="write it as OLD=/NEW/DIRECTORY"
            )
        moved[old] = Path(new).absolute()
    return moved


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
