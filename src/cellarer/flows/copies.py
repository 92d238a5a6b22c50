"""3-2-1-1-0 for `doctor`: what it counts is read back from each replica, not from the config."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from cellarer.domain.copies import Copy, Facts, Place, count_copies, standing_errors
from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Proof, RestorePoint, ahead
from cellarer.errors import CellarerError, DamagedData
from cellarer.flows.points import Survey
from cellarer.flows.status import PROOF_MAY_BE_OLD
from cellarer.ports import retaining
from cellarer.vault import format as layout
from cellarer.vault.collect import listed, reading
from cellarer.vault.envelopes import parse_name
from cellarer.vault.format import check_content_name
from cellarer.vault.manifest import record_places
from cellarer.vault.moved import lie_among, tables_on
from cellarer.vault.repair import standing_damage
from cellarer.vault.replicas import Replica
from cellarer.vault.scrub import last_whole
from cellarer.vault.vault import Commit, Vault


def look_at_copies(
    vault: Vault,
    found: Survey,
    places: Mapping[str, Place],
    refusing: Collection[str],
    schedule: tuple[timedelta | None, timedelta | None],
    now: datetime,
) -> list[Finding]:
    """Count copies, media, places, locks and errors.

    `places` is replica -> where it lies; `refusing` are those that kept what they were asked to
    delete, as their retention has it. `schedule` says how often to verify and to scrub.
    """
    newest = _newest(found)
    copies = [
        _copy(vault, replica, places[replica.name], newest, replica.name in refusing)
        for replica in vault.replicas.replicas
    ]
    proofs = {
        point.source: (point.proof.word, _proven_at(found.points, point.source, now))
        for point in _newest_points(found)
    }
    damaged = {name: len(keys) for name, keys in standing_damage(found.entries).items()}
    failed = {point.source: point.failed for point in _newest_points(found)}
    verify_every, scrub_every = schedule
    limit = now - 1.5 * (verify_every or PROOF_MAY_BE_OLD)
    errors = standing_errors(proofs, damaged, failed, limit)
    errors += [f"{key} is damaged everywhere" for key in vault.unreadable]
    if scrub_every is not None:
        errors += _unscrubbed(vault, found, 1.5 * scrub_every, now)
    return count_copies(Facts(copies, errors, tuple(proofs)), now)


def _unscrubbed(vault: Vault, found: Survey, limit: timedelta, now: datetime) -> list[str]:
    """The replicas of which nobody has read everything for so long."""
    oldest = min((point.time for point in found.points), default=now)
    errors = []
    for replica in vault.replicas.replicas:
        last = last_whole(found.entries, replica.name, now)
        if now - (last or oldest) > limit:
            when = f"last scrubbed wholly on {last:%Y-%m-%d}" if last else "never scrubbed wholly"
            errors.append(f"{replica.name} was {when}")
    return errors


def _newest_points(found: Survey) -> list[RestorePoint]:
    points: dict[str, RestorePoint] = {}
    for point in found.points:
        points.setdefault(point.source, point)
    return list(points.values())


def _newest(found: Survey) -> list[Commit]:
    wanted = {point.id for point in _newest_points(found)}
    return [commit for commit in found.commits if commit.session in wanted]


def _proven_at(points: Sequence[RestorePoint], source: str, now: datetime) -> datetime | None:
    proven = [
        point.proof_time
        for point in points
        if point.source == source and point.proof == Proof.PROVEN and point.proof_time
    ]
    return max((time for time in proven if not ahead(time, now)), default=None)


def _copy(
    vault: Vault, replica: Replica, place: Place, newest: Sequence[Commit], refused: bool
) -> Copy:
    """What this replica holds of the newest points."""
    try:
        lacking = _lacking(vault, replica, newest)
        until = None if lacking else _locked_until(replica, newest)
    except CellarerError as error:
        return Copy(replica.name, place, f"does not show what it holds: {error}")
    return Copy(replica.name, place, lacking, until, refused)


def _lacking(vault: Vault, replica: Replica, newest: Sequence[Commit]) -> str:
    """What it lacks: by its listings for everything, by reading for one object of each point."""
    prefixes = (layout.PACKS_PREFIX, layout.META_PREFIX, layout.SESSIONS_PREFIX, layout.KEYS_PREFIX)
    held = {key for prefix in prefixes for key in listed(vault, replica, prefix)}
    opened = {name[0] for key in held if (name := parse_name(key))}
    for commit in newest:
        what = f"the newest point of {commit.source}"
        if replica.name not in commit.replicas:
            return f"lacks {what}"
        references = str(commit.body["references"])
        if references not in held:
            return f"lacks {references} of {what}"
        try:
            data = _read(vault, replica, references)
            records = record_places(vault.index_key, data)
            there = [pack for pack in records.packs if pack in held]
            absent = [
                session
                for session in records.sessions
                if layout.session_key(session) not in held or session not in opened
            ]
            if not lie_among(records, held, tables_on(vault, replica.name, held)):
                absent += sorted({*records.packs} - held)
            if absent:
                return f"lacks {absent[0]} of {what}"
            if there:
                _read(vault, replica, random.choice(there))
        except DamagedData as error:
            return f"does not hold {what} whole: {error}"
    return ""


def _read(vault: Vault, replica: Replica, key: str) -> bytes:
    """An object, which its name fits. Raises `DamagedData`, `StoreError`."""
    return check_content_name(key, vault.replicas.ask(replica, reading(key)))


def _locked_until(replica: Replica, newest: Sequence[Commit]) -> datetime | None:
    """When the first register or references of the newest points may be deleted, by the store."""
    lock = retaining(replica.store)
    if lock is None or not newest or not lock.locks():
        return None
    keys = [layout.snapshot_key(commit.session) for commit in newest]
    keys += [str(commit.body["references"]) for commit in newest]
    times = [lock.locked_until(key) for key in keys]
    known = [time for time in times if time is not None]
    return min(known) if len(known) == len(times) else None
