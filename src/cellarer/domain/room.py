"""Whether a disk has room for the next backups, judged by what the last ones took."""

from __future__ import annotations

from collections.abc import Sequence

from cellarer.domain.finding import Finding
from cellarer.domain.quantity import about_size
from cellarer.domain.snapshot import RestorePoint

RECENT_POINTS = 10


def room(subject: str, free_bytes: int, points: Sequence[RestorePoint]) -> list[Finding]:
    """What `doctor` should say of a replica with so much room; `points` are newest first.

    Measure is the largest of the last ten points: less room than that is an error, less than twice
    that a warning.
    """
    largest = max((point.stored_bytes for point in points[:RECENT_POINTS]), default=0)
    if free_bytes >= 2 * largest:
        return []
    message = f"{about_size(free_bytes)} free, and a recent backup took {about_size(largest)}"
    hint = "enlarge the disk or the quota, or keep fewer points"
    if free_bytes < largest:
        return [Finding("replica-full", "error", subject, message, hint)]
    return [Finding("replica-nearly-full", "warning", subject, message, hint)]
