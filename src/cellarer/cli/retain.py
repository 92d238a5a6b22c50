"""`cellarer retain`: apply the retention and collect what nobody needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.locks import lock_document, lock_lines
from cellarer.cli.render import iso_time, table

if TYPE_CHECKING:
    from cellarer.flows.retain import Retained


@command("retain")
@click.option("--dry-run", is_flag=True, help="Only show what would be kept and what would go.")
def retain(session: Session, dry_run: bool) -> int:
    """Give up the restore points that no rule wants, and delete what nobody needs any more."""
    from cellarer import bootstrap
    from cellarer.flows import retain as flow

    vault = bootstrap.open_vault(session.config)
    rules = bootstrap.retention(session.config)
    done = flow.retain(vault, rules, bootstrap.now, session.progress, dry_run=dry_run)
    session.emit(_document(done, dry_run), lambda: _text(done, dry_run))
    return flow.worst(done)


def _document(done: Retained, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "keep": [
            {"point": d.point.id, "source": d.point.source, "reasons": d.reasons} for d in done.keep
        ],
        "remove": [
            {"point": d.point.id, "source": d.point.source, "reasons": d.reasons}
            for d in done.remove
        ],
        "condemned_bytes": done.condemned_bytes,
        "swept_bytes": done.swept_bytes,
        "replicas": {
            name: {
                **{f.name: getattr(each, f.name) for f in dataclasses.fields(each)},
                "problem": each.problem.as_json() if each.problem else None,
                "immutability": lock_document(done.locks[name]) if name in done.locks else None,
            }
            for name, each in done.replicas.items()
        },
    }


def _text(done: Retained, dry_run: bool) -> str:
    from cellarer.domain.quantity import about_size

    rows = [
        [verb, d.point.id, d.point.source, iso_time(d.point.time)[:16], "; ".join(d.reasons)]
        for verb, decisions in (("keep", done.keep), ("remove", done.remove))
        for d in decisions
    ]
    lines = [table(["", "point", "source", "time (UTC)", "why"], rows)] if rows else ["no points"]
    for name, each in done.replicas.items():
        if dry_run:
            told = f"{about_size(each.condemned_bytes)} would go"
        else:
            told = f"{about_size(each.swept_bytes)} in {each.swept_objects} objects deleted"
        lines.append(f"{name}: {told}")
        if each.grows_only:
            lines.append("  grows only: nothing is ever deleted here")
        if each.locked_until:
            kept = about_size(each.locked_bytes)
            lines.append(
                f"  {kept} more are locked by the store until {iso_time(each.locked_until)}"
            )
        if each.waiting:
            lines.append(f"  waiting for {', '.join(each.waiting)}: run this again when it ended")
        if each.problem:
            lines.append(f"  {each.problem}\n  hint: {each.problem.hint}")
        if name in done.locks:
            lines += lock_lines(done.locks[name])
    return "\n".join(lines)
