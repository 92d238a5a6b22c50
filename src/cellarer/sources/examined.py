"""What sources say when `doctor` looks at them."""

from __future__ import annotations

from collections.abc import Iterable

from cellarer.domain.finding import Finding, Level
from cellarer.errors import CellarerError


def source_finding(source: str, what: str, level: Level, message: str, hint: str = "") -> Finding:
    """A finding of the source of this name."""
    return Finding(f"source-{what}", level, f"sources.{source}", message, hint)


def examined(source: str, findings: Iterable[Finding]) -> list[Finding]:
    """All findings of a source; what ended the looking, if anything did, is the last of them."""
    found: list[Finding] = []
    try:
        found.extend(findings)
    except CellarerError as error:
        found.append(source_finding(source, error.kind, "error", str(error), error.hint))
    return found
