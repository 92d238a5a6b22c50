"""The ledger: signed, chained facts about the vault that live in the vault, proofs first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.replicas import unreachable
from cellarer.vault.trust import FACTS
from cellarer.vault.vault import Vault


def record_fact(vault: Vault, fact: Mapping[str, object], now: datetime) -> None:
    """Append a fact to the ledger of every replica that answers; `catch_up` serves the others.

    `fact["type"]` is one of `trust.FACTS`; its time is added. Raises `KeyUnusable` where no key at
    hand may claim it, `VaultUnreachable` where no replica takes it.
    """
    key, matter = layout.ledger_key(now), str(fact["type"])
    inner = {**fact, "time": layout.time_text(now)}
    signer = vault.signer_for(matter)
    body: dict[str, object] = {
        "key": key,
        "previous": _head(vault),
        "sealed": crypto.sealed_text(vault.index_key, inner, f"ledger {key}"),
        "vault": vault.id,
    }
    data = signer.sign("ledger", body)
    answers = vault.replicas.each(lambda store: store.create(key, data))
    if all(isinstance(answer, CellarerError) for answer in answers.values()):
        raise unreachable("no replica takes the ledger's entry", answers)


def facts(vault: Vault, *types: str) -> list[dict[str, Any]]:
    """The facts of these types (all that are known where none is named), oldest first.

    Each was signed by a key that may claim it. An entry that was not, or is damaged on every
    replica, is told of in `vault.unreadable`.
    """
    keys: set[str] = set()
    for found in vault.replicas.listings(layout.LEDGER_PREFIX).values():
        keys.update(found)
    wanted = types or tuple(FACTS)
    return [
        fact for fact in vault.gather(keys, lambda k: _fact(vault, k)) if fact["type"] in wanted
    ]


def record_proof(vault: Vault, proof: ProofRecord) -> None:
    """Append a proof to the ledger. Raises as `record_fact`."""
    fact: dict[str, object] = {
        "checks": [[c.name, c.passed, c.expected, c.found] for c in proof.checks],
        "passed": proof.passed,
        "point": proof.point,
        "proof": proof.proof.word,
        "seconds": proof.seconds,
        "source": proof.source,
        "type": "proof",
    }
    record_fact(vault, fact, proof.time)


def proofs(vault: Vault) -> list[ProofRecord]:
    """All proofs that some replica has, oldest first."""
    return [_proof(fact) for fact in facts(vault, "proof")]


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


def _head(vault: Vault) -> str:
    """The SHA-256 of the newest entry: each entry vouches for those before it."""
    listings = vault.replicas.listings(layout.LEDGER_PREFIX).values()
    newest = max((max(found) for found in listings if found), default="")
    if not newest:
        return ""
    return vault.replicas.fetch(newest, lambda data: hashlib.sha256(data).hexdigest())


def _fact(vault: Vault, key: str) -> dict[str, Any]:
    def check(data: bytes) -> dict[str, Any]:
        body, signer = crypto.read_signed("ledger", data)
        vault.check_signer(key, data, signer, "ledger")
        if body.get("key") != key or body.get("vault") != vault.id:
            raise DamagedData(f"{key} holds another entry of a ledger")
        fact = crypto.unsealed_text(vault.index_key, str(body.get("sealed")), f"ledger {key}")
        matter = fact.setdefault("type", "")
        if matter in FACTS:
            vault.check_signer(key, data, signer, matter)
        return fact

    return vault.replicas.fetch(key, check)


def _proof(fact: Mapping[str, Any]) -> ProofRecord:
    return ProofRecord(
        point=str(fact["point"]),
        source=str(fact["source"]),
        proof=Proof[str(fact["proof"]).upper()],
        passed=bool(fact["passed"]),
        time=layout.parse_time(str(fact["time"])),
        seconds=float(str(fact["seconds"])),
        checks=tuple(Check(*check) for check in fact["checks"]),
    )
