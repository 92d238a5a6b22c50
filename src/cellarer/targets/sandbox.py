"""Proves a restore point: brings it up in a throw-away cluster and compares it with its source."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cellarer.domain.assertion import Assertion
from cellarer.domain.snapshot import Check
from cellarer.errors import TargetFailed
from cellarer.ports import Judgement, PointReader, Progress
from cellarer.postgres.binaries import server_for
from cellarer.postgres.cluster import Cluster, sandbox_cluster
from cellarer.postgres.contents import read_contents
from cellarer.targets.checks import checks
from cellarer.targets.host_faults import hint_of_host_fault
from cellarer.targets.postgres import PostgresTarget

RESTORE = "restore"
_EXPECTED = "restored without an error"


class PostgresProver:
    """Restores into a sandbox below `workspace`, which is removed whatever happens."""

    def __init__(self, assertions: Sequence[Assertion], workspace: Path, jobs: int) -> None:
        self._assertions = assertions
        self._workspace = workspace
        self._jobs = jobs

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        """The checks, that of the restore itself first. A failed restore is a failed check.

        The sandbox has the major version of the source, or else the next one above that is on this
        machine, which the check says. Raises `ToolMissing` where there is neither, `DamagedData`
        where the point cannot be read, and `TargetFailed` where the sandbox itself fails: then the
        point was not judged.
        """
        major = read_contents(reader).server_major
        try:
            with sandbox_cluster(server_for(major), self._workspace) as cluster:
                return Judgement(
                    restore_and_check(cluster, reader, progress, self._assertions, self._jobs)
                )
        except TargetFailed as error:
            hint = hint_of_host_fault(error.detail) or error.hint
            raise self._failure(str(error), hint, error.retryable) from error
        except OSError as error:
            detail = f"could not go on: {error.strerror or error}"
            raise self._failure(detail, hint_of_host_fault(detail) or "", False) from error

    def _failure(self, detail: str, hint: str, retryable: bool) -> TargetFailed:
        return TargetFailed(
            f"the sandbox in {self._workspace} failed, so the point was not judged",
            detail=detail,
            hint=hint or "Remove the cause on this host, then run again.",
            retryable=retryable,
        )


def restore_and_check(
    cluster: Cluster,
    reader: PointReader,
    progress: Progress,
    assertions: Sequence[Assertion],
    jobs: int,
    restored: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Restore the whole point into a cluster that holds nothing of worth, then check it.

    `restored` is called between the two, when all databases serve again. Raises `TargetFailed`
    where the cluster itself fails, for want of room as a rule.
    """
    contents = read_contents(reader)
    names = [database.name for database in contents.databases]
    began = time.monotonic()
    kept = _Notes(progress)
    target = PostgresTarget(
        cluster.dsn(names[0] if len(names) == 1 else "postgres"), jobs, throw_away=True
    )
    try:
        target.prepare(overwrite=False)
        target.restore(reader, (), kept)
    except TargetFailed as error:
        if hint_of_host_fault(error.detail) is not None:
            raise
        problem = "\n".join(part for part in (error.message, error.detail, error.hint) if part)
        return [Check(RESTORE, False, _EXPECTED, problem)]
    restored()
    seconds = time.monotonic() - began
    found = f"restored in {seconds:.1f} s into PostgreSQL {cluster.installation.version}"
    if cluster.installation.major != contents.server_major:
        kept.note(f"the source runs PostgreSQL {contents.server['server_version']}")
    found = "; ".join([found, *kept.texts])
    done = Check(RESTORE, True, _EXPECTED, found)
    return [done, *checks(cluster, reader, progress, assertions)]


class _Notes:
    """A Progress that also keeps the notes, because they belong to what was proven."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.texts: list[str] = []

    def begin(self, title: str, total_bytes: int | None) -> None:
        self._progress.begin(title, total_bytes)

    def advance(self, read_bytes: int) -> None:
        self._progress.advance(read_bytes)

    def note(self, text: str) -> None:
        self.texts.append(text)
        self._progress.note(text)

    def end(self) -> None:
        self._progress.end()

    def abandon(self) -> None:
        self._progress.abandon()
