"""3-2-1-1-0, counted from what was seen: three copies, on two media, one of them off site, one that
nobody can delete, and no errors.

The product itself is the first copy. Where it lies is not known here, so media and places are those
of the vault's replicas alone, and only replicas that were seen to hold the newest point of every
source count at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cellarer.domain.finding import Finding

SUBJECT = "3-2-1-1-0"


@dataclass(frozen=True)
class Place:
    """Where a replica lies.

    What is on the same `medium` is lost together: one disk, one file server, one provider.
    `off_site` is what can be said of it from here, and `basis` why.
    """

    medium: str
    off_site: bool
    basis: str


@dataclass(frozen=True)
class Copy:
    """What was seen of one replica.

    `lacking` says what it does not hold whole of the newest points, empty where it holds them all.
    `immutable_until` is when the first of what was asked for may be deleted, as the store says;
    `refused_delete` says that it kept what it was asked to delete, for its retention.
    """

    replica: str
    place: Place
    lacking: str = ""
    immutable_until: datetime | None = None
    refused_delete: bool = False


@dataclass(frozen=True)
class Facts:
    """What is counted. `errors` are those that stand, `sources` those that have a point."""

    copies: Sequence[Copy]
    errors: Sequence[str] = ()
    sources: Sequence[str] = ()


def count_copies(facts: Facts, now: datetime) -> list[Finding]:
    """One finding for each of the five, a warning where it is not met; in the rule's order."""
    whole = [copy for copy in facts.copies if not copy.lacking]
    if not facts.sources:
        whole = []
    return [
        _copies(facts, whole),
        _media(whole),
        _off_site(whole),
        _immutable(whole, now),
        _errors(facts.errors if facts.sources else [*facts.errors, "no point was proven yet"]),
    ]


def _copies(facts: Facts, whole: Sequence[Copy]) -> Finding:
    found = 1 + len(whole)
    names = ", ".join(["the product itself", *(copy.replica for copy in whole)])
    if not facts.sources:
        names += "; there is no point yet"
    lacking = [f"{copy.replica} {copy.lacking}" for copy in facts.copies if copy.lacking]
    message = "; ".join([f"{_of(found, 3, 'copies')}: {names}", *lacking])
    hint = (
        "take a backup with `cellarer backup`"
        if not facts.sources
        else "bring replicas up to date with `cellarer sync`"
        if lacking
        else "add a replica in [[vault.replicas]] and fill it with `cellarer sync`"
    )
    return _finding("copies", found >= 3, message, hint)


def _media(whole: Sequence[Copy]) -> Finding:
    media: dict[str, list[str]] = {}
    for copy in whole:
        media.setdefault(copy.place.medium, []).append(copy.replica)
    told = "; ".join(f"{', '.join(names)} on {medium}" for medium, names in media.items())
    message = f"{_of(len(media), 2, 'media or providers')}: {told or 'none'}"
    hint = "have another replica on another disk, or with another provider"
    return _finding("copies-media", len(media) >= 2, message, hint)


def _off_site(whole: Sequence[Copy]) -> Finding:
    far = [f"{copy.replica} ({copy.place.basis})" for copy in whole if copy.place.off_site]
    near = [f"{copy.replica} ({copy.place.basis})" for copy in whole if not copy.place.off_site]
    message = f"{_of(len(far), 1, 'off site')}: {', '.join(far) or 'none'}"
    if not far and near:
        message += f"; not counted: {', '.join(near)}"
    hint = "have a replica in a bucket of a cloud, in another place than the product"
    return _finding("copies-off-site", bool(far), message, hint)


def _immutable(whole: Sequence[Copy], now: datetime) -> Finding:
    told = []
    for copy in whole:
        if copy.immutable_until is not None and copy.immutable_until > now:
            told.append(f"{copy.replica} (locked until {copy.immutable_until:%Y-%m-%d})")
        elif copy.refused_delete:
            told.append(f"{copy.replica} (it refused to delete what was just written)")
    message = f"{_of(len(told), 1, 'that nobody can delete')}: {', '.join(told) or 'none'}"
    hint = (
        "set immutable_for on a replica whose bucket has object lock, or a retention policy on the "
        "bucket; see docs/guides/stores.md. A copy that is kept offline cannot be seen from here"
    )
    return _finding("copies-immutable", bool(told), message, hint)


def _errors(errors: Sequence[str]) -> Finding:
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    message = f"{count}: {'; '.join(errors) or 'none'}"
    hint = "run `cellarer verify` and `cellarer status`, which say what to do about each"
    return _finding("copies-errors", not errors, message, hint)


def _of(found: int, wanted: int, what: str) -> str:
    return f"{found} of {wanted} {what}"


def _finding(name: str, met: bool, message: str, hint: str) -> Finding:
    return Finding(name, "info" if met else "warning", SUBJECT, message, "" if met else hint)


def standing_errors(
    proofs: Mapping[str, tuple[str, datetime | None]],
    damaged: Mapping[str, int],
    failed: Mapping[str, str],
    oldest_allowed: datetime,
) -> list[str]:
    """What stands against the copies.

    `proofs` is source -> the proof of its newest point, and when the newest `proven` one was made;
    `damaged` is replica -> objects that are damaged there, `failed` source -> the failed check.
    """
    errors = [
        f"the verification of {source} failed: {check}" for source, check in failed.items() if check
    ]
    for source, (word, proven_at) in proofs.items():
        if proven_at is None:
            errors.append(f"no point of {source} is proven, the newest is {word}")
        elif proven_at < oldest_allowed:
            errors.append(f"the newest proof of {source} is of {proven_at:%Y-%m-%d %H:%M} UTC")
    errors += [f"{count} objects are damaged on {name}" for name, count in damaged.items() if count]
    return errors
