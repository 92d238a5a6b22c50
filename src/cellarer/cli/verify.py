"""`cellarer verify`: restore points in a sandbox and prove them."""

from __future__ import annotations

from collections.abc import Mapping

import click

from cellarer.cli.frame import Session, command
from cellarer.domain.snapshot import ProofRecord
from cellarer.errors import CellarerError

LEVELS = ("scrubbed", "restored", "proven")


@command("verify")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--point", metavar="ID", help="This point instead of the newest ones.")
@click.option(
    "--level", type=click.Choice(LEVELS), default="proven", show_default=True, help="How far."
)
def verify(session: Session, sources: tuple[str, ...], point: str | None, level: str) -> int:
    """Verify the newest point of each source, or one point, and write the proof to the vault.

    Exit code 3 where a check failed, 6 where stored data is damaged.
    """
    from cellarer import bootstrap
    from cellarer.domain.snapshot import Proof
    from cellarer.flows import verify as flow
    from cellarer.flows.points import list_points, refuse_damaged

    vault = bootstrap.open_vault(session.config, reading=True)
    points = list_points(vault)
    refuse_damaged(vault, points, point or "")
    chosen = flow.choose(points, sources, point)
    wanted = Proof[level.upper()]
    records: list[ProofRecord] = []
    errors: dict[str, CellarerError] = {}
    for each in chosen:
        try:
            prover = (
                bootstrap.open_prover(session.config, vault, each.source, each.kind)
                if wanted > Proof.SCRUBBED
                else None
            )
            records.append(
                flow.verify(vault, each, wanted, prover, session.progress, bootstrap.now)
            )
        except CellarerError as error:
            # What was found of the others must be said all the same.
            if len(chosen) == 1:
                raise
            errors[each.source] = error
    document = {
        "results": [_document(record) for record in records],
        "errors": {name: error.as_json() for name, error in errors.items()},
    }
    session.emit(document, lambda: _text(records, errors))
    if any(flow.damaged(record) for record in records):
        return 6
    if errors:
        return max(error.exit_code for error in errors.values())
    return 0 if all(record.passed for record in records) else 3


def _document(record: ProofRecord) -> dict[str, object]:
    return {
        "point": record.point,
        "source": record.source,
        "proof": record.proof,
        "passed": record.passed,
        "time": record.time,
        "seconds": record.seconds,
        "loss_seconds": record.loss_seconds,
        "checks": record.checks,
    }


def _text(records: list[ProofRecord], errors: Mapping[str, CellarerError]) -> str:
    from cellarer.domain.quantity import about_duration

    lines = []
    for record in records:
        failed = [check for check in record.checks if not check.passed]
        for check in failed:
            lines.append(click.style("failed ", fg="red") + check.name)
            lines.append(f"       expected: {check.expected}")
            lines.append(f"       found:    {check.found}")
        verdict = click.style(record.proof.word, fg="green" if record.passed else "red", bold=True)
        lines.append(
            f"{record.source} {record.point}: {verdict}, "
            f"{len(record.checks) - len(failed)} of {len(record.checks)} checks passed "
            f"in {about_duration(record.seconds)}"
        )
        if record.loss_seconds is not None:
            lines.append(f"       lost would be {about_duration(record.loss_seconds)} of changes")
    for source, error in errors.items():
        lines.append(click.style("error: ", fg="red", bold=True) + f"{source}: {error}")
        lines += [f"hint: {error.hint}"] if error.hint else []
    return "\n".join(lines)
