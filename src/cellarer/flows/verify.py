"""Climb the proof ladder: stored, scrubbed, restored, proven; and write down what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from cellarer.domain.recovery import LATEST, find_point
from cellarer.domain.snapshot import Check, Entry, Proof, ProofRecord, RestorePoint
from cellarer.errors import DamagedData, UsageError
from cellarer.flows.repair import heal_damage
from cellarer.flows.restore import open_point
from cellarer.ports import Hasher, Judgement, PointReader, Progress, Prover, phase
from cellarer.vault.ledger import record_proof
from cellarer.vault.vault import Vault


def verify(
    vault: Vault,
    point: RestorePoint,
    level: Proof,
    prover: Prover | None,
    progress: Progress,
    now: Callable[[], datetime],
) -> ProofRecord:
    """Verify one point up to `level` and append the outcome to the vault's ledger.

    A failed check is an outcome, not an error: the record says `passed=False`, and the proof is
    the highest rung that was reached. `prover` is needed above `scrubbed`.
    """
    started = time.monotonic()
    total = point.read_bytes * (1 if level <= Proof.SCRUBBED else 2)
    with phase(progress, f"verifying {point.source} {point.id}", total):
        proof, judgement = _climb(vault, point, level, prover, progress)
    record = ProofRecord(
        point=point.id,
        source=point.source,
        proof=proof,
        passed=proof >= level and all(check.passed for check in judgement.checks),
        time=now(),
        seconds=round(time.monotonic() - started, 3),
        checks=tuple(judgement.checks),
        loss_seconds=judgement.loss_seconds,
    )
    record_proof(vault, record)
    _heal(vault, point, progress, now)
    return record


def _heal(
    vault: Vault, point: RestorePoint, progress: Progress, now: Callable[[], datetime]
) -> None:
    """Heal what was met damaged, and lost where the point should be whole."""
    met = {name: set(keys) for name, keys in vault.replicas.damaged.items()}
    for name, keys in vault.replicas.missing.items():
        if point.replicas.get(name) == "stored":
            met.setdefault(name, set()).update(keys)
    for outcome in heal_damage(vault, met, now):
        for note in outcome.notes():
            progress.note(note)


def choose(
    points: Sequence[RestorePoint], sources: Sequence[str], wanted: str | None
) -> list[RestorePoint]:
    """The points to verify: the one named, else the newest of each source (or of those named).

    `points` are newest first; `latest` is the first of them, or the newest of each source named.
    Raises `UsageError` where there is nothing to verify.
    """
    if wanted == LATEST and not sources:
        sources = [point.source for point in points[:1]]
    elif wanted not in (None, LATEST):
        return [find_point(points, wanted)]
    newest: dict[str, RestorePoint] = {}
    for point in points:
        newest.setdefault(point.source, point)
    missing = [source for source in sources if source not in newest]
    if missing or not newest:
        raise UsageError(
            f"there is no restore point of {missing[0]}" if missing else "no restore points yet",
            hint="take one with `cellarer backup`",
        )
    return [newest[source] for source in sources] if sources else list(newest.values())


def damaged(record: ProofRecord) -> bool:
    """Whether stored bytes were found damaged (rather than content different)."""
    return any(check.name == SCRUB and not check.passed for check in record.checks)


SCRUB = "every byte reads and authenticates"


def _climb(
    vault: Vault, point: RestorePoint, level: Proof, prover: Prover | None, progress: Progress
) -> tuple[Proof, Judgement]:
    """The rung that was reached, and everything that was looked at on the way."""
    expected = f"{point.streams} streams"
    try:
        reader = TallyingReader(open_point(vault, point.id))
        judged = Judgement(())
        if level > Proof.SCRUBBED and prover is not None:
            judged = prover.prove(reader, progress)
        for entry in reader.unread():
            for block in reader.read(entry.path):
                progress.advance(len(block))
    except DamagedData as error:
        return Proof.STORED, Judgement([Check(SCRUB, False, expected, str(error))])
    scrubbed = Check(SCRUB, True, expected, f"{len(reader.entries())} streams")
    checks = judged.checks
    everything = Judgement([scrubbed, *checks], judged.loss_seconds)
    if not checks or not checks[0].passed:
        return Proof.SCRUBBED, everything
    if level < Proof.PROVEN or not all(check.passed for check in checks):
        return Proof.RESTORED, everything
    return Proof.PROVEN, everything


class TallyingReader:
    """A reader that remembers which streams were read to their end."""

    def __init__(self, reader: PointReader) -> None:
        self._reader = reader
        self._whole: set[str] = set()

    @property
    def point(self) -> str:
        """The id of the restore point."""
        return self._reader.point

    def entries(self) -> Sequence[Entry]:
        """All streams of the point."""
        return self._reader.entries()

    def read(self, path: str) -> Iterator[bytes]:
        """One stream, tallied when its last byte was good."""
        yield from self._reader.read(path)
        self._whole.add(path)

    def hasher(self, kind: str) -> Hasher:
        """See `ports.PointReader.hasher`."""
        return self._reader.hasher(kind)

    def unread(self) -> list[Entry]:
        """The streams that nobody read to the end yet."""
        return [entry for entry in self.entries() if entry.path not in self._whole]
