"""Tombstones: retention gives a restore point up, and the register stays as it is.

Each replica has its own; one with a valid signature on any replica counts for all. There is no way
back: what the point alone needed may be deleted from then on.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from cellarer.errors import CellarerError, DamagedData, ObjectExists
from cellarer.ports import Store
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.control import ListedObjects
from cellarer.vault.replicas import Replica, unreachable

if TYPE_CHECKING:
    from cellarer.vault.vault import Vault


def forget(vault: Vault, session: str, reason: str, now: datetime) -> None:
    """Give a restore point up. Raises `KeyUnusable`, `VaultUnreachable` where nobody hears it."""
    signer = vault.signer_for("forgotten")
    body: dict[str, object] = {
        "by": signer.public,
        "reason": reason,
        "session": session,
        "time": layout.time_text(now),
        "vault": vault.id,
    }
    data = signer.sign("forgotten", body)
    key = layout.forgotten_key(session)
    answers = vault.replicas.each(lambda store: store.create(key, data))
    # Another object of that name is the tombstone of somebody who came first.
    if all(
        isinstance(a, CellarerError) and not isinstance(a, ObjectExists) for a in answers.values()
    ):
        raise unreachable(f"no replica takes the tombstone of {session}", answers)


def tombstones(vault: Vault) -> set[str]:
    """The sessions that were given up. One that is damaged everywhere is told in `unreadable`."""
    with vault.listed(layout.FORGOTTEN_PREFIX) as found:
        return set(vault.gather(found.sizes, lambda key: _session(vault, found, key)))


def entomb(vault: Vault, replica: Replica, sessions: AbstractSet[str]) -> None:
    """Copy the tombstones of these sessions to a replica that lacks them.

    Before anything is deleted there: a replica that is left alone must not list points as whole
    that are not.
    """
    listed = vault.replicas.ask(replica, lambda s: [i.key for i in s.list(layout.FORGOTTEN_PREFIX)])
    for key in sorted(set(map(layout.forgotten_key, sessions)) - set(listed)):
        data = vault.replicas.fetch(key, partial(open_tombstone, vault, key))
        vault.replicas.ask(replica, partial(_create, key, data))


def _create(key: str, data: bytes, store: Store) -> None:
    store.create(key, data)


def _session(vault: Vault, found: ListedObjects, key: str) -> str:
    found.fetch(key, partial(open_tombstone, vault, key))
    return key.removeprefix(layout.FORGOTTEN_PREFIX)


def open_tombstone(vault: Vault, key: str, data: bytes) -> bytes:
    """`data`, if a key that may forget signed it as the tombstone of this name."""
    body, signer = crypto.read_signed("forgotten", data)
    vault.check_signer(key, data, signer, "forgotten")
    if layout.forgotten_key(str(body.get("session"))) != key or body.get("vault") != vault.id:
        raise DamagedData(f"{key} is the tombstone of another snapshot")
    return data
