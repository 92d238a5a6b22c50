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

GONE = frozenset({"history-gap", "point-gone", "rolled-back"})
"""The findings that say that something is not there any more."""

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
    findings = _points_gone(vault, survey, hint)
    findings += [
        Finding(
            "history-gap", "error", "vault", f"{entry.key} names one before it that is gone", hint
        )
        for entry in gaps(survey.entries)
    ]
    findings += _standing(vault, survey)
    return findings + (_compare(survey, seen, hint) if seen is not None else [])


def refuse_gone(vault: Vault, survey: Survey, seen: SeenHeads) -> None:
    """Raise `DamagedData` where points are gone that were there: what they need may not go, too."""
    hint = _hint(vault)
    findings = [*_points_gone(vault, survey, hint), *_compare(survey, seen, hint)]
    gone = [finding for finding in findings if finding.id in GONE]
    if gone:
        raise DamagedData(
            "the vault lacks what it once had, so nothing is forgotten or deleted",
            detail="; ".join(finding.message for finding in gone),
            hint=f"{gone[0].hint}. What is lost is given up with `cellarer points release`",
        )


def _hint(vault: Vault) -> str:
    if not vault.replicas.away:
        return _ROLLED_BACK
    return f"{', '.join(vault.replicas.away)} does not answer and may have it; else {_ROLLED_BACK}"


def _points_gone(vault: Vault, survey: Survey, hint: str) -> list[Finding]:
    points = {commit.session for commit in survey.commits}
    given_up = [fact for fact in facts_in(survey.entries, "release") if fact.get("gone")]
    let_go = {str(fact["point"]) for fact in given_up}
    known = {str(fact["missed"]) for fact in given_up}
    unlinked = [commit for commit in gaps(survey.commits) if commit.previous not in known]
    named = {record.point: record.source for record in survey.proofs}
    return [
        Finding(
            "history-gap", "error", "vault",
            f"restore point {commit.session} names one before it that is gone", hint,
        )
        for commit in unlinked
    ] + [
        Finding(
            "point-gone", "error", f"sources.{source}",
            f"restore point {point} was verified and is gone", hint,
        )
        for point, source in named.items()
        if point not in {*points, *let_go}
        and layout.snapshot_key(point) not in vault.unreadable
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
    chains: dict[str, Sequence[Chained]] = {"snapshots": survey.commits, "ledger": survey.entries}
    before = seen.load()
    findings, after = [], dict(before)
    for chain, entries in chains.items():
        known = before.get(chain, set())
        lost = known - {entry.sha256 for entry in entries}
        after[chain] = heads(entries) | lost
        if lost:
            what = {"snapshots": "restore points", "ledger": "ledger entries"}[chain]
            message = f"was rolled back: {len(lost)} {what} that this host saw are gone"
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
