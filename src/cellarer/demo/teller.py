"""Tells the story as it happens: on standard error, so that standard output stays for scripts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cellarer.ports import Progress


@dataclass
class Teller:
    """Chapters and sentences, each with the time since the beginning."""

    progress: Progress
    _began: float = field(default_factory=time.monotonic)
    _chapters: int = 0

    def chapter(self, title: str) -> None:
        """A new part of the story."""
        self._chapters += 1
        self.progress.note(f"{self._chapters}. {title}")

    def say(self, sentence: str) -> None:
        """Something happened."""
        seconds = time.monotonic() - self._began
        self.progress.note(f"   {seconds:5.1f} s  {sentence}")
