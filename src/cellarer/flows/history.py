"""Whether the vault still holds everything that it once held, and holds it whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cellarer.domain.finding import Finding
from cellarer.domain.history import Chained, gaps, heads
from cellarer.errors import DamagedData
from cellarer.flows.points import Survey
from cellarer.vault import format as layout
from cellarer.vault.heads import SeenHeads
from cellarer.vault.ledger import facts_in
from cellarer.vault.repair import standing_damage
from cellarer.vault.vault import Vault

_GONE = frozenset({"history-gap", "point-gone", "rolled-back"})

_CHAINS = ("snapshots", "ledger")
_SHOWN = 16
"""So many characters of a hash are shown, and are enough to name it."""

_ROLLED_BACK = (
    "somebody deleted it, or put an older copy in its place: bring it back by `cellarer sync` "
    "from a replica or a copy that has it, and change the credentials of the replicas"
)


def look_back(vault: Vault, survey: Survey, seen: SeenHeads | None) -> list[Finding]:
    """What is missing from the chains of snapshots and of the ledger, and what `seen` knew of;
    and damage that was found and not repaired.

    What is there is remembered in `seen`; what is missing stays remembered, and is told again.
    """
    hint = _hint(vault)
    findings = [*_unlinked(survey, hint), *_points_gone(vault, survey, hint)]
    findings += _standing(vault, survey)
    return findings + (_compare(survey, seen, hint) if seen is not None else [])


def gone(vault: Vault, survey: Survey, seen: SeenHeads) -> list[Finding]:
    """Of that what is not there any more."""
    return [finding for finding in look_back(vault, survey, seen) if finding.id in _GONE]


def refuse_gone(vault: Vault, survey: Survey, seen: SeenHeads) -> None:
    """Raise `DamagedData` where something is gone that was there.

    What points need that are gone may not go, too; and an entry of the ledger may have been a hold.
    """
    findings = gone(vault, survey, seen)
    if findings:
        raise DamagedData(
            "the vault lacks what it once had, so nothing is forgotten or deleted",
            detail="; ".join(finding.message for finding in findings),
            hint=f"{findings[0].hint}. What is lost for good is given up with `cellarer points "
            "release`, by the id or the hash that is named",
        )


def missed(survey: Survey, seen: SeenHeads | None) -> set[str]:
    """The hashes of what is named, or was seen, and is gone; but for what was given up."""
    unlinked: list[Chained] = [*gaps(survey.commits), *gaps(survey.entries)]
    named = {each.previous for each in unlinked}
    entries: list[Chained] = [*survey.commits, *survey.entries]
    there = {each.sha256 for each in entries}
    chains = seen.load() if seen else {}
    known = {each for chain in _CHAINS for each in chains.get(chain, ())}
    return (named | (known - there)) - _given_up(survey)


def _given_up(survey: Survey) -> set[str]:
    """The ids of points, and the hashes, of which nobody is to be told any more."""
    facts = [fact for fact in facts_in(survey.entries, "release") if fact.get("gone")]
    return {str(fact[key]) for fact in facts for key in ("point", "missed") if fact[key]}


def _unlinked(survey: Survey, hint: str) -> list[Finding]:
    given_up = _given_up(survey)
    found = [(f"restore point {each.session}", each.previous) for each in gaps(survey.commits)]
    found += [(each.key, each.previous) for each in gaps(survey.entries)]
    return [
        Finding(
            "history-gap", "error", "vault",
            f"{what} names one before it that is gone: {previous[:_SHOWN]}", hint,
        )
        for what, previous in found if previous not in given_up
    ]  # fmt: skip


def _hint(vault: Vault) -> str:
    if not vault.replicas.away:
        return _ROLLED_BACK
    return f"{', '.join(vault.replicas.away)} does not answer and may have it; else {_ROLLED_BACK}"


def _points_gone(vault: Vault, survey: Survey, hint: str) -> list[Finding]:
    there = {commit.session for commit in survey.commits} | _given_up(survey)
    named = {record.point: record.source for record in survey.proofs}
    return [
        Finding(
            "point-gone", "error", f"sources.{source}",
            f"restore point {point} was verified and is gone", hint,
        )
        for point, source in named.items()
        if point not in there and layout.snapshot_key(point) not in vault.unreadable
    ]  # fmt: skip


def _standing(vault: Vault, survey: Survey) -> list[Finding]:
    damaged = standing_damage(survey.entries)
    hint = (
        "`cellarer sync` heals what another replica has whole, `cellarer scrub` says what is lost; "
        "see to the disk or store"
    )
    return [
        Finding(
            "damage-stands", "error", f"vault.replicas.{name}",
            _damaged_on(name, damaged[name]), hint,
        )
        for name in (replica.name for replica in vault.replicas.replicas) if name in damaged
    ]  # fmt: skip


def _damaged_on(replica: str, objects: Collection[str]) -> str:
    if len(objects) == 1:
        return f"{min(objects)} is damaged on {replica}"
    return f"{len(objects)} objects are damaged on {replica}, {min(objects)} for one"


def _compare(survey: Survey, seen: SeenHeads, hint: str) -> list[Finding]:
    chains: dict[str, Sequence[Chained]] = dict(
        zip(_CHAINS, (survey.commits, survey.entries), strict=True)
    )
    given_up = _given_up(survey)
    before = seen.load()
    findings, after = [], dict(before)
    for chain, entries in chains.items():
        known = before.get(chain, set())
        lost = known - {entry.sha256 for entry in entries} - given_up
        after[chain] = heads(entries) | lost
        if lost:
            what = {"snapshots": "restore points", "ledger": "ledger entries"}[chain]
            shown = ", ".join(each[:_SHOWN] for each in sorted(lost)[:3])
            message = f"was rolled back: {len(lost)} {what} that this host saw are gone: {shown}"
            forget = f"; if you know why, remove {seen.file} and the check begins anew"
            findings.append(Finding("rolled-back", "error", "vault", message, hint + forget))
    if after != before:
        try:
            seen.keep(after)
        except OSError as error:
            message = f"a rollback of all replicas would not be noticed: {error}"
            fix = f"make {seen.file.parent} writable, or set XDG_STATE_HOME"
            findings.append(Finding("heads-not-kept", "warning", "vault", message, fix))
    return findings
