"""Connections for long reading, several of them to one and the same server."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from cellarer.postgres.conninfo import APPLICATION_NAME, parameters

# A server that vanishes without a word, as a cut network makes it, is noticed after two minutes.
_PATIENCE = {
    "connect_timeout": "15",
    "keepalives_idle": "60",
    "keepalives_interval": "10",
    "keepalives_count": "6",
}
# How to choose among servers, and an encoding of the client's own: names are read as UTF-8, and
# pg_dump writes in the encoding of each database.
_NOT_PINNED = ("target_session_attrs", "load_balance_hosts", "hostaddr", "client_encoding")


def connect(dsn: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in autocommit mode that speaks UTF-8.

    Raises `UsageError` for a malformed `dsn`, `psycopg.OperationalError` where nobody answers.
    """
    patience = dict(_PATIENCE)
    if "PGCONNECT_TIMEOUT" in os.environ:
        del patience["connect_timeout"]
    values = patience | parameters(dsn)
    values |= {"client_encoding": "UTF8", "application_name": APPLICATION_NAME}
    # Prepared statements do not survive a connection pooler.
    return psycopg.connect(make_conninfo("", **values), autocommit=True, prepare_threshold=None)


def pinned(dsn: str, connection: psycopg.Connection[Any]) -> str:
    """A dsn of the very server that `connection` reached, where the name may mean several.

    An exported snapshot is known to that server alone. The dsn holds the password in use, wherever
    it came from: never show it.
    """
    info = connection.info
    values = {
        name: value
        for name, value in (_PATIENCE | parameters(dsn)).items()
        if name not in _NOT_PINNED
    }
    values |= {"host": info.host, "port": str(info.port), "user": info.user}
    if info.hostaddr:
        values["hostaddr"] = info.hostaddr
    if info.password:
        values["password"] = info.password
    return make_conninfo("", **values | {"dbname": info.dbname})
