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
    own = [record for record in records if record.point == commit.session]
    proof = newest_proof(own)
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
    if proof is None:
        return point
    return replace(point, proof=proof.proof, proof_time=proof.time, failed=standing_failure(own))


def newest_proof(records: Sequence[ProofRecord]) -> ProofRecord | None:
    """What the verifications of one point come to; None where there is none.

    The highest rung reached since the last failure: a quick scrub does not undo a proof, a failure
    does.
    """
    counted: list[ProofRecord] = []
    for record in sorted(records, key=lambda record: record.time):
        counted = [*counted, record] if record.passed else [record]
    return max(counted, key=lambda record: (record.proof, record.time), default=None)


def standing_failure(records: Sequence[ProofRecord]) -> str:
    """The first failed check of the last failure, unless a higher rung was reached since."""
    failures = [record for record in records if not record.passed]
    if not failures:
        return ""
    last = max(failures, key=lambda record: record.time)
    if any(r.passed and r.time > last.time and r.proof > last.proof for r in records):
        return ""
    return next((check.name for check in last.checks if not check.passed), "verification")
