"""Runs the user's own assertions in a restored database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation

import psycopg

from cellarer.domain.assertion import Assertion
from cellarer.domain.snapshot import Check
from cellarer.targets.database import connect
from cellarer.targets.host_faults import is_of_the_host

_TIMEOUT_MILLISECONDS = 300_000
_CHARACTERS = 200


def check_assertions(
    assertions: Iterable[Assertion], databases: Iterable[str], dsn: Callable[[str], str]
) -> Iterator[Check]:
    """One check per assertion, named `assertion NAME`. An error of the query fails its check.

    Raises `psycopg.Error` where the server lacks room for it, or is gone.
    """
    names = list(databases)
    for assertion in assertions:
        name, expected = f"assertion {assertion.name}", _shown(assertion.expect)
        if assertion.database is None and len(names) > 1:
            problem = f"it names no database, and the point has {', '.join(names)}"
            yield Check(name, False, expected, problem)
            continue
        database = assertion.database or names[0]
        if database not in names:
            problem = f"the point has no database {database}, only {', '.join(names)}"
            yield Check(name, False, expected, problem)
            continue
        passed, found = _run(assertion, dsn(database))
        yield Check(name, passed, expected, found)


def _run(assertion: Assertion, dsn: str) -> tuple[bool, str]:
    with connect(dsn) as connection:
        connection.execute(f"SET statement_timeout = {_TIMEOUT_MILLISECONDS}")
        connection.execute("SET default_transaction_read_only = on")
        try:
            # In bytes, so that percent signs and braces of the query mean nothing to psycopg.
            cursor = connection.execute(assertion.sql.encode())
            rows = cursor.fetchmany(2) if cursor.description else []
        except psycopg.Error as error:
            if is_of_the_host(error):
                raise
            return False, f"error: {error.diag.message_primary or error}"
        if len(rows) != 1 or len(rows[0]) != 1:
            columns = len(cursor.description or ())
            count = "no rows" if not rows else f"{cursor.rowcount} rows of {columns} columns"
            return False, f"{count} instead of a single value"
        return _equal(assertion.expect, rows[0][0]), _shown(rows[0][0])


def _equal(expected: object, found: object) -> bool:
    """Numbers are equal by value, whatever type the query gives them; booleans only to booleans."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float):
        if not isinstance(found, int | float | Decimal):
            return False
        try:
            return Decimal(str(expected)) == Decimal(str(found))
        except InvalidOperation:
            return False
    return found is not None and expected == str(found)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "..."
