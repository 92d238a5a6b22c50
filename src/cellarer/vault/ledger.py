"""The ledger: signed, chained facts about the vault that live in the vault, proofs first."""

from __future__ import annotations

import hashlib
from datetime import datetime

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData, KeyUnusable
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.replicas import unreachable
from cellarer.vault.vault import Vault


def record_proof(vault: Vault, proof: ProofRecord) -> None:
    """Append a proof to the ledger of every replica that answers; `catch_up` serves the others.

    Raises `VaultUnreachable` where none takes it.
    """
    fact: dict[str, object] = {
        "checks": [[c.name, c.passed, c.expected, c.found] for c in proof.checks],
        "passed": proof.passed,
        "point": proof.point,
        "proof": proof.proof.word,
        "seconds": proof.seconds,
        "source": proof.source,
        "time": layout.time_text(proof.time),
        "type": "proof",
    }
    _append(vault, fact, proof.time)


def proofs(vault: Vault) -> list[ProofRecord]:
    """All proofs that some replica has, oldest first; signatures checked."""
    keys: set[str] = set()
    for found in vault.replicas.listings(layout.LEDGER_PREFIX).values():
        keys.update(found)
    facts = vault.gather(keys, lambda key: _fact(vault, key))
    return [_proof(fact) for fact in facts if fact.get("type") == "proof"]


def last_damage(vault: Vault, source: str) -> datetime | None:
    """When damage was last found in a point of this source, if ever.

    Nothing older is built upon: a new snapshot that shared its packs would be damaged as well.
    """
    found = [
        record.time
        for record in proofs(vault)
        if record.source == source and record.proof == Proof.STORED and not record.passed
    ]
    return max(found, default=None)


def _append(vault: Vault, fact: dict[str, object], now: datetime) -> None:
    key = layout.ledger_key(now)
    body: dict[str, object] = {
        "key": key,
        "previous": _head(vault),
        "sealed": crypto.sealed_text(vault.index_key, fact, f"ledger {key}"),
        "vault": vault.id,
    }
    data = _signer(vault).sign("ledger", body)
    answers = vault.replicas.each(lambda store: store.create(key, data))
    if all(isinstance(answer, CellarerError) for answer in answers.values()):
        raise unreachable("no replica takes the ledger's entry", answers)


def _head(vault: Vault) -> str:
    """The SHA-256 of the newest entry: each entry vouches for those before it."""
    listings = vault.replicas.listings(layout.LEDGER_PREFIX).values()
    newest = max((max(found) for found in listings if found), default="")
    if not newest:
        return ""
    return vault.replicas.fetch(newest, lambda data: hashlib.sha256(data).hexdigest())


def _signer(vault: Vault) -> crypto.Signer:
    """Who proves can read; a write key alone must not be able to claim a proof."""
    if vault.identity is None:
        raise KeyUnusable(
            "a proof is signed with the identity, and this host has only a write key",
            hint="run `cellarer verify` where vault.identity is set",
        )
    return vault.identity.admin


def _fact(vault: Vault, key: str) -> dict[str, object]:
    def check(data: bytes) -> dict[str, object]:
        body = crypto.verify_signed("ledger", data, vault.admins)
        if body.get("key") != key or body.get("vault") != vault.id:
            raise DamagedData(f"{key} holds another entry of a ledger")
        return crypto.unsealed_text(vault.index_key, str(body.get("sealed")), f"ledger {key}")

    return vault.replicas.fetch(key, check)


def _proof(fact: dict[str, object]) -> ProofRecord:
    checks = fact["checks"]
    assert isinstance(checks, list)
    return ProofRecord(
        point=str(fact["point"]),
        source=str(fact["source"]),
        proof=Proof[str(fact["proof"]).upper()],
        passed=bool(fact["passed"]),
        time=layout.parse_time(str(fact["time"])),
        seconds=float(str(fact["seconds"])),
        checks=tuple(Check(*check) for check in checks),
    )
