"""How things stand: newest points and their proofs, replicas, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cellarer.domain.finding import Finding
from cellarer.domain.quantity import about_duration, about_size
from cellarer.domain.snapshot import Proof, RestorePoint, ahead, behind_the_clock
from cellarer.errors import CellarerError, DamagedData, ObjectMissing
from cellarer.vault import format as layout
from cellarer.vault.replicas import AnotherVault, Replica
from cellarer.vault.vault import Vault

PROOF_MAY_BE_OLD = timedelta(hours=24)
"""Without a `schedule.verify`, a newest proof older than a day is an alarm."""


@dataclass(frozen=True)
class SourceStatus:
    """The newest point of one source, by the order of commits.

    Ages are of the newest point and proof that are not dated in the future, None where there are
    none; `future` is what is dated so, with how far in seconds; `behind` are points that were
    committed after one that is dated later, with how much.
    """

    name: str
    point: str | None
    age_seconds: float | None
    proof: str | None
    proof_age_seconds: float | None
    points: int
    failed: str = ""
    flaws: int = 0
    future: Mapping[str, float] = field(default_factory=dict)
    behind: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scrubs:
    """When each replica was last read wholly, and how often that is wanted; None: not at all."""

    last: Mapping[str, datetime | None]
    every: timedelta | None


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica: whether it answers, and what it lacks.

    `behind_bytes` is what the backups stored that it lacks, `oldest_debt_seconds` how long ago the
    first of them was taken, None where it lacks none; `last_error` says why the newest backup was
    taken without it.
    """

    name: str
    url: str
    reachable: bool
    behind_points: int
    message: str
    behind_bytes: int = 0
    oldest_debt_seconds: float | None = None
    last_error: str = ""
    scrubbed: datetime | None = None
    """When all of it was last read, in one run or in several."""
    behind_wal: int = 0
    """Files of write-ahead log that another replica has."""


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
    findings: Sequence[Finding] = (),
    scrubs: Scrubs | None = None,
    wal_debts: Mapping[str, int] | None = None,
) -> Status:
    """Judge the points (newest first) and the replicas.

    `every` has each configured source with the time between its backups, None where unset; the
    errors among `findings` are alarms, too. `scrubs` says when replicas were read, `wal_debts` how
    many files of write-ahead log each of them lacks.
    """
    sources = [_source(name, points, now) for name in every]
    last = scrubs.last if scrubs else {}
    replicas = [
        replace(
            _replica(vault, r, marker, points, now),
            scrubbed=last.get(r.name),
            behind_wal=(wal_debts or {}).get(r.name, 0),
        )
        for r, marker in _markers(vault)
    ]
    alarms = [
        alarm
        for source in sources
        for alarm in _source_alarms(source, every[source.name], verify_every)
    ]
    alarms += [alarm for replica in replicas for alarm in _replica_alarms(replica)]
    alarms += [a for r in replicas for a in _scrub_alarms(r, points, scrubs, now)]
    alarms += [Alarm(f"vault: {key}", str(e), e.hint) for key, e in vault.unreadable.items()]
    alarms += [Alarm(f.subject, f.message, f.hint) for f in findings if f.level == "error"]
    return Status(sources, replicas, alarms)


def _source(name: str, points: Sequence[RestorePoint], now: datetime) -> SourceStatus:
    own = [point for point in points if point.source == name]
    if not own:
        return SourceStatus(name, None, None, None, None, 0)
    newest = own[0]
    times = [point.time for point in own if not ahead(point.time, now)]
    proofs = [p.proof_time for p in own if p.proof == Proof.PROVEN and p.proof_time]
    future = {point.id: early for point in own if (early := ahead(point.time, now))}
    future |= {
        f"the proof of {point.id}": early
        for point in own
        if point.proof_time and (early := ahead(point.proof_time, now))
    }
    return SourceStatus(
        name=name,
        point=newest.id,
        age_seconds=_age(times, now),
        proof=newest.proof.word,
        proof_age_seconds=_age([time for time in proofs if not ahead(time, now)], now),
        points=len(own),
        failed=newest.failed,
        flaws=newest.flaws,
        future={what: early.total_seconds() for what, early in future.items()},
        behind={p: by.total_seconds() for p, by in behind_the_clock(own, now).items()},
    )


def _age(times: Sequence[datetime], now: datetime) -> float | None:
    return max((now - max(times)).total_seconds(), 0.0) if times else None


def _markers(vault: Vault) -> list[tuple[Replica, bytes | CellarerError]]:
    answers = vault.replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    return [(replica, answers[replica.name]) for replica in vault.replicas.replicas]


def _replica(
    vault: Vault,
    replica: Replica,
    marker: bytes | CellarerError,
    points: Sequence[RestorePoint],
    now: datetime,
) -> ReplicaStatus:
    foreign = isinstance(marker, AnotherVault)
    reachable = (
        not isinstance(marker, CellarerError) or isinstance(marker, ObjectMissing) or foreign
    )
    # Of one that does not answer nobody knows what it lacks, and another vault lacks nothing.
    known = reachable and not foreign
    owed = [p for p in points if known and p.replicas.get(replica.name) == "behind"]
    oldest = min((point.time for point in owed), default=None)
    return ReplicaStatus(
        name=replica.name,
        url=replica.store.url,
        reachable=reachable,
        behind_points=len(owed),
        message=_message(vault, marker),
        behind_bytes=sum(point.stored_bytes for point in owed),
        oldest_debt_seconds=_age([oldest], now) if oldest else None,
        last_error=points[0].behind.get(replica.name, "") if points else "",
    )


def _scrub_alarms(
    replica: ReplicaStatus, points: Sequence[RestorePoint], scrubs: Scrubs | None, now: datetime
) -> list[Alarm]:
    """One that was never read is late when its oldest point is."""
    if scrubs is None or scrubs.every is None or not replica.reachable:
        return []
    begun = [point.time for point in points if point.replicas.get(replica.name) == "stored"]
    since = replica.scrubbed or min(begun, default=now)
    if now - since <= 1.5 * scrubs.every:
        return []
    subject, hint = f"vault.replicas.{replica.name}", f"`cellarer scrub --replica {replica.name}`"
    if replica.scrubbed is None:
        return [Alarm(subject, "was never scrubbed wholly", f"run {hint}")]
    age = about_duration((now - since).total_seconds())
    message = f"was last scrubbed wholly {age} ago, which is wanted every {scrubs.every}"
    return [Alarm(subject, message, f"see why the scheduled scrub did not run; run {hint}")]


def _message(vault: Vault, marker: bytes | CellarerError) -> str:
    """What is wrong with a replica as a whole, by what it answered for its `format.json`."""
    if isinstance(marker, ObjectMissing):
        return "holds no vault"
    if isinstance(marker, AnotherVault):
        return f"holds another vault, {marker.found}"
    if isinstance(marker, CellarerError):
        return str(marker)
    try:
        found = layout.parse_json(marker, layout.FORMAT_KEY).get("vault")
    except DamagedData as error:
        return str(error)
    # Of a replica that is another vault, its signed configuration says so.
    return (
        "" if found == vault.id else f"its {layout.FORMAT_KEY} is damaged: it names vault {found}"
    )


def _source_alarms(
    source: SourceStatus, every: timedelta | None, verify_every: timedelta | None
) -> list[Alarm]:
    subject = f"sources.{source.name}"
    if source.point is None:
        hint = f"take one with `cellarer backup {source.name}`"
        return [Alarm(subject, "has no restore point", hint)]
    alarms = _future_alarms(subject, source.future) + _behind_alarms(subject, source.behind)
    if source.failed:
        message = f"the verification of its newest point failed: {source.failed}"
        hint = f"run `cellarer verify {source.name}`, and take a new backup"
        alarms.append(Alarm(subject, message, hint))
    if source.flaws:
        message = f"{source.flaws} pages of its newest point were damaged at its source"
        hint = (
            f"`cellarer verify {source.name}` names them; bring what they belong to back from an "
            "older point, on the server, then take a new backup"
        )
        alarms.append(Alarm(subject, message, hint))
    if every is not None and (source.age_seconds or 0) > 1.5 * every.total_seconds():
        age = about_duration(source.age_seconds or 0)
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


def _future_alarms(subject: str, future: Mapping[str, float]) -> list[Alarm]:
    if not future:
        return []
    what, seconds = next(iter(future.items()))
    more = f", and {len(future) - 1} more" if len(future) > 1 else ""
    message = f"{what} is dated {about_duration(seconds)} in the future{more}"
    return [Alarm(subject, message, "set the clocks of backup hosts by NTP; take a new backup")]


def _behind_alarms(subject: str, behind: Mapping[str, float]) -> list[Alarm]:
    if not behind:
        return []
    what, seconds = next(iter(behind.items()))
    more = f", and {len(behind) - 1} more" if len(behind) > 1 else ""
    later = about_duration(seconds)
    message = f"{what} was committed after a point that is dated {later} later{more}"
    hint = "a clock went back: set the clocks of backup hosts by NTP; take a new backup"
    return [Alarm(subject, message, hint)]


def _replica_alarms(replica: ReplicaStatus) -> list[Alarm]:
    subject = f"vault.replicas.{replica.name}"
    if not replica.reachable:
        return [Alarm(subject, replica.message, "see `cellarer doctor`")]
    if replica.message:
        hint = (
            "mount it if it is a disk, and correct its url if it is another vault; `cellarer sync` "
            "fills an empty replica and heals a damaged one"
        )
        return [Alarm(subject, replica.message, hint)]
    if replica.behind_points:
        age = about_duration(replica.oldest_debt_seconds or 0)
        one = replica.behind_points == 1
        points = "1 restore point" if one else f"{replica.behind_points} restore points"
        oldest = "" if one else "the oldest "
        message = f"lacks {points} of {about_size(replica.behind_bytes)}, {oldest}for {age}"
        if replica.last_error:
            message += f"; the newest backup went on without it: {replica.last_error}"
        return [Alarm(subject, message, "bring it up to date with `cellarer sync`")]
    if replica.behind_wal:
        message = f"lacks {replica.behind_wal} files of write-ahead log that another replica has"
        return [Alarm(subject, message, "bring it up to date with `cellarer sync`")]
    return []
