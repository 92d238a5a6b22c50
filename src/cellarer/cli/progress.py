"""Progress on standard error: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from cellarer.domain.quantity import about_duration, about_size
from cellarer.ports import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EVERY_SECONDS = 60.0


class PhaseProgress(Progress, Protocol):
    """Progress that can be put away, wherever the work has stopped."""

    def close(self) -> None:
        """Leaves the terminal as it was; no error when there was nothing to put away."""


def progress_for(json_output: bool) -> PhaseProgress:
    """A bar where a person looks on, else lines; with `--json` a script does."""
    if sys.stderr.isatty() and not json_output:
        return BarProgress(sys.stderr)
    return LineProgress(sys.stderr, time.monotonic)


@dataclass
class _Phase:
    title: str
    total_bytes: int | None
    began_seconds: float
    said_seconds: float
    done_bytes: int = 0

    def summary(self, now_seconds: float) -> str:
        """What a finished phase leaves on the screen."""
        seconds = now_seconds - self.began_seconds
        if not self.done_bytes:
            return f"{self.title}: done in {about_duration(seconds)}"
        rate = f", {about_size(self.done_bytes / seconds)}/s" if seconds > 0 else ""
        return f"{self.title}: {about_size(self.done_bytes)} in {about_duration(seconds)}{rate}"

    def state(self, now_seconds: float) -> str:
        """How far it has come."""
        seconds = now_seconds - self.began_seconds
        rate = self.done_bytes / seconds if seconds > 0 else 0.0
        parts = [about_size(self.done_bytes)]
        if self.total_bytes:
            share = min(self.done_bytes / self.total_bytes, 1.0)
            parts = [f"{parts[0]} of {about_size(self.total_bytes)} ({share:.0%})"]
        if rate:
            parts.append(f"{about_size(rate)}/s")
        if rate and self.total_bytes and self.total_bytes > self.done_bytes:
            parts.append(f"{about_duration((self.total_bytes - self.done_bytes) / rate)} left")
        return f"{self.title}: {', '.join(parts)}"


class LineProgress:
    """A line when a phase starts and ends, and at most one a minute between."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._phases: list[_Phase] = []
        self._lock = threading.Lock()

    def begin(self, title: str, total_bytes: int | None) -> None:
        """A phase starts, perhaps within another."""
        with self._lock:
            now = self._clock()
            self._phases.append(_Phase(title, total_bytes, now, now))
            size = f", {about_size(total_bytes)}" if total_bytes else ""
            self._say(f"{title}: started{size}")

    def advance(self, read_bytes: int) -> None:
        """So many more bytes of the innermost phase."""
        with self._lock:
            if not self._phases:
                return
            phase, now = self._phases[-1], self._clock()
            phase.done_bytes += read_bytes
            if now - phase.said_seconds >= LINE_EVERY_SECONDS:
                phase.said_seconds = now
                self._say(phase.state(now))

    def note(self, text: str) -> None:
        """A line of its own."""
        with self._lock:
            self._say(text)

    def end(self) -> None:
        """The innermost phase is over."""
        with self._lock:
            if self._phases:
                self._say(self._phases.pop().summary(self._clock()))

    def abandon(self) -> None:
        """The innermost phase broke off."""
        with self._lock:
            del self._phases[-1:]

    def close(self) -> None:
        """Forgets phases that did not come to their end."""
        with self._lock:
            self._phases.clear()

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class BarProgress:
    """A bar for each phase, with rate and time left; a finished one leaves a line."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bars: RichProgress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream, highlight=False),
            transient=True,
        )
        self._phases: list[tuple[_Phase, TaskID]] = []
        self._lock = threading.Lock()

    def begin(self, title: str, total_bytes: int | None) -> None:
        """A phase starts, perhaps within another."""
        with self._lock:
            now = time.monotonic()
            task = self._bars.add_task(title, total=total_bytes)
            self._phases.append((_Phase(title, total_bytes, now, now), task))
            self._bars.start()

    def advance(self, read_bytes: int) -> None:
        """So many more bytes of the innermost phase."""
        with self._lock:
            if self._phases:
                phase, task = self._phases[-1]
                phase.done_bytes += read_bytes
                self._bars.advance(task, read_bytes)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        """The innermost phase is over; its bar gives way to a line."""
        with self._lock:
            if phase := self._taken_away():
                self.note(phase.summary(time.monotonic()))

    def abandon(self) -> None:
        """The innermost phase broke off; its bar goes."""
        with self._lock:
            self._taken_away()

    def close(self) -> None:
        """Takes all bars away."""
        with self._lock:
            for _, task in self._phases:
                self._bars.remove_task(task)
            self._phases.clear()
            self._bars.stop()

    def _taken_away(self) -> _Phase | None:
        if not self._phases:
            return None
        phase, task = self._phases.pop()
        self._bars.remove_task(task)
        if not self._phases:
            self._bars.stop()
        return phase
