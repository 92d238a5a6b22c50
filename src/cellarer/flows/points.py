"""Restore points and what is known about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cellarer.domain.snapshot import Proof, ProofRecord, RestorePoint, WalRange
from cellarer.domain.wal import lsn_text, parse_lsn
from cellarer.errors import DamagedData
from cellarer.vault import format as layout
from cellarer.vault.ledger import LedgerEntry, entries, proofs_in
from cellarer.vault.vault import Commit, Vault


def list_points(
    vault: Vault, source: str | None = None, at: datetime | None = None
) -> list[RestorePoint]:
    """Restore points, newest first; of one source, and not after a moment, where asked."""
    return survey(vault).of(source, at)


@dataclass(frozen=True)
class Survey:
    """All that the vault says of itself, read once.

    Commits, those of forgotten points too, and ledger entries are in the order of their chains,
    points newest first by that order.
    """

    commits: Sequence[Commit]
    entries: Sequence[LedgerEntry]
    points: Sequence[RestorePoint]

    @property
    def proofs(self) -> list[ProofRecord]:
        """The outcomes of all verifications."""
        return proofs_in(self.entries)

    def of(self, source: str | None, at: datetime | None) -> list[RestorePoint]:
        """The points of one source, and not after a moment, where asked."""
        return [
            point
            for point in self.points
            if source in (None, point.source) and (at is None or point.time <= at)
        ]


def survey(vault: Vault) -> Survey:
    """Read all registers and the ledger."""
    replicas = [replica.name for replica in vault.replicas.replicas]
    found = entries(vault)
    records: dict[str, list[ProofRecord]] = {}
    for record in proofs_in(found):
        records.setdefault(record.point, []).append(record)
    commits = vault.commits(forgotten=True)
    points = [
        restore_point(commit, replicas, records.get(commit.session, ()))
        for commit in reversed(commits)
        if not commit.forgotten
    ]
    return Survey(commits, found, points)


def other_clusters(points: Sequence[RestorePoint], point: RestorePoint) -> list[str]:
    """The clusters, besides its own, that base backups of the same source are of.

    A server was made anew, or a config leads to the wrong one.
    """
    systems = {each.cluster for each in points if each.source == point.source}
    return sorted(systems - {"", point.cluster}) if point.cluster else []


def left_out(vault: Vault) -> list[str]:
    """What counts for nothing in what is said of the vault, and why."""
    return [f"{key} is damaged and was left out" for key in sorted(vault.unreadable)] + [
        f"{key} was signed by a key that was retired before, and was left out"
        for key in sorted(vault.too_late)
    ]


def refuse_damaged(vault: Vault, points: Sequence[RestorePoint], wanted: str = "") -> None:
    """Raise `DamagedData` where this id is that of a session of which nobody can tell any more.

    Also where there are no points, because none can be read. To be called when the registers were
    read: else it would be told that there is no such point.
    """
    for key, error in sorted(vault.unreadable.items(), reverse=True):
        session = key.removeprefix(layout.SNAPSHOTS_PREFIX)
        if session != key and (
            not points or session == wanted or (wanted and session.endswith(f"-{wanted}"))
        ):
            raise DamagedData(
                f"restore point {session} cannot be read: its record is damaged on every replica",
                detail=str(error),
                hint="run `cellarer scrub --repair`, bring the object back from an older state of "
                "a replica, or choose another point with `cellarer points`",
            )


def restore_point(
    commit: Commit, replicas: Sequence[str], records: Sequence[ProofRecord]
) -> RestorePoint:
    """A commit as listings show it, with what its verifications come to.

    Its time is when the backup began: what came later is not in it for sure.
    """
    proof = newest_proof(records)
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
        replicas={name: _state(commit, name) for name in replicas},
        behind=_left_out(commit),
        flaws=int(commit.body["note"].get("flaws", 0)),
        wal=_wal(commit),
    )
    if proof is None:
        return point
    return replace(
        point,
        proof=proof.proof,
        proof_time=proof.time,
        failed=standing_failure(records),
        best_proof=max((each.proof for each in records if each.passed), default=Proof.STORED),
    )


def _state(commit: Commit, replica: str) -> str:
    """Whether a replica holds a point: `absent` will never do so, it closed the session itself."""
    if replica in commit.replicas:
        return "stored"
    return "absent" if replica in commit.absent else "behind"


def _left_out(commit: Commit) -> dict[str, str]:
    """Why replicas did not take part, as the writer noted it."""
    reasons = commit.body["note"].get("behind", {})
    return {name: str(reason) for name, reason in reasons.items()}


def wal_note(wal: WalRange) -> dict[str, object]:
    """How the note of a point says what it needs of the write-ahead log.

    For those who cannot read the point: it decides which of that is kept.
    """
    return {
        "wal": {
            "start": lsn_text(wal.start_lsn),
            "stop": lsn_text(wal.stop_lsn),
            "system": wal.system,
            "timeline": wal.timeline,
        }
    }


def _wal(commit: Commit) -> WalRange | None:
    """What a point needs of the write-ahead log; None where its writer did not say so."""
    told = commit.body["note"].get("wal")
    try:
        system, timeline = str(told["system"]), int(told["timeline"])
        return WalRange(system, timeline, parse_lsn(told["start"]), parse_lsn(told["stop"]))
    except (KeyError, TypeError, ValueError):
        return None


def newest_proof(records: Sequence[ProofRecord]) -> ProofRecord | None:
    """What the verifications of one point come to, oldest first; None where there is none.

    The highest rung reached since the last failure: a quick scrub does not undo a proof, a failure
    does. Their order counts, not their times: a clock may have run ahead.
    """
    counted: list[ProofRecord] = []
    for record in records:
        counted = [*counted, record] if record.passed else [record]
    highest = max((record.proof for record in counted), default=None)
    return next((record for record in reversed(counted) if record.proof == highest), None)


def standing_failure(records: Sequence[ProofRecord]) -> str:
    """The first failed check of the last failure, unless a higher rung was reached since."""
    failing: ProofRecord | None = None
    for record in records:
        if not record.passed:
            failing = record
        elif failing is not None and record.proof > failing.proof:
            failing = None
    if failing is None:
        return ""
    return next((check.name for check in failing.checks if not check.passed), "verification")
