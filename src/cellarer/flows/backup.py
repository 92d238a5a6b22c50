"""Take one snapshot of one source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime

from cellarer.domain.snapshot import RestorePoint
from cellarer.errors import CellarerError, KeyUnusable, SourceFailed, VaultUnreachable
from cellarer.flows.points import restore_point, wal_note
from cellarer.flows.repair import damage_met, heal_damage, tell_of_damage
from cellarer.ports import Flawed, Noting, Progress, Remembering, Source, WalBound, phase
from cellarer.vault.catchup import catch_up
from cellarer.vault.configuration import is_newest
from cellarer.vault.format import session_start
from cellarer.vault.genuine import Trust
from cellarer.vault.own_sessions import close_died
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import SnapshotWriter
from cellarer.vault.writing import TooSlow

_FLAWS_TOLD = 10

CATCHING_UP_SECONDS = 60.0
"""How long a backup that is done copies to replicas that were behind; `sync` has no bound."""


def back_up(
    vault: Vault, source: Source, progress: Progress, now: Callable[[], datetime]
) -> RestorePoint:
    """Read the source once, store what is new, and commit it as a restore point.

    Any error of the source forbids the commit: then the vault reads as before. Replicas that were
    away are brought up to date afterwards, if they are back.
    """
    for session in close_died(vault):
        begun = f"{session_start(session):%Y-%m-%d %H:%M:%S} UTC"
        progress.note(f"the backup of {begun} died: its session is closed, and collecting goes on")
    writer = _begin(vault, source, progress, now)
    try:
        with ExitStack() as shown:
            with source.capture() as capture:
                title = f"backing up {source.name}"
                shown.enter_context(phase(progress, title, capture.expected_bytes))
                for stream in capture:
                    reading = _Reading(stream.blocks, progress)
                    entry = writer.add(replace(stream, blocks=iter(reading)))
                    progress.advance(entry.size_bytes - reading.read_bytes)  # taken over
            if not writer.streams:
                raise SourceFailed(
                    f"{source.name} yielded nothing",
                    hint="check what the source's settings name; an empty backup is never taken",
                )
            commit = writer.commit(_note(source, progress))
    except BaseException:
        writer.abandon()
        raise
    _refuse_late(vault, commit)
    if isinstance(source, Remembering):
        source.remember(commit.session, writer.entries)
    tell_of_damage(vault, progress, now)
    names = [replica.name for replica in vault.replicas.replicas]
    point = restore_point(commit, names, [])
    reasons = {name: str(error) for name, error in writer.behind.items()}
    point = replace(point, behind=reasons)
    if reasons or writer.lacking:
        slow = {name for name, error in writer.behind.items() if isinstance(error, TooSlow)}
        return _catch_up(vault, point, writer.lacking, slow, progress, now)
    return point


def _note(source: Source, progress: Progress) -> dict[str, object]:
    """What the record says besides, for those who cannot read the point."""
    for text in source.notes() if isinstance(source, Noting) else ():
        progress.note(f"{source.name}: {text}")
    note = wal_note(source.wal_range()) if isinstance(source, WalBound) else {}
    flaws = source.flaws() if isinstance(source, Flawed) else ()
    for flaw in flaws[:_FLAWS_TOLD]:
        progress.note(f"damaged in {source.name}: {flaw}")
    if len(flaws) > _FLAWS_TOLD:
        progress.note(f"and {len(flaws) - _FLAWS_TOLD} more; `backup.json` in the point has all")
    return note | ({"flaws": len(flaws)} if flaws else {})


def _begin(
    vault: Vault, source: Source, progress: Progress, now: Callable[[], datetime]
) -> SnapshotWriter:
    """A session. Where too few replicas are up to date, they are brought there first.

    A backup that was killed at its last write may be on fewer replicas than the quorum.
    """
    try:
        return SnapshotWriter(vault, source.name, source.kind, now)
    except VaultUnreachable:
        outcomes = catch_up(vault.replicas, progress.advance, Trust.of(vault), fill_new=False)
        if not any(outcome.copied_objects for outcome in outcomes.values()):
            raise
    return SnapshotWriter(vault, source.name, source.kind, now)


def renewed(vault: Vault) -> Vault:
    """The vault as its newest configuration says; itself where that is the one it knows."""
    same = is_newest(vault.replicas, vault.configuration.epoch)
    return vault if same else vault.reopen()


def _refuse_late(vault: Vault, commit: Commit) -> None:
    """Raise `KeyUnusable` where the key that signed was retired before, so that nothing counts."""
    try:
        newest = renewed(vault)
        newest.signer_for("commit")
    except KeyUnusable as error:
        if commit.session in {each.session for each in newest.commits()}:
            return
        raise KeyUnusable(
            "the write key was replaced while this backup ran: it is no restore point",
            detail=str(error),
            hint="give this host the new write key, then back up again",
        ) from error
    except CellarerError:
        return  # nobody can tell just now; what was stored is stored


def _catch_up(
    vault: Vault,
    point: RestorePoint,
    lacking: Collection[str],
    slow: Collection[str],
    progress: Progress,
    now: Callable[[], datetime],
) -> RestorePoint:
    """Bring the replicas up to date that were left out, or lack an older point.

    One that does not answer, was `slow`, or holds another vault, is left alone: the backup is done,
    and need not wait for it.
    """
    for name, reason in point.behind.items():
        progress.note(f"replica {name} was left out of this backup: {reason}")
    if {*point.behind, *lacking} <= {*vault.replicas.away, *vault.replicas.aside, *slow}:
        return point
    try:
        outcomes = catch_up(
            vault.replicas,
            progress.advance,
            Trust.of(vault),
            fill_new=False,
            besides=slow,
            within_seconds=CATCHING_UP_SECONDS,
        )
        met = damage_met(vault, outcomes)
        if met:
            heal_damage(vault, met, now)
    except CellarerError as error:
        # The point is there all the same.
        progress.note(f"replicas could not be brought up to date: {error}")
        return point
    states = dict(point.replicas)
    for name, outcome in outcomes.items():
        if outcome.problem is not None:
            progress.note(f"replica {name} is behind: {outcome.problem}")
        elif name in point.behind or name in lacking:
            states[name] = "stored"
            progress.note(f"replica {name} was behind and is up to date again")
    return replace(point, replicas=states)


class _Reading:
    """The blocks of a stream, told to the progress as they are read."""

    def __init__(self, blocks: Iterator[bytes], progress: Progress) -> None:
        self.read_bytes = 0
        self._blocks, self._progress = blocks, progress

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            yield block
            self.read_bytes += len(block)
            self._progress.advance(len(block))
