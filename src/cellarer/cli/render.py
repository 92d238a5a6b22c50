"""What commands print: tables and JSON on standard output, errors on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

import click

from cellarer.errors import CellarerError


def write(text: str) -> None:
    """A line, or several, on standard output."""
    click.echo(text)


def write_blocks(blocks: Iterator[bytes]) -> None:
    """Bytes on standard output, as they are."""
    for block in blocks:
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def write_document(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command."""
    write(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """A value as JSON has it.

    Times become ISO 8601 with `Z`, spans seconds, enumerations their name in lower case,
    dataclasses objects; a number that is none becomes null.
    """
    match value:
        case Enum():
            return value.name.lower()
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            return iso_time(value)
        case timedelta():
            return value.total_seconds()
        case PurePath():
            return str(value)
        case Mapping():
            return {str(key): plain(member) for key, member in value.items()}
        case list() | tuple():
            return [plain(member) for member in value]
        case AbstractSet():
            return sorted(plain(member) for member in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    raise TypeError(f"no JSON for a {type(value).__name__}")


def iso_time(time: datetime) -> str:
    """ISO 8601 in UTC with `Z`, to the full precision: `--at` must find the very point."""
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> str:
    """Aligned columns under a heading; those named in `right` hold numbers."""
    lines = [[column.upper() for column in columns], *rows]
    widths = [max(_width(line[index]) for line in lines) for index in range(len(columns))]
    aligned = []
    for line in lines:
        cells = []
        for column, cell, width in zip(columns, line, widths, strict=True):
            padding = " " * (width - _width(cell))
            cells.append(padding + cell if column in right else cell + padding)
        aligned.append("  ".join(cells).rstrip())
    return "\n".join(aligned)


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide


def write_error(error: CellarerError, as_json: bool) -> None:
    """What happened, what is known, what to do next.

    For people on standard error; for scripts as the one JSON document on standard output.
    """
    if as_json:
        write_document({"error": error.as_json()})
        return
    click.echo(click.style("error: ", fg="red", bold=True) + error.message, err=True)
    for line in error.detail.splitlines():
        click.echo(f"  {line}", err=True)
    if error.hint:
        click.echo(click.style("hint: ", fg="cyan", bold=True) + error.hint, err=True)
