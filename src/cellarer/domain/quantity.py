"""Durations and sizes as people write them: `"15m"`, `"1h30m"`, `"64MB"`, `"1GiB"`.

`parse_…` and `format_…` are exact inverses of each other; `about_…` rounds for a reader.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

_DURATION_MILLISECONDS = {
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
_SIZE_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "PiB": 2**50,
}
_SIZE_UNIT_BY_LOWER_CASE = {unit.lower(): unit for unit in _SIZE_BYTES}

DURATION_PATTERN = r"^([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?([kKMGTP]i?)?B$"

_LONGEST_NUMBER = 18
"""Digits beyond this overflow a `timedelta`, and no store is that large."""


def parse_duration(text: str) -> timedelta:
    """`"1h30m"` as a time span: weeks, days, hours, minutes, seconds, milliseconds, in this order.

    Raises `ValueError` with a message for people. A zero span is refused: nothing can happen
    every zero seconds.
    """
    parts = re.findall(r"([0-9]+)([a-z]+)", text) if re.fullmatch(DURATION_PATTERN, text) else []
    if not parts or any(len(number) > _LONGEST_NUMBER for number, _ in parts):
        raise ValueError(f'"{text}" is not a duration; write for example "15m", "6h" or "30d"')
    milliseconds = sum(int(number) * _DURATION_MILLISECONDS[unit] for number, unit in parts)
    if milliseconds == 0:
        raise ValueError(f'"{text}" is no time at all; a duration is longer than zero')
    try:
        return timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise ValueError(f'"{text}" is longer than any calendar') from None


def format_duration(span: timedelta) -> str:
    """The shortest text that `parse_duration` reads as this very span.

    Takes whole milliseconds above zero, which is all that `parse_duration` can return.
    Weeks are written as days, as people do.
    """
    milliseconds = span // timedelta(milliseconds=1)
    text = ""
    for unit in ("d", "h", "m", "s", "ms"):
        count, milliseconds = divmod(milliseconds, _DURATION_MILLISECONDS[unit])
        text += f"{count}{unit}" if count else ""
    return text


def about_duration(seconds: float) -> str:
    """A span for a reader, at most two units: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, unit_seconds, lower, lower_seconds in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= unit_seconds:
            count, rest = divmod(whole, unit_seconds)
            lower_count = rest // lower_seconds
            return f"{count} {unit} {lower_count} {lower}" if lower_count else f"{count} {unit}"
    return f"{whole} s"


def parse_size(text: str) -> int:
    """`"64MB"` as bytes. `kB` to `PB` count in 1000s, `KiB` to `PiB` in 1024s.

    Raises `ValueError` with a message for people, also for a size that is no whole byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    unit = _SIZE_UNIT_BY_LOWER_CASE.get(match.group(2).lower()) if match else None
    if match is None or unit is None or len(match.group(1)) > _LONGEST_NUMBER:
        raise ValueError(f'"{text}" is not a size; write for example "64MB" or "1GiB"')
    size_bytes = Fraction(match.group(1)) * _SIZE_BYTES[unit]
    if size_bytes.denominator != 1:
        raise ValueError(f'"{text}" is not a whole number of bytes')
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads as this very number of bytes."""
    exact = [
        f"{size_bytes // factor}{unit}"
        for unit, factor in _SIZE_BYTES.items()
        if size_bytes % factor == 0 and (size_bytes or unit == "B")
    ]
    return min(exact, key=len)


def about_size(size_bytes: float) -> str:
    """A size for a reader, three figures in units of 1000: `412 MB`, `1.25 GB`."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{_three_figures(size)} {unit}"
        size /= 1000
    return f"{_three_figures(size)} PB"


def _three_figures(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"
