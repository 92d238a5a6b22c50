"""Look at everything that a backup or a recovery will need, before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cellarer.domain.finding import Finding
from cellarer.domain.room import room
from cellarer.domain.snapshot import RestorePoint
from cellarer.errors import CellarerError
from cellarer.ports import bounded
from cellarer.vault.vault import Vault

Examination = tuple[str, Callable[[], Iterable[Finding]]]
"""What is looked at, and the looking."""


def examine(examinations: Iterable[Examination]) -> list[Finding]:
    """Every finding, errors first. An examination that cannot be made is a finding itself."""
    findings: list[Finding] = []
    for subject, look in examinations:
        try:
            findings.extend(look())
        except CellarerError as error:
            findings.append(Finding.of(error, subject))
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def look_for_room(vault: Vault, points: Sequence[RestorePoint]) -> list[Finding]:
    """Which replicas are full, or nearly; `points` are newest first. Buckets do not say."""
    answers = vault.replicas.each(
        lambda store: disk.free_bytes() if (disk := bounded(store)) else None
    )
    return [
        finding
        for name, free_bytes in answers.items()
        if isinstance(free_bytes, int)
        for finding in room(f"vault.replicas.{name}", free_bytes, points)
    ]
