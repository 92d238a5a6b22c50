"""What the replicas hold, compared with each other before anything is copied."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from cellarer.errors import CellarerError, DamagedData, StoreError, UsageError
from cellarer.ports import Store
from cellarer.vault import format as layout
from cellarer.vault.genuine import Trust
from cellarer.vault.marker import vault_at
from cellarer.vault.replicas import AnotherVault, Replica, ReplicaSet
from cellarer.vault.trust import SignedTooLate


def outcome(key: str, register: bytes) -> str:
    """How a session ended, as its register says; the signature is not looked at."""
    return str(layout.parse_json(register, key).get("body", {}).get("outcome"))


def damaged_objects(
    replicas: ReplicaSet, trust: Trust, listings: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> dict[str, set[str]]:
    """Objects that are not as long on one replica as on another, and damaged there; markers."""
    damaged: dict[str, set[str]] = {replica.name: set() for replica in replicas.replicas}

    def look(replica: Replica, key: str) -> None:
        try:
            trust.check(key, replicas.ask(replica, lambda store: store.read(key)))
        except SignedTooLate:
            return
        except DamagedData:
            damaged[replica.name].add(key)
        except StoreError:
            pass  # it is not there, or does not answer any more: copying will tell

    for replica in replicas.replicas:
        look(replica, layout.FORMAT_KEY)
    for found in listings.values():
        sizes: dict[str, int] = {}
        differing = {
            key
            for keys in found.values()
            for key, size in keys.items()
            if sizes.setdefault(key, size) != size
        }
        for key in differing:
            for replica in replicas.replicas:
                if key in found.get(replica.name, {}):
                    look(replica, key)
    return damaged


def repacks_closed(
    replicas: ReplicaSet, replica: Replica, registers: Mapping[str, Mapping[str, int]]
) -> set[str]:
    """The repacks that have another register elsewhere than here: they do not count here."""
    closed = set()
    for key, size in registers[replica.name].items():
        unlike = [name for name, found in registers.items() if found.get(key, size) != size]
        for other in (other for other in replicas.replicas if other.name in unlike):
            try:
                data = replicas.ask(other, partial(_read, key))
                if outcome(key, data) == "repack":
                    closed.add(key)
            except (StoreError, DamagedData):
                closed.add(key)  # it may be one
    return closed


def marked_replicas(replicas: ReplicaSet) -> dict[str, str]:
    """The replicas that hold a vault, which must be the same one: name -> vault id."""
    answers = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    vaults: dict[str, str] = {}
    for name, answer in answers.items():
        if isinstance(answer, bytes):
            try:
                marker = layout.parse_json(answer, layout.FORMAT_KEY)
            except DamagedData:
                continue
            vaults[name] = str(marker.get("vault"))
    if len(set(vaults.values())) > 1:
        # What is signed counts: a marker may be damaged, and still be one.
        vaults = {n: vault_at(replicas, replicas.named(n), v) for n, v in vaults.items()}
    if len(set(vaults.values())) > 1:
        raise UsageError(
            "the replicas hold different vaults",
            detail=", ".join(f"{name}: {vault}" for name, vault in vaults.items()),
            hint="correct the urls in [[vault.replicas]]; nothing was copied",
        )
    return vaults


def silent(name: str, why: CellarerError | None) -> CellarerError:
    """The error for a replica that could not be listed."""
    if why is None:
        return CellarerError(f"replica {name} does not answer", hint="see `cellarer doctor`")
    if isinstance(why, AnotherVault):
        return CellarerError(f"replica {name}: {why}", hint=f"{why.hint}; nothing was copied there")
    hint = why.hint or "see `cellarer doctor`"
    return CellarerError(f"replica {name} cannot be read", detail=str(why), hint=hint)


def _read(key: str, store: Store) -> bytes:
    return store.read(key)
