"""Connection parameters in the forms that PostgreSQL's programs and psycopg want."""

from __future__ import annotations

import os
import re

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cellarer.errors import UsageError

APPLICATION_NAME = "cellarer"

# Parameters of libpq that are secret and that it takes from no environment variable.
_SECRETS_WITHOUT_VARIABLE = (
    "sslpassword",
    "scram_client_key",
    "scram_server_key",
    "oauth_client_secret",
)

# libpq ends the user's part of a URI at the first @, and finds none where a slash comes before it.
# The rest of a password with such a sign would be taken for a host or a database, and be shown.
_URI_WITH_TORN_PASSWORD = re.compile(r"postgres(?:ql)?://(?:[^/?]*/[^?]*@|.*@.*@)", re.DOTALL)
_PORTS = re.compile(r"[0-9,]*")


def parameters(dsn: str) -> dict[str, str]:
    """The parameters that `dsn` (a URI or keywords) sets. Raises `UsageError`."""
    try:
        values = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    except (psycopg.ProgrammingError, UnicodeDecodeError):
        # The message of libpq may quote the string, and with it a password. What is written with
        # % may be no text.
        raise _unreadable() from None
    if _URI_WITH_TORN_PASSWORD.match(dsn) or not _PORTS.fullmatch(values.get("port", "")):
        raise _unreadable()
    return values


def for_database(dsn: str, database: str) -> str:
    """The same server, another database."""
    return make_conninfo(**parameters(dsn) | {"dbname": database})


def for_programs(dsn: str) -> tuple[str, dict[str, str]]:
    """A conninfo for the command line of a program and the environment to run it in.

    A password stands in the environment only, because everyone can read a command line.
    """
    values = parameters(dsn)
    refused = [name for name in _SECRETS_WITHOUT_VARIABLE if name in values]
    if refused:
        raise UsageError(
            f"{refused[0]} cannot be handed to PostgreSQL's programs in secret",
            hint="Use a password, a passfile, or a client key file without a passphrase.",
        )
    environment = dict(os.environ) | {"PGAPPNAME": APPLICATION_NAME, "LC_ALL": "C"}
    # It would change the encoding of what they write.
    environment.pop("PGCLIENTENCODING", None)
    if password := values.pop("password", None):
        environment["PGPASSWORD"] = password
    return make_conninfo(**values), environment


def described(dsn: str) -> str:
    """Where `dsn` leads, without any secret; for messages."""
    values = parameters(dsn)
    place = values.get("host") or values.get("hostaddr") or "the local socket"
    port = f":{values['port']}" if "port" in values and not place.startswith("/") else ""
    return f"{place}{port}"


def _unreadable() -> UsageError:
    return UsageError(
        "the address of the PostgreSQL server is malformed",
        detail="it is not repeated here, because it may hold a password",
        hint="Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of"
        " user and password percent-encoded: %40 for an @, %2F for a slash, %3A for a colon.",
    )
