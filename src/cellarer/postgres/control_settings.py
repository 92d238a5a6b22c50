"""What the control file says of the primary, whose room a server that replays needs as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cellarer.errors import TargetFailed
from cellarer.postgres.account import Account
from cellarer.postgres.binaries import Installation

OF_PRIMARY = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
"""What has to be as large as on the primary; `pg_controldata` calls them so."""

AS_ON_PRIMARY = {
    "wal_level": "wal_level setting",
    "track_commit_timestamp": "track_commit_timestamp setting",
}
"""What a server that replays privately takes over besides."""

SEGMENT_BYTES = "Bytes per WAL segment"

_NEEDED = {*OF_PRIMARY.values(), *AS_ON_PRIMARY.values(), SEGMENT_BYTES}


def control_data(installation: Installation, account: Account, data: Path) -> Mapping[str, str]:
    """What `pg_controldata` says of a data directory, by its own words. Raises `TargetFailed`."""
    answer = account.run([installation.program("pg_controldata"), "-D", data], data)
    lines = (line.partition(":") for line in answer.stdout.splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    if answer.returncode != 0 or not found.keys() >= _NEEDED:
        raise TargetFailed(
            f"the control file of {data} cannot be read",
            detail=answer.stdout.strip(),
            hint="Move the directory away and run again: what was there is made anew.",
        )
    return found
