"""Which replicas a new snapshot is put on, and why the others are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellarer.errors import (
    CellarerError,
    DamagedData,
    ObjectMissing,
    StoreError,
    VaultUnreachable,
)
from cellarer.vault import format as layout
from cellarer.vault.replicas import Replica, said
from cellarer.vault.vault import Commit, Vault


@dataclass(frozen=True)
class TakingPart:
    """The replicas of a session; `left_out` has the reason for each of the others.

    `lacking` are those that take part although an older snapshot is not there.
    """

    replicas: Sequence[Replica]
    left_out: Mapping[str, CellarerError]
    lacking: Sequence[str]


def choose_replicas(vault: Vault, commits: Sequence[Commit]) -> TakingPart:
    """The replicas that hold this vault, and of its snapshots the newest.

    One that was away lacks the newest: it is caught up afterwards, instead of getting again what
    the others have. So is one that is new: without the marker, which is copied last, nothing there
    can be read. An older one that is lacking keeps nobody out, as it may be damaged for good;
    nothing is built upon that not every replica of the session has. Raises `VaultUnreachable` where
    fewer than the quorum are left.
    """
    markers = vault.replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    left_out: dict[str, CellarerError] = {}
    current, lacking = [], []
    for replica in vault.replicas.replicas:
        name = replica.name
        problem = _unmarked(markers[name], vault.id) or _behind(name, commits)
        if problem is not None:
            left_out[name] = problem
            continue
        current.append(replica)
        if any(_lacks(name, commit) for commit in commits):
            lacking.append(name)
    if len(current) < vault.replicas.write_quorum:
        raise VaultUnreachable(
            f"{len(current)} of {vault.replicas.write_quorum} needed replicas are reachable "
            "and up to date",
            detail=f"away or behind: {said(left_out)}",
            hint="see `cellarer doctor`; `cellarer sync` brings a replica up to date",
            retryable=True,
        )
    return TakingPart(current, left_out, lacking)


def _lacks(name: str, commit: Commit) -> bool:
    """Whether a replica should have a snapshot and has not; `absent` are those that never will."""
    return name not in commit.replicas and name not in commit.absent


def _behind(name: str, commits: Sequence[Commit]) -> CellarerError | None:
    if not any(_lacks(name, commit) for commit in commits[-1:]):
        return None
    missed = sum(_lacks(name, commit) for commit in commits)
    return StoreError(
        f"it lacked {missed} restore point{'s' if missed > 1 else ''} when the backup began",
        hint="`cellarer sync` brings it up to date",
    )


def _unmarked(marker: bytes | CellarerError, vault_id: str) -> CellarerError | None:
    """Why a replica's marker is not that of this vault; None where it is."""
    if isinstance(marker, ObjectMissing):
        return StoreError("it holds no vault", hint="`cellarer sync` fills a new replica")
    if isinstance(marker, CellarerError):
        return marker
    try:
        found = layout.parse_json(marker, layout.FORMAT_KEY).get("vault")
    except DamagedData as error:
        return error
    if found == vault_id:
        return None
    return StoreError(
        f"it holds another vault, {found}", hint="correct its url in [[vault.replicas]]"
    )
