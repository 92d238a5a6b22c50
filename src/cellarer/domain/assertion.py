"""A statement about the data that must hold in every restored copy of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assertion:
    """A query whose single value must equal `expect`.

    `database` may stay None where the source has one database only.
    """

    name: str
    sql: str
    expect: int | float | bool | str
    database: str | None = None
