"""`format.json`: whether the replicas hold a vault, and which."""

from __future__ import annotations

from cellarer.errors import DamagedData, KeyUnusable, ObjectMissing, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.replicas import ReplicaSet


def refuse_absent(replicas: ReplicaSet) -> None:
    """Raise where every replica answers that it holds no vault."""
    answers = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    if all(isinstance(answer, ObjectMissing) for answer in answers.values()):
        raise VaultUnreachable(
            "there is no vault at any replica",
            detail=", ".join(replica.store.url for replica in replicas.replicas),
            hint="check the urls in [[vault.replicas]], or make a vault with `cellarer init`",
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
            raise KeyUnusable(
                "the key belongs to another vault",
                detail=f"key: {vault_id}, vault: {marker.get('vault')}",
                hint="use the keys that `cellarer init` made for this vault",
            )

    replicas.fetch(layout.FORMAT_KEY, check)
