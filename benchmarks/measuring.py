"""What all benchmarks share: whole processes measured from outside, and medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# An installed program has its bytecode: Python may write it here as well, whatever it was told.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@dataclass(frozen=True)
class Measured:
    """One run of one contender. Sizes in bytes."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    stored_bytes: int


def measure(script: str, place: Path, environment: Mapping[str, str]) -> Measured:
    """Run a shell script and account for it and its children; `place` holds what it stores."""
    before = size_of(place)
    started = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"failed: {script}\n{errors.decode(errors='replace')[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(wall, cpu, usage.ru_maxrss * 1024, size_of(place) - before)


def size_of(place: Path) -> int:
    """The bytes of a file or of all files below a directory."""
    if place.is_file():
        return place.stat().st_size
    return sum(f.stat().st_size for f in place.rglob("*") if f.is_file())


def middle(numbers: list[float] | list[int]) -> float:
    """The median."""
    return statistics.median(numbers)
