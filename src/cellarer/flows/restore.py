"""Bring a restore point, or a part of it, back to life."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cellarer.domain.recovery import LATEST, RestorePlan, find_point, plan_restore
from cellarer.domain.snapshot import Proof
from cellarer.flows.history import look_back
from cellarer.flows.points import left_out, list_points, refuse_damaged, survey
from cellarer.ports import PointReader, Progress, Restored, Target, phase
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.vault import Vault


def plan(vault: Vault, source: str, wanted: str, at: datetime | None, now: datetime) -> RestorePlan:
    """What a restore would bring back, and what it would lose."""
    found = survey(vault)
    points = found.points
    refuse_damaged(vault, points, wanted)
    chosen = plan_restore(points, source, wanted, at, now, None).point
    doubts = [
        f"replica {name} does not answer: newer points may be there" for name in vault.replicas.away
    ]
    doubts += left_out(vault)
    doubts += [finding.message for finding in look_back(vault, found, None)]
    restored = [r for r in found.proofs if r.point == chosen.id and r.proof >= Proof.RESTORED]
    seconds = [record.seconds for record in restored]
    best = plan_restore(points, source, wanted, at, now, seconds[-1] if seconds else None)
    return replace(best, reasons=(*best.reasons, *doubts))


def look(
    reader: PointReader, plan: RestorePlan, target: Target, only: tuple[str, ...], overwrite: bool
) -> RestorePlan:
    """The plan for this target and this part of the point. Raises whatever the target refuses.

    Nothing is changed. The forecast stays only where the verification did the same work.
    """
    target.prepare(overwrite)
    outlook = target.look(reader, only)
    return replace(
        plan,
        restore_bytes=outlook.restore_bytes,
        replaces=outlook.replaces,
        forecast_seconds=plan.forecast_seconds if outlook.as_verified else None,
    )


def restore(
    reader: PointReader,
    plan: RestorePlan,
    target: Target,
    only: tuple[str, ...],
    overwrite: bool,
    progress: Progress,
) -> Restored:
    """Carry the plan out. The target looks before it acts, and replaces nothing before it can."""
    target.prepare(overwrite)
    with phase(progress, f"restoring {plan.point.source}", plan.restore_bytes):
        return target.restore(reader, only, progress)


def open_named(vault: Vault, wanted: str) -> SnapshotReader:
    """A restore point for reading, by its id, the end of it, or `latest`."""
    points = list_points(vault)
    refuse_damaged(vault, points, wanted)
    if wanted == LATEST and points:
        return open_point(vault, points[0].id)
    return open_point(vault, find_point(points, wanted).id)


def open_point(vault: Vault, point: str) -> SnapshotReader:
    """A restore point for reading, by its whole id."""
    commit = next(commit for commit in vault.commits() if commit.session == point)
    return SnapshotReader(vault, commit)
