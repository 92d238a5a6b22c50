"""Putting right what is damaged on one replica and whole on another, and keeping book of it.

Beside collecting this is the only place that deletes, and only to write the good bytes where the
damaged ones lay. Healing does not ask whether anything still needs an object: the caller knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from cellarer.errors import DamagedData, ObjectMissing, UsageError
from cellarer.vault import format as layout
from cellarer.vault.configuration import epochs
from cellarer.vault.envelopes import ADMIN, superseded
from cellarer.vault.genuine import Trust, foreign, good_copy
from cellarer.vault.ledger import LedgerEntry, facts_in, record_fact
from cellarer.vault.replicas import Replica
from cellarer.vault.vault import Vault

_OBJECTS_IN_A_FACT = 1000


def whole(vault: Vault, key: str, replica: str) -> bool:
    """Whether a replica has an object as it was written, as far as the keys at hand can tell.

    Where they cannot, the other replicas are asked. Raises `StoreError` where it does not answer,
    and `DamagedData` where nobody can tell.
    """
    return _better_than(vault, key, _held(vault, key, replica), replica) is None


def heal(vault: Vault, key: str, replica: str) -> bool:
    """Give a replica back an object that it lost or holds damaged; False if it was whole.

    The good bytes come from another replica, and are certain: by their hash, signature or seal, or
    because all others agree. Raises `DamagedData` where there are none such, and `StoreError` where
    the replica refuses; it refuses to delete where objects are locked. Raises `UsageError` where
    the replica holds another vault.
    """
    held = _held(vault, key, replica)
    good = _better_than(vault, key, held, replica)
    if good is None:
        return False
    if foreign(vault.replicas, _replica(vault, replica), vault.id):
        # Objects of two vaults have the same names: nothing of the other one is touched.
        raise UsageError(
            f"replica {replica} holds another vault",
            hint="correct its url in [[vault.replicas]]",
        )
    store = _replica(vault, replica).store
    if held is not None:
        store.delete(key)
    store.create(key, good)
    if store.read(key) != good:
        raise DamagedData(
            f"replica {replica} does not keep {key} as it is written",
            hint="replace the disk, or the store, of this replica",
        )
    return True


def record_damage(vault: Vault, replica: str, keys: Collection[str], now: datetime) -> None:
    """Write into the ledger that these objects are damaged or lost on a replica."""
    _record(vault, "damage", replica, keys, now)


def record_repair(vault: Vault, replica: str, keys: Collection[str], now: datetime) -> None:
    """Write into the ledger that these objects are whole there again."""
    _record(vault, "repair", replica, keys, now)


def standing_damage(entries: Iterable[LedgerEntry]) -> dict[str, dict[str, datetime]]:
    """Replica -> object -> when it was found damaged, for what was not repaired since."""
    standing: dict[str, dict[str, datetime]] = {}
    for fact in facts_in(entries, "damage", "repair"):
        objects = standing.setdefault(str(fact["replica"]), {})
        for key in map(str, fact["objects"]):
            if fact["type"] == "damage":
                objects[key] = layout.parse_time(str(fact["time"]))
            else:
                objects.pop(key, None)
    return {replica: objects for replica, objects in standing.items() if objects}


def damaged_on(entries: Iterable[LedgerEntry], replicas: Collection[str]) -> set[str]:
    """The objects that stand damaged on any of these replicas."""
    standing = standing_damage(entries)
    return {key for name in replicas for key in standing.get(name, ())}


def _better_than(vault: Vault, key: str, held: bytes | None, replica: str) -> bytes | None:
    """What should be there instead of `held`; None where that is as it should be."""
    lost_admin = held is None and key.startswith(layout.KEYS_PREFIX + ADMIN)
    if lost_admin or (key.startswith(layout.KEYS_PREFIX) and key in _superseded(vault)):
        return None  # it may be sealed to somebody who was removed: never brought back
    trust = Trust.of(vault)
    if held is not None and _certain(trust, key, held):
        return None
    good, certain = good_copy(vault.replicas, trust, key, besides=replica)
    if held == good:
        return None
    if not certain:
        raise DamagedData(
            f"nobody can tell whether {key} is whole",
            detail="the replicas differ, or only one has it",
            hint="run this with the identity in the config, or with more replicas",
        )
    return good


def _superseded(vault: Vault) -> set[str]:
    listings = vault.replicas.listings(layout.KEYS_PREFIX).values()
    envelopes = {key for found in listings for key in found}
    return superseded(envelopes, len(epochs(vault.replicas)) - 1)


def _certain(trust: Trust, key: str, data: bytes) -> bool:
    try:
        return trust.check(key, data)
    except DamagedData:
        return False


def _held(vault: Vault, key: str, replica: str) -> bytes | None:
    try:
        return vault.replicas.ask(_replica(vault, replica), lambda store: store.read(key))
    except (ObjectMissing, DamagedData):
        return None


def _replica(vault: Vault, name: str) -> Replica:
    return next(replica for replica in vault.replicas.replicas if replica.name == name)


def _record(vault: Vault, matter: str, replica: str, keys: Collection[str], now: datetime) -> None:
    ordered = sorted(keys)
    for start in range(0, len(ordered), _OBJECTS_IN_A_FACT):
        objects = ordered[start : start + _OBJECTS_IN_A_FACT]
        fact: Mapping[str, object] = {"objects": objects, "replica": replica, "type": matter}
        record_fact(vault, fact, now)
