"""Bringing a replica up to date by copying what it lacks. Needs no key that reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cellarer.errors import CellarerError, DamagedData, ObjectMissing, UsageError
from cellarer.ports import Store
from cellarer.vault import format as layout
from cellarer.vault.configuration import epochs
from cellarer.vault.envelopes import superseded
from cellarer.vault.fetcher import check_content_name
from cellarer.vault.replicas import ReplicaSet

_ORDER = (
    layout.CONFIG_PREFIX,
    layout.KEYS_PREFIX,
    layout.SESSIONS_PREFIX,
    layout.PACKS_PREFIX,
    layout.META_PREFIX,
    layout.INDEX_PREFIX,
    layout.SNAPSHOTS_PREFIX,
    layout.LEDGER_PREFIX,
)
_LAST = (layout.RESCUE_KEY, layout.FORMAT_KEY)
"""What makes a vault of a place: copied when all the rest is there."""


@dataclass(frozen=True)
class CaughtUp:
    """What one replica received; `problem` says why it is still behind, if it is."""

    copied_objects: int
    copied_bytes: int
    problem: CellarerError | None = None


def catch_up(
    replicas: ReplicaSet, progress: Callable[[int], None], *, fill_new: bool = True
) -> dict[str, CaughtUp]:
    """Copy to every replica what it lacks of the others; snapshots after all they name.

    The snapshots to copy are listed first: whatever they name is then sure to be listed after.
    Without `fill_new` a replica that holds no vault is left alone: it may be a disk that is not
    mounted. Raises `UsageError` where two replicas hold different vaults.
    """
    marked = _marked(replicas)
    snapshots = replicas.listings(layout.SNAPSHOTS_PREFIX)
    wanted: dict[str, set[str]] = {name: set() for name in snapshots}
    for prefix in _ORDER:
        known = snapshots if prefix == layout.SNAPSHOTS_PREFIX else replicas.listings(prefix)
        everything = {key for found in known.values() for key in found}
        if prefix == layout.KEYS_PREFIX:
            everything -= superseded(everything, len(epochs(replicas)) - 1)
        for name in wanted:
            wanted[name] |= everything - set(known.get(name, {}))
    result = {}
    for replica in replicas.replicas:
        if replica.name not in wanted:
            problem = CellarerError(f"replica {replica.name} does not answer")
            result[replica.name] = CaughtUp(0, 0, problem)
            continue
        if replica.name not in marked and not fill_new:
            problem = CellarerError(
                f"replica {replica.name} holds no vault",
                hint="mount it if it is a disk; `cellarer sync` fills a new one",
            )
            result[replica.name] = CaughtUp(0, 0, problem)
            continue
        result[replica.name] = _copy(replicas, replica.name, wanted[replica.name], progress)
    return result


def _marked(replicas: ReplicaSet) -> set[str]:
    """The replicas that hold a vault, which must be the same one."""
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
        raise UsageError(
            "the replicas hold different vaults",
            detail=", ".join(f"{name}: {vault}" for name, vault in vaults.items()),
            hint="correct the urls in [[vault.replicas]]; nothing was copied",
        )
    return set(vaults)


def _copy(
    replicas: ReplicaSet, name: str, keys: set[str], progress: Callable[[int], None]
) -> CaughtUp:
    store = next(replica.store for replica in replicas.replicas if replica.name == name)
    copied, copied_bytes = 0, 0
    try:
        lacking = [key for key in _LAST if not _has(store, key)]
        for key in [*sorted(keys, key=_rank), *lacking]:
            data = replicas.fetch(key, partial(_checked, key))
            store.create(key, data)
            copied, copied_bytes = copied + 1, copied_bytes + len(data)
            progress(len(data))
    except CellarerError as error:
        return CaughtUp(copied, copied_bytes, error)
    return CaughtUp(copied, copied_bytes)


def _has(store: Store, key: str) -> bool:
    try:
        store.read(key)
    except ObjectMissing:
        return False
    return True


def _rank(key: str) -> tuple[int, str]:
    return next(rank for rank, prefix in enumerate(_ORDER) if key.startswith(prefix)), key


def _checked(key: str, data: bytes) -> bytes:
    named = key.startswith((layout.PACKS_PREFIX, layout.META_PREFIX))
    return check_content_name(key, data) if named else data
