"""What a writer has to know of the replicas, and of collectors that are at work there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cellarer.errors import DamagedData, ObjectExists, StoreError, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.replicas import Writing
from cellarer.vault.roundlog import read_rounds
from cellarer.vault.rounds import condemned
from cellarer.vault.vault import Commit, Vault


def current_replicas(vault: Vault, commits: Sequence[Commit]) -> list[Any]:
    """The replicas that have every snapshot known anywhere: the ones a new one can be put on.

    A replica that was away lacks chunks a new snapshot may point to; it is caught up afterwards.
    So is one that is new: without the marker, which is copied last, nothing there can be read.
    """
    markers = vault.replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    answering = [name for name, marker in markers.items() if _marks(marker, vault.id)]
    current = [
        replica
        for replica in vault.replicas.replicas
        if replica.name in answering
        and all(replica.name in (*c.replicas, *c.absent) for c in commits)
    ]
    if len(current) < vault.replicas.write_quorum:
        away = [r.name for r in vault.replicas.replicas if r not in current]
        raise VaultUnreachable(
            f"{len(current)} of {vault.replicas.write_quorum} needed replicas are reachable "
            "and up to date",
            detail=f"away or behind: {', '.join(away)}",
            hint="see `cellarer doctor`; `cellarer sync` brings a replica up to date",
            retryable=True,
        )
    return current


def _marks(marker: object, vault_id: str) -> bool:
    """Whether a replica's marker is that of this vault, and not of another or of none."""
    if not isinstance(marker, bytes):
        return False
    try:
        return layout.parse_json(marker, layout.FORMAT_KEY).get("vault") == vault_id
    except DamagedData:
        return False


def condemned_for(vault: Vault, writing: Writing) -> frozenset[str]:
    """What collectors are about to delete on the replicas of a session that announced itself.

    A replica whose rounds cannot be understood drops out.
    """
    found: set[str] = set()
    for replica in writing.replicas:
        try:
            found |= condemned(read_rounds(vault, replica))
        except (StoreError, DamagedData) as error:
            writing.drop(replica.name, error)
    return frozenset(found)


def refuse_swept(vault: Vault, writing: Writing, used: Iterable[str]) -> None:
    """Look once more, before the last write: nothing that a snapshot uses may be going.

    The fence makes it impossible on a store that keeps its promises; this finds one that does not.
    """
    needed = set(used)
    for replica in writing.replicas:
        try:
            sweeps = [each.sweep for each in read_rounds(vault, replica) if each.sweep]
        except (StoreError, DamagedData) as error:
            writing.drop(replica.name, error)
            continue
        going = needed.intersection(frozenset().union(*sweeps))
        if going:
            raise StoreError(
                f"replica {replica.name} deletes what this backup needs",
                detail=f"{min(going)} is swept although the session was announced before",
                hint="back up again; `cellarer doctor` tells whether the store keeps order",
                retryable=True,
            )


def closed_by_another(session: str, writing: Writing) -> StoreError | None:
    """The error for a session that a collector closed, where that is what happened."""
    if not any(isinstance(error, ObjectExists) for error in writing.failed.values()):
        return None
    return StoreError(
        f"session {session} was closed by a collector before it could commit",
        detail="it was open for longer than collecting waits; nothing was committed",
        hint="back up again; what was uploaded is deleted by and by",
        retryable=True,
    )
