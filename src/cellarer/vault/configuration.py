"""The vault's signed configuration: who may read, write, collect and change this very list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellarer.errors import DamagedData
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.trust import SIGNERS, Role


@dataclass(frozen=True)
class Configuration:
    """One epoch. `writers` and `collectors` are ids with their public signing keys."""

    epoch: int
    recipients: tuple[str, ...]
    writers: Mapping[str, str]
    collectors: Mapping[str, str]
    admins: tuple[str, ...]

    @classmethod
    def from_body(cls, body: Mapping[str, Any], admins: Sequence[str]) -> Configuration:
        """What a verified body says; a vault made before there were collectors has none."""
        try:
            return cls(
                epoch=int(body["epoch"]),
                recipients=tuple(str(r) for r in body["recipients"]),
                writers={str(w["id"]): str(w["public"]) for w in body["writers"]},
                collectors={str(c["id"]): str(c["public"]) for c in body.get("collectors", ())},
                admins=tuple(admins),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedData("the vault's configuration is not readable") from error

    def public_keys(self, role: Role) -> tuple[str, ...]:
        """The signing keys that stand for one right."""
        return {
            Role.WRITER: tuple(self.writers.values()),
            Role.COLLECTOR: tuple(self.collectors.values()),
            Role.ADMINISTRATOR: self.admins,
        }[role]

    def trusted(self, matter: str) -> list[str]:
        """The public keys that may sign a matter of `trust.SIGNERS`."""
        return [public for role in SIGNERS[matter] for public in self.public_keys(role)]


def read_configuration(replicas: ReplicaSet, vault_id: str, admins: Sequence[str]) -> Configuration:
    """The newest signed configuration that any replica holds."""
    found = {key for keys in replicas.listings(layout.CONFIG_PREFIX).values() for key in keys}
    if not found:
        raise DamagedData(
            "no replica holds the vault's configuration",
            hint="run `cellarer sync` with a replica that has it",
        )
    newest = max(found)

    def check(data: bytes) -> Configuration:
        body = crypto.verify_signed("config", data, admins)
        if body.get("vault") != vault_id or layout.config_key(body["epoch"]) != newest:
            raise DamagedData(f"{newest} is the configuration of something else")
        return Configuration.from_body(body, admins)

    return replicas.fetch(newest, check)
