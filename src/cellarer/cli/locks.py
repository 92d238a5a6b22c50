"""How commands tell what is locked, and until when."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cellarer.cli.render import iso_time

if TYPE_CHECKING:
    from cellarer.vault.locks import Locked


def lock_document(locked: Locked) -> dict[str, Any]:
    """What a run found and did on one replica, as scripts read it."""
    fields = {f.name: getattr(locked, f.name) for f in dataclasses.fields(locked)}
    period = fields.pop("period")
    return fields | {
        "period_seconds": period.total_seconds(),
        "problem": locked.problem.as_json() if locked.problem else None,
    }


def lock_lines(locked: Locked) -> list[str]:
    """The same for people."""
    lines = []
    if locked.extended_objects:
        lines.append(f"  {locked.extended_objects} locks extended")
    if locked.locked_until:
        told = f"{locked.looked_objects} of the {locked.needed_objects} objects that are needed"
        lines.append(f"  {told} cannot be deleted before {iso_time(locked.locked_until)}")
    if locked.problem:
        lines.append(f"  {locked.problem}\n  hint: {locked.problem.hint}")
    return lines
