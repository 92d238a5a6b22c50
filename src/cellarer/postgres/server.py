"""What has to be known of a server before its databases are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellarer.postgres import catalogue
from cellarer.postgres.binaries import Installation, client_for
from cellarer.postgres.catalogue import Connection, quiet_settings

ALL_DATABASES = "*"


@dataclass(frozen=True)
class Server:
    """One server as its catalogue shows it.

    `databases` are those to read, `skipped` those that the user may not connect to, `leftovers`
    those that a restore has not put in place, or not yet dropped.
    """

    version: str
    version_number: int
    installation: Installation
    standby: bool
    role_passwords: bool
    settings: Mapping[str, str]
    databases: tuple[str, ...]
    skipped: tuple[str, ...]
    leftovers: tuple[str, ...]


def look_at(connection: Connection, wanted: Sequence[str]) -> Server:
    """The server, and which of its databases are `wanted`: none for the connected one, or `"*"`.

    Raises `ToolMissing` where it is newer than every `pg_dump` here.
    """
    number = connection.info.server_version
    installation = client_for(number // 10000)
    databases: tuple[str, ...] = tuple(wanted) or (connection.info.dbname,)
    skipped: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    with connection.transaction():
        quiet_settings(connection)
        if ALL_DATABASES in wanted:
            found = catalogue.list_databases(connection)
            leftovers = tuple(catalogue.list_left_by_restores(connection))
            found = {name: allowed for name, allowed in found.items() if name not in leftovers}
            databases = tuple(name for name, allowed in found.items() if allowed)
            skipped = tuple(name for name, allowed in found.items() if not allowed)
        return Server(
            version=catalogue.server_version(connection),
            version_number=number,
            installation=installation,
            standby=catalogue.is_standby(connection),
            role_passwords=catalogue.role_passwords_readable(connection),
            settings=catalogue.changed_settings(connection),
            databases=databases,
            skipped=skipped,
            leftovers=leftovers,
        )
