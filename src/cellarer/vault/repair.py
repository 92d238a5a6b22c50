"""Putting right what is damaged on one replica and whole on another, and keeping book of it.

Beside collecting this is the only place that deletes, and only to write the good bytes where the
damaged ones lay. Healing does not ask whether anything still needs an object: the caller knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime

from cellarer.errors import DamagedData, ObjectMissing, StoreError, UsageError
from cellarer.vault import format as layout
from cellarer.vault.configuration import epochs
from cellarer.vault.envelopes import ADMIN, VAULT, VaultKeys, superseded
from cellarer.vault.format import check_content_name
from cellarer.vault.genuine import Trust, good_copy
from cellarer.vault.index import RecordPlaces
from cellarer.vault.ledger import LedgerEntry, facts_in, record_fact
from cellarer.vault.manifest import record_places
from cellarer.vault.marker import foreign
from cellarer.vault.moved import lie_among, tables_on
from cellarer.vault.registers import Repack
from cellarer.vault.roundlog import fenced
from cellarer.vault.trust import SignedTooLate
from cellarer.vault.vault import Commit, Vault

_OBJECTS_IN_A_FACT = 1000
_COLLECTED = (layout.PACKS_PREFIX, layout.META_PREFIX, layout.INDEX_PREFIX)


def whole(vault: Vault, key: str, replica: str) -> bool:
    """Whether a replica has an object as it was written, as far as the keys at hand can tell.

    Where they cannot, the other replicas are asked. Raises `StoreError` where it does not answer,
    and `DamagedData` where nobody can tell.
    """
    try:
        return _better_than(vault, key, _held(vault, key, replica), replica) is None
    except SignedTooLate:
        return True  # it counts for nothing, so nothing of it can be damaged


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
    if foreign(vault.replicas, vault.replicas.named(replica), vault.id):
        # Objects of two vaults have the same names: nothing of the other one is touched.
        raise UsageError(
            f"replica {replica} holds another vault",
            hint="correct its url in [[vault.replicas]]",
        )
    store = vault.replicas.named(replica).store
    if key.startswith(layout.SNAPSHOTS_PREFIX):
        good = _register(vault, key, held, replica, good)
    if held is None:
        store.create(key, good)
    else:
        replace_object(vault, replica, key, good)
    if store.read(key) != good:
        raise DamagedData(
            f"replica {replica} does not keep {key} as it is written",
            hint="replace the disk, or the store, of this replica",
        )
    return True


def replace_object(vault: Vault, replica: str, key: str, good: bytes) -> None:
    """Put these bytes where damaged ones lie. Raises `StoreError`.

    Between the deletion and the creation a kill may come. What no other replica has whole was put
    together from damaged copies, and this is one of them: so the whole bytes lie aside meanwhile.
    """
    store, others = vault.replicas.named(replica).store, vault.replicas.replicas
    if not any(_held(vault, key, each.name) == good for each in others if each.name != replica):
        store.delete(layout.aside_key(key))
        store.create(layout.aside_key(key), good)
    store.delete(key)
    store.create(key, good)


def clear_aside(vault: Vault, replica: str) -> None:
    """Remove what lies aside of objects that are whole by now. Raises `StoreError`."""
    store = vault.replicas.named(replica).store
    for aside in [info.key for info in store.list(layout.ASIDE_PREFIX)]:
        with contextlib.suppress(DamagedData):
            if whole(vault, aside.removeprefix(layout.ASIDE_PREFIX), replica):
                store.delete(aside)


def record_damage(
    vault: Vault,
    replica: str,
    keys: Collection[str],
    now: datetime,
    points: Mapping[str, str] | None = None,
    *,
    unopened: bool = False,
) -> None:
    """Write into the ledger that these objects are damaged or lost on a replica.

    `points` are those (with their sources) that need one of them of which no replica has a whole
    copy: they lose their proof. `unopened` are those whose bytes are as they were written, and
    which the identity shows to be no good.
    """
    about: dict[str, object] = {"type": "damage", "points": points or {}}
    _record(vault, about | ({"unopened": True} if unopened else {}), replica, keys, now)


def record_repair(vault: Vault, replica: str, keys: Collection[str], now: datetime) -> None:
    """Write into the ledger that these objects are whole there again."""
    _record(vault, {"type": "repair"}, replica, keys, now)


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


def standing_unopened(entries: Iterable[LedgerEntry], replica: str) -> set[str]:
    """What of it on a replica only the identity can tell: its bytes are as they were written."""
    standing: set[str] = set()
    for fact in facts_in(entries, "damage", "repair"):
        if fact["replica"] == replica:
            if fact["type"] == "repair":
                standing.difference_update(fact["objects"])
            elif fact.get("unopened"):
                standing.update(fact["objects"])
    return standing


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
    if held is None and key.startswith(_COLLECTED) and key in _swept(vault, replica):
        return None  # it was deleted, not lost, and must not come back under its name
    if key.startswith(layout.COLLECTIONS_PREFIX):
        raise DamagedData(
            f"{key} is damaged, and no other replica has it",
            detail="each replica has rounds of its own",
            hint="nothing is collected there any more; make a new replica with `cellarer sync`",
        )
    try:
        good, certain = good_copy(vault.replicas, trust, key, besides=replica)
    except DamagedData:
        if (anew := _roots_anew(vault, key)) is None:
            raise
        return anew
    if held == good:
        return None
    if not certain:
        raise DamagedData(
            f"nobody can tell whether {key} is whole",
            detail="the replicas differ, or only one has it",
            hint="run this with the identity in the config, or with more replicas",
        )
    return good


def _roots_anew(vault: Vault, key: str) -> bytes | None:
    """The vault's own keys sealed once more, where no replica has them whole and this host does.

    None for other objects, for older generations, and without the identity, which tells that the
    copies are lost for certain.
    """
    if key != layout.envelope_key(VAULT, vault.configuration.generation):
        return None
    if vault.write_key is None or vault.identity is None:
        return None
    return VaultKeys(vault.id, vault.index_key, vault.chunk_ids).sealed(vault.recipients)


def _register(vault: Vault, key: str, held: bytes | None, replica: str, good: bytes) -> bytes:
    """What to put in the place of a damaged register. Each replica has its own.

    One may hold a COMMIT and another the ABORT of a collector that came first, after which it may
    have deleted what the snapshot needs. Raises `DamagedData` unless it is certain which it was.
    """
    copies = [good]
    for other in vault.replicas.replicas:
        if other.name != replica:
            with contextlib.suppress(StoreError, DamagedData):
                data = vault.replicas.ask(other, lambda store: store.read(key))
                vault.open_register(key, data)
                copies.append(data)
    commits = {data: ended for data in copies if (ended := vault.open_register(key, data))}
    for data, ended in commits.items():
        if isinstance(ended, Repack) or _holds(vault, ended, replica):
            return data
    # A COMMIT is longer than any ABORT.
    if not commits and held is not None and len(held) == len(good):
        return good
    raise DamagedData(
        f"{key} is not brought back on replica {replica}",
        detail="it may have been closed there, or what its point needs is not all there",
        hint="`cellarer sync` completes the replica",
    )


def _holds(vault: Vault, commit: Commit, replica: str) -> bool:
    """Whether a replica lists everything that a point needs, and deletes nothing of it."""
    references = str(commit.body["references"])

    def check(data: bytes) -> RecordPlaces:
        return record_places(vault.index_key, check_content_name(references, data))

    records = vault.replicas.fetch(references, check)
    swept, condemned = fenced(vault.replicas, vault.replicas.named(replica), vault)
    store, held = vault.replicas.named(replica).store, set[str]()
    for prefix in (layout.PACKS_PREFIX, layout.META_PREFIX, layout.SESSIONS_PREFIX):
        held.update(info.key for info in store.list(prefix))
    held -= swept | condemned
    there = {references, *map(layout.session_key, records.sessions)} <= held
    return there and lie_among(records, held, tables_on(vault, replica, held))


def _swept(vault: Vault, replica: str) -> AbstractSet[str]:
    return fenced(vault.replicas, vault.replicas.named(replica), vault)[0]


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
    """What a replica has under a name; None for nothing that could be read."""
    try:
        return vault.replicas.ask(vault.replicas.named(replica), lambda store: store.read(key))
    except (ObjectMissing, DamagedData):
        return None


def _record(
    vault: Vault,
    about: Mapping[str, object],
    replica: str,
    keys: Collection[str],
    now: datetime,
) -> None:
    ordered = sorted(keys)
    for start in range(0, len(ordered), _OBJECTS_IN_A_FACT):
        objects = ordered[start : start + _OBJECTS_IN_A_FACT]
        record_fact(vault, {**about, "objects": objects, "replica": replica}, now)
