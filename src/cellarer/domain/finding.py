"""What `doctor` reports: one observation with a level and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cellarer.errors import CellarerError

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One observation. `id` is stable for scripts, `subject` names the thing it is about."""

    id: str
    level: Level
    subject: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: CellarerError, subject: str) -> Finding:
        """That something cannot be looked at, or done, as its error says."""
        return cls(error.kind, "error", subject, str(error), error.hint)
