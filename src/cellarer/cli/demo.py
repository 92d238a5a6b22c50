"""`cellarer demo`: the whole story on this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cellarer.cli.frame import Session, command
from cellarer.errors import UsageError

if TYPE_CHECKING:
    from cellarer.demo.story import Outcome


@command("demo")
@click.option("--directory", metavar="DIR", help="Where; by default a new one in /tmp.")
@click.option("--size", default="200MB", show_default=True, help="Of the sample database.")
@click.option("--remove", is_flag=True, help="Remove everything at the end.")
@click.option("--clean", metavar="DIR", help="Only remove what an earlier demo left in DIR.")
@click.option("--serve", is_flag=True, hidden=True)
def demo(
    session: Session, directory: str | None, size: str, remove: bool, clean: str | None, serve: bool
) -> int:
    """Make a product, back it up, destroy it, recover it and prove it. Exit code 0 if proven."""
    from cellarer.demo import story
    from cellarer.demo.teller import Teller
    from cellarer.domain.quantity import parse_size

    if serve:
        raise UsageError("the console is not built yet", hint="leave --serve out")
    if clean is not None:
        story.remove(Path(clean))
        session.emit({"removed": clean}, lambda: f"removed {clean}")
        return 0
    try:
        size_bytes = parse_size(size)
    except ValueError as error:
        raise UsageError(f"--size {size}: {error}", hint="write it like 200MB") from None
    place = Path(directory or tempfile.mkdtemp(prefix="cellarer-demo-")).absolute()
    place.chmod(0o711) if directory is None else None
    story.claim(place)
    try:
        outcome = story.tell(place, size_bytes, Teller(session.progress))
    except BaseException:
        if not remove:
            session.progress.note(f"what it made is left in {place}")
        else:
            story.remove(place)
        raise
    if remove:
        story.remove(place)
    session.emit(_document(outcome, remove), lambda: _text(outcome, remove))
    return 0 if proven(outcome) else 3


def proven(outcome: Outcome) -> bool:
    """Whether the story ended well."""
    return outcome.proof == "proven" and not outcome.failed_checks and outcome.lost_rows == 0


def _document(outcome: Outcome, removed: bool) -> dict[str, object]:
    return {
        "proof": outcome.proof,
        "lost_rows": outcome.lost_rows,
        "rto_seconds": outcome.rto_seconds,
        "rpo_seconds": outcome.rpo_seconds,
        "source_bytes": outcome.source_bytes,
        "first_stored_bytes": outcome.first.stored_bytes,
        "second_stored_bytes": outcome.second.stored_bytes,
        "changed_rows": outcome.changed_rows,
        "checks": outcome.checks,
        "failed_checks": outcome.failed_checks,
        "seconds": outcome.seconds,
        "directory": None if removed else outcome.directory,
    }


def _text(outcome: Outcome, removed: bool) -> str:
    from cellarer.domain.quantity import about_duration, about_size

    good = proven(outcome)
    verdict = click.style(
        outcome.proof.upper() if good else "NOT PROVEN", fg="green" if good else "red", bold=True
    )
    stored = outcome.first.stored_bytes + outcome.second.stored_bytes
    lines = [
        f"{verdict}  {outcome.checks - len(outcome.failed_checks)} of {outcome.checks} checks: "
        "every table equal to the source at the moment of the snapshot",
        f"  recovery time (RTO)    {about_duration(outcome.rto_seconds)} from SIGKILL to the first "
        "query answered",
        f"  data lost (RPO)        {about_duration(outcome.rpo_seconds)} since the last snapshot, "
        f"{outcome.lost_rows} rows lost",
        f"  stored                 {about_size(stored)} on each of 2 replicas for 2 points of "
        f"{about_size(outcome.source_bytes)}",
        f"  the whole story        {about_duration(outcome.seconds)}",
    ]
    lines += [f"  failed: {name}" for name in outcome.failed_checks]
    if not removed:
        program = (
            "cellarer" if shutil.which("cellarer") else Path(sys.executable).with_name("cellarer")
        )
        config = outcome.directory / "cellarer.toml"
        lines += [
            "",
            "Where to look next (the S3 server is gone now, the local replica is enough):",
            f"  {program} --config {config} points",
            f"  {program} --config {config} show latest",
            f"  {program} --config {config} restore database --to {outcome.directory}/dump",
            f"  {program} demo --clean {outcome.directory}      removes all of it",
        ]
    return "\n".join(lines)
