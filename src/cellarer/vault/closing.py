"""Sessions that others close: who is silent for too long can commit nothing any more."""

from __future__ import annotations

from collections.abc import Iterable

from cellarer.errors import DamagedData, ObjectExists, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.registers import signed_register
from cellarer.vault.vault import Vault


def abort(vault: Vault, session: str) -> None:
    """Close a session wherever it has no register. What comes first stays.

    Raises `KeyUnusable` without the right, and `StoreError` where a replica refuses.
    """
    # Not the writer's key, though a host may have that as well: it ends its own sessions only.
    signer = vault.signer_for("collection")
    data = signed_register(signer, vault, session, signer.public, "abort")
    for replica in vault.replicas.replicas:
        try:
            replica.store.create(layout.snapshot_key(session), data)
        except ObjectExists:
            continue


def own_repacks(vault: Vault, public: str, sessions: Iterable[str]) -> set[str]:
    """Those of some open sessions that are repacks of this key.

    Whoever holds it repacks one after the other, so these have died. Where two hosts share the
    key, the one that is closed has copied in vain, and nothing else.
    """
    found = set()
    for session in sessions:
        try:
            announced = vault.announcement(session)
        except (DamagedData, VaultUnreachable):
            continue  # then it is waited for, like all others
        if announced.get("repacker") == public:
            found.add(session)
    return found
