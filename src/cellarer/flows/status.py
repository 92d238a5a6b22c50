"""How things stand: newest points and their proofs, replicas, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cellarer.domain.quantity import about_duration
from cellarer.domain.snapshot import Proof, RestorePoint
from cellarer.errors import CellarerError
from cellarer.vault.vault import Vault

PROOF_MAY_BE_OLD = timedelta(hours=24)
"""Without a `schedule.verify`, a newest proof older than a day is an alarm."""


@dataclass(frozen=True)
class SourceStatus:
    """The newest point of one source. Ages are None where there is no point or no proof."""

    name: str
    point: str | None
    age_seconds: float | None
    proof: str | None
    proof_age_seconds: float | None
    points: int
    failed: str = ""


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica: whether it answers, and how many points it lacks."""

    name: str
    url: str
    reachable: bool
    behind_points: int
    message: str


@dataclass(frozen=True)
class Alarm:
    """Something that must not stay so."""

    subject: str
    message: str
    hint: str


@dataclass(frozen=True)
class Status:
    """The whole picture."""

    sources: Sequence[SourceStatus]
    replicas: Sequence[ReplicaStatus]
    alarms: Sequence[Alarm]


def status(
    vault: Vault,
    points: Sequence[RestorePoint],
    every: Mapping[str, timedelta | None],
    verify_every: timedelta | None,
    now: datetime,
) -> Status:
    """Judge the points (newest first) and the replicas.

    `every` has each configured source with the time between its backups, None where unset.
    """
    sources = [_source(name, points, now) for name in every]
    replicas = _replicas(vault, points)
    alarms = [
        alarm
        for source in sources
        for alarm in _source_alarms(source, every[source.name], verify_every)
    ]
    alarms += [alarm for replica in replicas for alarm in _replica_alarms(replica)]
    alarms += [Alarm(f"vault: {key}", str(e), e.hint) for key, e in vault.unreadable.items()]
    return Status(sources, replicas, alarms)


def _source(name: str, points: Sequence[RestorePoint], now: datetime) -> SourceStatus:
    own = [point for point in points if point.source == name]
    if not own:
        return SourceStatus(name, None, None, None, None, 0)
    newest = own[0]
    proven = next((p.proof_time for p in own if p.proof == Proof.PROVEN and p.proof_time), None)
    return SourceStatus(
        name=name,
        point=newest.id,
        age_seconds=(now - newest.time).total_seconds(),
        proof=newest.proof.word,
        proof_age_seconds=(now - proven).total_seconds() if proven else None,
        points=len(own),
        failed=newest.failed,
    )


def _replicas(vault: Vault, points: Sequence[RestorePoint]) -> list[ReplicaStatus]:
    answers = vault.replicas.each(lambda store: next(iter(store.list("snapshots/")), None))
    states = []
    for replica in vault.replicas.replicas:
        answer = answers[replica.name]
        reachable = not isinstance(answer, CellarerError)
        behind = sum(point.replicas.get(replica.name) == "behind" for point in points)
        message = str(answer) if isinstance(answer, CellarerError) else ""
        url = replica.store.url
        states.append(
            ReplicaStatus(replica.name, url, reachable, behind if reachable else 0, message)
        )
    return states


def _source_alarms(
    source: SourceStatus, every: timedelta | None, verify_every: timedelta | None
) -> list[Alarm]:
    subject = f"sources.{source.name}"
    if source.age_seconds is None:
        hint = f"take one with `cellarer backup {source.name}`"
        return [Alarm(subject, "has no restore point", hint)]
    alarms = []
    if source.failed:
        message = f"the verification of its newest point failed: {source.failed}"
        hint = f"run `cellarer verify {source.name}`, and take a new backup"
        alarms.append(Alarm(subject, message, hint))
    if every is not None and source.age_seconds > 1.5 * every.total_seconds():
        age = about_duration(source.age_seconds)
        message = f"the newest point is {age} old, and one is due every {every}"
        alarms.append(Alarm(subject, message, "see why the scheduled backup did not run"))
    limit = (verify_every or PROOF_MAY_BE_OLD).total_seconds() * 1.5
    if source.proof_age_seconds is None:
        hint = f"run `cellarer verify {source.name}`"
        alarms.append(Alarm(subject, "no point of it is proven", hint))
    elif source.proof_age_seconds > limit:
        age = about_duration(source.proof_age_seconds)
        hint = f"run `cellarer verify {source.name}`"
        alarms.append(Alarm(subject, f"its newest proof is {age} old", hint))
    return alarms


def _replica_alarms(replica: ReplicaStatus) -> list[Alarm]:
    subject = f"vault.replicas.{replica.name}"
    if not replica.reachable:
        return [Alarm(subject, replica.message, "see `cellarer doctor`")]
    if replica.behind_points:
        message = f"lacks {replica.behind_points} restore points"
        return [Alarm(subject, message, "bring it up to date with `cellarer sync`")]
    return []
