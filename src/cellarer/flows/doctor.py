"""Look at everything that a backup or a recovery will need, before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cellarer.domain.finding import Finding
from cellarer.errors import CellarerError

Examination = tuple[str, Callable[[], Iterable[Finding]]]
"""What is looked at, and the looking."""


def examine(examinations: Iterable[Examination]) -> list[Finding]:
    """Every finding, errors first. An examination that cannot be made is a finding itself."""
    findings: list[Finding] = []
    for subject, look in examinations:
        try:
            findings.extend(look())
        except CellarerError as error:
            findings.append(Finding(error.kind, "error", subject, str(error), error.hint))
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.level])
