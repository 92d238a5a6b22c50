"""Restore points and what is known about each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from cellarer.domain.snapshot import ProofRecord, RestorePoint
from cellarer.vault.ledger import proofs
from cellarer.vault.vault import Commit, Vault


def list_points(
    vault: Vault, source: str | None = None, at: datetime | None = None
) -> list[RestorePoint]:
    """Restore points, newest first; of one source, and not after a moment, where asked."""
    replicas = [replica.name for replica in vault.replicas.replicas]
    records = proofs(vault)
    points = [restore_point(commit, replicas, records) for commit in vault.commits()]
    return [
        point
        for point in reversed(points)
        if source in (None, point.source) and (at is None or point.time <= at)
    ]


def restore_point(
    commit: Commit, replicas: Sequence[str], records: Iterable[ProofRecord]
) -> RestorePoint:
    """A commit as listings show it, with its newest verification.

    Its time is when the backup began: what came later is not in it for sure.
    """
    newest = max(
        (record for record in records if record.point == commit.session),
        key=lambda record: record.time,
        default=None,
    )
    point = RestorePoint(
        id=commit.session,
        source=commit.source,
        kind=str(commit.body["kind"]),
        time=commit.started,
        seconds=float(commit.body["seconds"]),
        read_bytes=int(commit.body["read_bytes"]),
        added_bytes=int(commit.body["added_bytes"]),
        stored_bytes=int(commit.body["stored_bytes"]),
        streams=int(commit.body["streams"]),
        replicas={name: "stored" if name in commit.replicas else "behind" for name in replicas},
    )
    if newest is None:
        return point
    return replace(point, proof=newest.proof, proof_time=newest.time)
