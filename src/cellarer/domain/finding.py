"""What `doctor` reports: one observation with a level and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One observation. `id` is stable for scripts, `subject` names the thing it is about."""

    id: str
    level: Level
    subject: str
    message: str
    hint: str = ""
