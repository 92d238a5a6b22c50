"""`cellarer sync`: bring replicas that were away up to date."""

from __future__ import annotations

from cellarer.cli.frame import Session, command
from cellarer.cli.render import table


@command("sync")
def sync(session: Session) -> int:
    """Copy to each replica what it lacks of the others. Exit code 4 if one is still behind."""
    from cellarer import bootstrap
    from cellarer.domain.quantity import about_size
    from cellarer.vault.catchup import catch_up

    replicas = bootstrap.open_replicas(session.config)
    session.progress.begin("bringing replicas up to date", None)
    outcomes = catch_up(replicas, session.progress.advance)
    session.progress.end()
    document = {
        "replicas": {
            name: {
                "copied_objects": outcome.copied_objects,
                "copied_bytes": outcome.copied_bytes,
                "behind": outcome.problem is not None,
                "problem": str(outcome.problem) if outcome.problem else "",
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
    session.emit(document, lambda: table(columns, rows, right={"objects copied", "bytes copied"}))
    return 4 if any(outcome.problem for outcome in outcomes.values()) else 0
