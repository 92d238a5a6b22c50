"""Brings a restore point up where it is to stay, and proves it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cellarer.domain.assertion import Assertion
from cellarer.domain.snapshot import Check
from cellarer.ports import PointReader, Progress
from cellarer.postgres.cluster import Cluster
from cellarer.targets.sandbox import restore_and_check


class RecoveringProver:
    """Restores into `cluster`, which holds nothing of worth, and leaves it running.

    `restored` is called as soon as the databases serve again, before anything is checked.
    """

    def __init__(
        self,
        cluster: Cluster,
        assertions: Sequence[Assertion],
        jobs: int,
        *,
        restored: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._assertions = assertions
        self._jobs = jobs
        self._restored = restored

    def prove(self, reader: PointReader, progress: Progress) -> Sequence[Check]:
        """The checks, that of the restore itself first; see `cellarer.ports.Prover`."""
        return restore_and_check(
            self._cluster, reader, progress, self._assertions, self._jobs, self._restored
        )
