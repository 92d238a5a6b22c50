"""What to do about the errors of PostgreSQL that operators meet."""

from __future__ import annotations

import re
from typing import NamedTuple


class Advice(NamedTuple):
    """The next step, and whether trying again may help by itself."""

    hint: str
    retryable: bool = False


# The first pattern that fits counts.
_ADVICE: tuple[tuple[str, Advice], ...] = (
    (
        "password authentication failed",
        Advice("Check the user and the password of the connection string."),
    ),
    (
        "no password supplied",
        Advice("The server wants a password: give the connection string as a secret that has it."),
    ),
    (
        "no pg_hba.conf entry|(Peer|Ident|GSSAPI|certificate) authentication failed",
        Advice("Let this user in from this host: in pg_hba.conf of the server."),
    ),
    ('database ".*" does not exist', Advice("Check the database's name.")),
    (
        "is not currently accepting connections",
        Advice("Open the database: ALTER DATABASE ... ALLOW_CONNECTIONS true."),
    ),
    ('role ".*" does not exist', Advice("Check the user of the connection string.")),
    (
        'permission denied for database|"CONNECT" privilege',
        Advice("As the database's owner: GRANT CONNECT ON DATABASE ... TO the user."),
    ),
    (
        "permission denied for large object",
        Advice(
            "Large objects are readable for their owner only: connect as superuser, or let a"
            " superuser run ALTER ROLE ... SET lo_compat_privileges = on for the user."
        ),
    ),
    (
        "permission denied|must be owner",
        Advice("As superuser: GRANT pg_read_all_data TO the user of the connection string."),
    ),
    (
        "row-level security",
        Advice("As superuser: ALTER ROLE ... BYPASSRLS for the user, or connect as the owner."),
    ),
    (
        # pg_dump's limit on waiting for locks is one on statements.
        "lock timeout|could not obtain lock|due to statement timeout",
        Advice("Another session holds a strong lock, such as a migration: wait for its end.", True),
    ),
    (
        "max_locks_per_transaction",
        Advice("Raise max_locks_per_transaction of the server: a dump locks every table."),
    ),
    (
        "conflict with recovery",
        Advice(
            "The standby gave up the reading to go on replaying: set hot_standby_feedback = on or"
            " raise max_standby_streaming_delay there, or read from the primary.",
            True,
        ),
    ),
    (
        "server version mismatch",
        Advice("Install the client programs of the server's version or a newer one."),
    ),
    (
        "too many (clients|connections)|remaining connection slots",
        Advice("Raise max_connections, or run when fewer sessions are open.", True),
    ),
    (
        "invalid page|could not read block|missing chunk number|data is corrupt|checksum",
        Advice(
            "The server's own files are damaged: keep every proven restore point, and see"
            " pg_amcheck and the server's log."
        ),
    ),
    (
        "server closed the connection|terminating connection|connection .*(lost|closed|reset)"
        "|no connection to the server|shutting down|starting up|in recovery mode"
        "|could not receive data|Broken pipe",
        Advice("The server went away: see its log, and run again when it is back.", True),
    ),
    (
        "Connection refused|No such file or directory|timeout expired|timed out"
        "|translate host name|Name or service not known|unreachable|No route to host",
        Advice("Check host and port, and that the server runs and is reachable from here.", True),
    ),
)


def advice(text: str) -> Advice:
    """What to do about an error message of the server, of libpq or of a client program."""
    for pattern, found in _ADVICE:
        if re.search(pattern, text):
            return found
    return Advice("")
