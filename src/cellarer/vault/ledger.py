"""The ledger: signed, chained facts about the vault that live in the vault, proofs first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cellarer.domain.history import in_order
from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError, DamagedData
from cellarer.vault import crypto, log_facts
from cellarer.vault import format as layout
from cellarer.vault.control import ListedObjects
from cellarer.vault.marker import refuse_unmarked
from cellarer.vault.replicas import Replica, unreachable
from cellarer.vault.trust import FACTS
from cellarer.vault.vault import Vault

STORED_WHOLE = "all that it needs is stored whole"
"""The check that a point fails when no replica has something whole that it needs."""

_LOCKS = ("needed_objects", "looked_objects", "extended_objects")
_FIELDS: Mapping[str, Mapping[str, type]] = {
    "hold": {"point": str, "reason": str},
    "release": {"point": str},
    "giving-up": {"points": list, "run": str},
    "retention": {"kept": int, "removed": list},
    "collection": {"replica": str, "swept_bytes": int, "swept_objects": int},
    "repack": dict.fromkeys(("packs", "dead_bytes", "repacked_bytes"), int),
    "damage": {"replica": str, "objects": list},
    "repair": {"replica": str, "objects": list},
    "scrub": {
        **dict.fromkeys(("replica", "depth", "through"), str),
        **dict.fromkeys(("round", "objects", "bytes", "damaged"), int),
        "points": list,
    },
    "immutability": {"replica": str, "locked_until": str, **dict.fromkeys(_LOCKS, int)},
}
"""What a fact of each type holds beside its time; of a proof `_proof` tells."""


@dataclass(frozen=True)
class LedgerEntry:
    """One entry: where it lies, its place in the chain, and the fact that it holds."""

    key: str
    sha256: str
    previous: str
    fact: dict[str, Any]

    @property
    def clock(self) -> str:
        """What sorts by the writer's clock: the names do."""
        return self.key


def record_fact(
    vault: Vault, fact: Mapping[str, object], now: datetime
) -> dict[str, CellarerError]:
    """Append a fact to the ledger of every replica that answers; `catch_up` serves the others.

    Returns those that did not take it, with the reason.

    `fact["type"]` is one of `trust.FACTS`; its time is added. Raises `KeyUnusable` where no key at
    hand may claim it, `VaultUnreachable` where no replica takes it.
    """
    key, matter = layout.ledger_key(now), str(fact["type"])
    inner = {**fact, "time": layout.time_text(now)}
    signer = vault.signer_for(matter)
    body: dict[str, object] = {
        "key": key,
        "previous": _head(vault, key),
        "sealed": crypto.sealed_text(vault.index_key, inner, f"ledger {key}"),
        "vault": vault.id,
    }
    data = signer.sign("ledger", body)

    def append(replica: Replica) -> None:
        # A disk that is not mounted leaves a directory that takes everything.
        refuse_unmarked(vault.replicas, replica, vault.id)
        vault.replicas.ask(replica, lambda store: store.create(key, data))

    answers = vault.replicas.each_of(vault.replicas.replicas, append)
    failed = {name: a for name, a in answers.items() if isinstance(a, CellarerError)}
    if len(failed) == len(answers):
        raise unreachable("no replica takes the ledger's entry", answers)
    return failed


def facts(vault: Vault, *types: str) -> list[dict[str, Any]]:
    """The facts of these types (all that are known where none is named), oldest first.

    Each was signed by a key that may claim it. An entry that was not, or is damaged on every
    replica, is told of in `vault.unreadable`.
    """
    return facts_in(entries(vault), *types)


def facts_in(found: Iterable[LedgerEntry], *types: str) -> list[dict[str, Any]]:
    """The same among entries that were read before."""
    wanted = types or tuple(FACTS)
    return [entry.fact for entry in found if entry.fact["type"] in wanted]


def entries(vault: Vault) -> list[LedgerEntry]:
    """All entries that some replica has, in the order of the chain, types not known included."""
    with vault.listed(layout.LEDGER_PREFIX) as found:
        return in_order(vault.gather(found.sizes, lambda key: _entry(vault, found, key)))


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
    if proof.loss_seconds is not None:
        fact["loss_seconds"] = proof.loss_seconds
    record_fact(vault, fact, proof.time)


def proofs(vault: Vault) -> list[ProofRecord]:
    """All proofs that some replica has, oldest first."""
    return proofs_in(entries(vault))


def proofs_in(found: Iterable[LedgerEntry]) -> list[ProofRecord]:
    """The proofs among these entries, in their order.

    Damage that leaves a point without a whole copy counts as a verification that failed.
    """
    return [record for entry in found for record in _proofs(entry)]


def known_damage(found: Iterable[LedgerEntry], source: str) -> str:
    """What stands for all damage in points of this source that these entries tell of; "" if none.

    A snapshot that was made when as much was known was not built upon what is damaged; of others
    nobody knows, whatever their times say.
    """
    telling = [
        entry.sha256
        for entry in found
        for record in _proofs(entry)
        if record.source == source and record.proof == Proof.STORED and not record.passed
    ]
    return hashlib.sha256("".join(sorted(telling)).encode()).hexdigest() if telling else ""


def _head(vault: Vault, own: str) -> str:
    """The SHA-256 of the last entry: each entry vouches for those before it.

    The last by its name, unless clocks ran ahead: then those dated after `own` are asked, too.
    """
    last: list[LedgerEntry] = []
    with vault.listed(layout.LEDGER_PREFIX) as found:
        for key in sorted(found.sizes, reverse=True):
            last += vault.gather([key], lambda key: _entry(vault, found, key))
            if last and key < own:
                break
    return in_order(last)[-1].sha256 if last else ""


def _entry(vault: Vault, found: ListedObjects, key: str) -> LedgerEntry:
    return found.fetch(key, lambda data: open_entry(vault, key, data))


def open_entry(vault: Vault, key: str, data: bytes) -> LedgerEntry:
    """An entry out of its bytes. Raises `DamagedData`."""
    body, signer = crypto.read_signed("ledger", data)
    vault.check_signer(key, data, signer, "ledger")
    if body.get("key") != key or body.get("vault") != vault.id:
        raise DamagedData(f"{key} holds another entry of a ledger")
    fact = crypto.unsealed_text(vault.index_key, str(body.get("sealed")), f"ledger {key}")
    matter = fact.setdefault("type", "")
    if not isinstance(matter, str):
        raise DamagedData(f"{key} holds a fact of no type")
    if matter in FACTS:
        vault.check_signer(key, data, signer, matter)
        _check_fact(key, fact)
    return LedgerEntry(key, hashlib.sha256(data).hexdigest(), str(body.get("previous")), fact)


def _proofs(entry: LedgerEntry) -> list[ProofRecord]:
    fact = entry.fact
    if fact["type"] == "proof":
        return [_proof(fact)]
    if fact["type"] != "damage":
        return []
    time, objects = layout.parse_time(str(fact["time"])), str(len(fact["objects"]))
    check = Check(STORED_WHOLE, False, "on one replica at least", f"{objects} objects are not")
    return [
        ProofRecord(point, source, Proof.STORED, False, time, 0.0, (check,))
        for point, source in fact.get("points", {}).items()
    ]


def _check_fact(key: str, fact: Mapping[str, Any]) -> None:
    """Raises `DamagedData` where a fact lacks what those who read it rely on."""
    try:
        layout.parse_time(fact["time"])
        for name, kind in _FIELDS.get(fact["type"], {}).items():
            if type(fact[name]) is not kind or (kind is int and fact[name] < 0):
                raise ValueError(f"{name} cannot be {fact[name]!r:.40}")
        match fact["type"]:
            case "proof":
                _proof(fact)
            case "wal" | "wal-removed":
                log_facts.check_fact(fact)
            case "damage" | "repair":
                points = fact.get("points", {})
                names = [*fact["objects"], *points, *points.values()]
                if not all(isinstance(name, str) for name in names):
                    raise ValueError("objects and points have names")
            case "scrub":
                count, of = fact["points"]
                if type(count) is not int or count < 0 or not isinstance(of, str):
                    raise ValueError("it does not say of which points")
            case "immutability":
                layout.parse_time(fact["locked_until"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedData(f"{key} holds a fact that says nothing", detail=str(error)) from error


def _proof(fact: Mapping[str, Any]) -> ProofRecord:
    return ProofRecord(
        point=str(fact["point"]),
        source=str(fact["source"]),
        proof=Proof[str(fact["proof"]).upper()],
        passed=bool(fact["passed"]),
        time=layout.parse_time(str(fact["time"])),
        seconds=float(str(fact["seconds"])),
        checks=tuple(Check(*check) for check in fact["checks"]),
        loss_seconds=float(str(fact["loss_seconds"])) if "loss_seconds" in fact else None,
    )
