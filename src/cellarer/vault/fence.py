"""What a writer has to know of the collectors that are at work on the replicas."""

from __future__ import annotations

from collections.abc import Iterable

from cellarer.errors import CellarerError, DamagedData, ObjectExists, StoreError
from cellarer.vault.roundlog import read_rounds
from cellarer.vault.rounds import Round, condemned
from cellarer.vault.vault import Vault
from cellarer.vault.writing import Writing


def condemned_for(vault: Vault, writing: Writing) -> frozenset[str]:
    """What collectors are about to delete on the replicas of a session that announced itself.

    A replica whose rounds cannot be understood drops out.
    """
    found: set[str] = set()
    for _, rounds in _rounds(vault, writing):
        found |= condemned(rounds)
    return frozenset(found)


def refuse_swept(vault: Vault, writing: Writing, used: Iterable[str]) -> None:
    """Look once more, before the last write: nothing that a snapshot uses may be going.

    The fence makes it impossible on a store that keeps its promises; this finds one that does not.
    """
    needed = set(used)
    for name, rounds in _rounds(vault, writing):
        sweeps = [each.sweep for each in rounds if each.sweep]
        going = needed.intersection(frozenset().union(*sweeps))
        if going:
            raise StoreError(
                f"replica {name} deletes what this backup needs",
                detail=f"{min(going)} is swept although the session was announced before",
                hint="back up again; `cellarer doctor` tells whether the store keeps order",
                retryable=True,
            )


def _rounds(vault: Vault, writing: Writing) -> list[tuple[str, list[Round]]]:
    """The rounds of each replica of a session; whose cannot be read drops out."""
    answers = vault.replicas.each_of(writing.replicas, lambda r: read_rounds(vault, r))
    found = []
    for name, answer in answers.items():
        if isinstance(answer, (StoreError, DamagedData)):
            writing.drop(name, answer)
        elif isinstance(answer, CellarerError):
            raise answer
        else:
            found.append((name, answer))
    return found


def closed_by_another(session: str, writing: Writing) -> StoreError | None:
    """The error for a session that a collector closed, where that is what happened."""
    if not any(isinstance(error, ObjectExists) for error in writing.failed.values()):
        return None
    return StoreError(
        f"session {session} was closed by another before it could commit",
        detail="it was open for longer than collecting waits, or this host took its program for "
        "dead: the cache directory must not be shared without locks; nothing was committed",
        hint="back up again; what was uploaded is deleted by and by",
        retryable=True,
    )
