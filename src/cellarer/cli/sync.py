"""`cellarer sync`: bring replicas that were away up to date."""

from __future__ import annotations

from cellarer.cli.frame import Session, command
from cellarer.cli.locks import lock_document, lock_lines
from cellarer.cli.render import table
from cellarer.errors import CellarerError, DamagedData


@command("sync")
def sync(session: Session) -> int:
    """Copy to each replica what it lacks of the others.

    Exit code 4 if one is still behind, 6 if that is because of damage.
    """
    from cellarer import bootstrap
    from cellarer.domain.quantity import about_size
    from cellarer.flows.immutability import DAILY, keep_locked
    from cellarer.flows.sync import synchronise

    replicas, vault = bootstrap.open_for_sync(session.config)
    outcomes = synchronise(replicas, vault, session.progress, bootstrap.now)
    locks = (
        keep_locked(vault, bootstrap.now, session.progress, unless_seen_within=DAILY)
        if vault
        else {}
    )
    document = {
        "replicas": {
            name: {
                "copied_objects": outcome.copied_objects,
                "copied_bytes": outcome.copied_bytes,
                "behind": outcome.problem is not None,
                "problem": str(outcome.problem) if outcome.problem else "",
                "failed": {key: str(error) for key, error in outcome.failed.items()},
                "withheld": outcome.withheld,
                "immutability": lock_document(locks[name]) if name in locks else None,
            }
            for name, outcome in outcomes.items()
        }
    }
    rows = [
        [
            name,
            str(outcome.copied_objects),
            about_size(outcome.copied_bytes),
            f"behind: {outcome.problem}" if outcome.problem else "up to date",
        ]
        for name, outcome in outcomes.items()
    ]
    columns = ["replica", "objects copied", "bytes copied", "state"]
    problems = [outcome.problem for outcome in outcomes.values() if outcome.problem]
    problems += [locked.problem for locked in locks.values() if locked.problem]

    def text() -> str:
        overview = table(columns, rows, right={"objects copied", "bytes copied"})
        failed = [
            f"{name}: not copied: {error}"
            for name, outcome in outcomes.items()
            for error in outcome.failed.values()
        ]
        locked = [f"{name}:\n" + "\n".join(lock_lines(each)) for name, each in locks.items()]
        hints = sorted({problem.hint for problem in problems if problem.hint})
        return "\n".join([overview, *failed, *locked, *(f"hint: {hint}" for hint in hints)])

    session.emit(document, text)
    return max((exit_code(problem) for problem in problems), default=0)


def exit_code(problem: CellarerError) -> int:
    """6 for damage, else 4: a replica that is behind is one that cannot be counted upon."""
    return problem.exit_code if isinstance(problem, DamagedData) else 4
