"""`cellarer scrub`: read what is stored and look whether it is as it was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cellarer.domain.finding import Finding
    from cellarer.flows.scrub import Damage, Scrubbed
    from cellarer.vault.losses import Loss


@command("scrub")
@click.option("--replica", "replicas", multiple=True, metavar="NAME", help="Only this replica.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 100),
    default=100.0,
    metavar="PERCENT",
    help="Read this share of what is stored; 0 only compares the listings.",
)
@click.option("--limit", metavar="SIZE", help="Read no more than this of each replica.")
@click.option("--within", metavar="DURATION", help="Read no longer than this on each replica.")
@click.option("--deep", is_flag=True, help="Open what is read, with the identity.")
@click.option("--repair", is_flag=True, help="Heal from other replicas what is damaged or missing.")
def scrub(
    session: Session,
    replicas: tuple[str, ...],
    sample: float,
    limit: str | None,
    within: str | None,
    deep: bool,
    repair: bool,
) -> int:
    """Read what is stored, least recently read first, and look whether it is as it was written.

    Exit code 6 if something stays damaged or missing, 4 if a replica could not be read.
    """
    from cellarer import bootstrap
    from cellarer.flows import scrub as flow
    from cellarer.flows.history import gone
    from cellarer.flows.points import survey
    from cellarer.vault.scrub import Budget

    budget = Budget(_size(limit), _seconds(within))
    wanted = flow.Wanted(replicas, sample / 100, budget, deep, repair)
    vault = bootstrap.open_vault(session.config, reading=deep)
    found = flow.scrub(vault, wanted, session.progress, bootstrap.now)
    missed = gone(vault, survey(vault), bootstrap.seen_heads(vault))
    document = {
        "objects": sum(replica.objects for replica in found.replicas),
        "bytes": sum(replica.bytes for replica in found.replicas),
        "damaged": found.damaged,
        "missing": found.missing,
        "repaired": found.repaired,
        "lost": found.lost,
        "raised": found.raised,
        "gone": [each.message for each in missed],
        "replicas": {
            replica.name: {
                "objects": replica.objects,
                "bytes": replica.bytes,
                "round": replica.round,
                "whole": replica.whole,
                "owed": replica.owed,
                "problem": str(replica.problem) if replica.problem else "",
            }
            for replica in found.replicas
        },
    }
    session.emit(document, lambda: _text(found, missed))
    if found.remaining or missed:
        return 6
    return 4 if any(replica.problem for replica in found.replicas) else 0


def _size(text: str | None) -> int | None:
    from cellarer.domain.quantity import parse_size
    from cellarer.errors import UsageError

    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise UsageError(f"--limit: {error}", hint="such as --limit 50GB") from error


def _seconds(text: str | None) -> float | None:
    from cellarer.domain.quantity import parse_duration
    from cellarer.errors import UsageError

    try:
        return None if text is None else parse_duration(text).total_seconds()
    except ValueError as error:
        raise UsageError(f"--within: {error}", hint="such as --within 2h") from error


def _text(found: Scrubbed, gone: Sequence[Finding]) -> str:
    from cellarer.domain.quantity import about_size

    replicas = table(
        ["replica", "objects", "read", "state"],
        [
            [
                replica.name,
                str(replica.objects),
                about_size(replica.bytes),
                str(replica.problem)
                if replica.problem
                else f"round {replica.round} is over"
                if replica.whole
                else f"round {replica.round} goes on",
            ]
            for replica in found.replicas
        ],
        right={"objects", "read"},
    )
    remaining = found.remaining
    lines = [_line("damaged", damage) for damage in found.damaged if damage in remaining]
    lines += [_line("missing", damage) for damage in found.missing if damage in remaining]
    if remaining:
        lines.append(_advice(found))
    lines += [f"repaired  {damage.replica}: {damage.object}" for damage in found.repaired]
    lines += [f"scrubbed  {point}" for point in found.raised]
    lines += [line for loss in found.lost for line in _loss(loss)]
    lines += [
        f"{click.style('behind', fg='yellow')}    {replica.name} lacks {replica.owed} points, "
        "ledger entries or files of WAL: run `cellarer sync`"
        for replica in found.replicas
        if replica.owed
    ]
    for each in gone:
        lines += [f"{click.style('gone', fg='red', bold=True)}      {each.message}",
                  f"          {each.hint}"]  # fmt: skip
    if not remaining and not found.lost and not gone:
        owed = any(replica.owed for replica in found.replicas)
        told = "nothing is damaged" if owed else "nothing is damaged or missing"
        lines.append(click.style(told, fg="green"))
    return "\n".join([replicas, "", *lines])


def _loss(loss: Loss) -> list[str]:
    """A point that lost something, or that nobody without the identity can answer for."""
    if loss.paths:
        source = loss.source or "(of an unknown source)"
        return [
            f"{click.style('lost', fg='red', bold=True)}      {source} {loss.point}",
            f"          {', '.join(loss.paths)}",
            "          restore another point, and take a new backup with `cellarer backup`",
        ]
    return [
        f"{click.style('in doubt', fg='red', bold=True)}  {loss.source} {loss.point}",
        "          what it needs is whole on no replica; what of it is lost only the identity can "
        "tell:",
        f"          run `cellarer verify --point {loss.point}` where it is, and here "
        f"`cellarer backup {loss.source}`",
    ]


def _advice(found: Scrubbed) -> str:
    """What to do about damage that stays."""
    if any(damage.obstacle for damage in found.remaining):
        return "hint: see what stands in the way; docs/guides/scrub.md has a line for each"
    return "hint: `cellarer scrub --repair` heals what another replica has whole"


def _line(what: str, damage: Damage) -> str:
    told = f"{click.style(what, fg='red')}   {damage.replica}: {damage.reason}"
    told = told if damage.object in damage.reason else f"{told} ({damage.object})"
    return f"{told}\n          {damage.obstacle}" if damage.obstacle else told
