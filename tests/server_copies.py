"""Copies of a running server by pg_basebackup: standbys, and servers that recover by a command."""

from __future__ import annotations

from pathlib import Path

from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster


def copy_of(server: Cluster, directory: Path, *options: str) -> Cluster:
    """A copy below a directory that is made, with a socket of its own; not started.

    `options` are those of pg_basebackup.
    """
    account = service_account()
    directory.mkdir(mode=0o700)
    account.own(directory)
    copy = Cluster(server.installation, directory, account, "postgres")
    copy.socket_directory.mkdir(mode=0o700)
    account.own(copy.socket_directory)
    command: list[str | Path] = [
        *(server.installation.program("pg_basebackup"), "--checkpoint=fast", "--no-sync"),
        *("-D", copy.data_directory, "-d", server.dsn("postgres")),
        *options,
    ]
    answer = account.run(command, directory)
    assert answer.returncode == 0, answer.stdout
    configure(copy, f"unix_socket_directories = '{copy.socket_directory}'")
    return copy


def standby_of(primary: Cluster, directory: Path) -> Cluster:
    """A standby that streams from a server; not started."""
    return copy_of(primary, directory, "--write-recovery-conf")


def configure(server: Cluster, *lines: str) -> None:
    """Add to the settings of a server, before it is started."""
    with (server.data_directory / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
