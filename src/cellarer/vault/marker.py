"""Whether the replicas hold a vault, and which: by `format.json`, and by what is signed."""

from __future__ import annotations

import contextlib

from cellarer.errors import (
    DamagedData,
    KeyUnusable,
    ObjectMissing,
    StoreError,
    VaultUnreachable,
)
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.replicas import Replica, ReplicaSet


def marked(replicas: ReplicaSet) -> set[str]:
    """The vaults that the replicas say they hold; raises where all answer that they hold none."""
    answers = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    if all(isinstance(answer, ObjectMissing) for answer in answers.values()):
        raise VaultUnreachable(
            "there is no vault at any replica",
            detail=", ".join(replica.store.url for replica in replicas.replicas),
            hint="mount the disks, and check the urls in [[vault.replicas]]; where there never was "
            "a vault, `cellarer init` makes one",
        )
    found = set()
    for answer in answers.values():
        if isinstance(answer, bytes):
            with contextlib.suppress(DamagedData):
                found.add(str(layout.parse_json(answer, layout.FORMAT_KEY).get("vault")))
    return found


def another_vault(key: str, vault: str) -> KeyUnusable:
    """The error for a key of one vault where there is another."""
    return KeyUnusable(
        "the key belongs to another vault",
        detail=f"key: {key}, vault: {vault}",
        hint="use the keys that `cellarer init` made for this vault",
    )


def check_marker(replicas: ReplicaSet, vault_id: str) -> None:
    """Raise where the replicas hold no vault of this format and this id."""

    def check(data: bytes) -> None:
        marker = layout.parse_json(data, layout.FORMAT_KEY)
        if marker.get("format") != layout.FORMAT_NAME:
            raise DamagedData("this is not a Cellarer vault")
        if marker.get("version") != layout.FORMAT_VERSION:
            raise DamagedData(
                f"the vault has format {marker.get('version')}, this program reads 1",
                hint="use a newer Cellarer",
            )
        if marker.get("vault") != vault_id:
            raise another_vault(vault_id, str(marker.get("vault")))

    replicas.fetch(layout.FORMAT_KEY, check)


def refuse_unmarked(replicas: ReplicaSet, replica: Replica, vault_id: str) -> None:
    """Raise `StoreError` where a replica does not hold the vault now."""
    with contextlib.suppress(ObjectMissing):
        mark = replicas.ask(replica, lambda store: store.read(layout.FORMAT_KEY))
        if layout.parse_json(mark, layout.FORMAT_KEY).get("vault") == vault_id:
            return
    raise StoreError(
        f"replica {replica.name} does not hold this vault",
        hint="mount it if it is a disk; `cellarer sync` fills an empty replica",
    )


def set_foreign_aside(replicas: ReplicaSet, vault_id: str) -> None:
    """Ask the replicas no more that hold another vault: nothing of it belongs to this one."""
    answers = replicas.each_of(
        replicas.replicas, lambda replica: vault_at(replicas, replica, vault_id)
    )
    for name, found in answers.items():
        if isinstance(found, str) and found != vault_id:
            replicas.set_aside(name, found)


def foreign(replicas: ReplicaSet, replica: Replica, vault_id: str) -> bool:
    """Whether a replica holds another vault."""
    return vault_at(replicas, replica, vault_id) != vault_id


def vault_at(replicas: ReplicaSet, replica: Replica, vault_id: str) -> str:
    """The vault that a replica holds, by its signed configuration, or else by its marker.

    `vault_id` where neither can be read.
    """
    try:
        key = layout.config_key(0)
        data = replicas.ask(replica, lambda store: store.read(key))
        found, _ = crypto.read_signed("config", data)
    except (StoreError, DamagedData):
        try:
            data = replicas.ask(replica, lambda store: store.read(layout.FORMAT_KEY))
            found = layout.parse_json(data, layout.FORMAT_KEY)
        except (StoreError, DamagedData):
            return vault_id
    return str(found.get("vault"))
