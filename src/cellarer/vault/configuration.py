"""The vault's signed configuration: who may read, write, collect and change this very list.

Epochs form a chain: each is signed by an administrator of the one before it and names its bytes.
Whoever opens the vault starts the chain where a key at hand says so, and follows it to its end.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cellarer.errors import DamagedData, KeyUnusable
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.trust import SIGNERS, Role

_EPOCH = re.compile(rf"{layout.CONFIG_PREFIX}\d{{8}}")


@dataclass(frozen=True)
class Administrator:
    """A key that signs configurations. `recipient` says whose identity it follows from.

    It is empty for a key that is itself sealed to all recipients, for those that have none.
    """

    public: str
    recipient: str = ""


@dataclass(frozen=True)
class Retired:
    """A signing key that is trusted for exactly the objects that `vouched` lists, and no other."""

    role: Role
    id: str
    public: str
    vouched: str


@dataclass(frozen=True)
class Configuration:
    """One epoch. `writers` and `collectors` are ids with their public signing keys."""

    epoch: int
    generation: int
    recipients: tuple[str, ...]
    writers: Mapping[str, str]
    collectors: Mapping[str, str]
    admins: tuple[Administrator, ...]
    retired: tuple[Retired, ...]
    body: Mapping[str, Any]
    signer: str
    sha256: str

    @classmethod
    def from_body(cls, body: Mapping[str, Any], signer: str, sha256: str) -> Configuration:
        """What a verified body says. Vaults made before there were more keys lack some fields."""
        try:
            admins = body.get("admins", [{"public": signer, "recipient": body["recipients"][0]}])
            return cls(
                epoch=int(body["epoch"]),
                generation=int(body.get("generation", 0)),
                recipients=tuple(str(r) for r in body["recipients"]),
                writers={str(w["id"]): str(w["public"]) for w in body["writers"]},
                collectors={str(c["id"]): str(c["public"]) for c in body.get("collectors", ())},
                admins=tuple(Administrator(str(a["public"]), str(a["recipient"])) for a in admins),
                retired=tuple(
                    Retired(Role(r["role"]), str(r["id"]), str(r["public"]), str(r["vouched"]))
                    for r in body.get("retired", ())
                ),
                body=body,
                signer=signer,
                sha256=sha256,
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DamagedData("the vault's configuration is not readable") from error

    @property
    def previous(self) -> str:
        """The SHA-256 of the epoch before it."""
        return str(self.body.get("previous", ""))

    def public_keys(self, role: Role) -> tuple[str, ...]:
        """The signing keys that stand for one right."""
        if role is Role.WRITER:
            return tuple(self.writers.values())
        if role is Role.COLLECTOR:
            return tuple(self.collectors.values())
        return tuple(admin.public for admin in self.admins)

    def is_writer(self, writer: str, public: str) -> bool:
        """Whether this key is that of this writer, who may be retired."""
        return self.writers.get(writer) == public or any(
            (r.role, r.id, r.public) == (Role.WRITER, writer, public) for r in self.retired
        )

    def trusted(self, matter: str) -> list[str]:
        """The public keys that may sign a matter of `trust.SIGNERS`."""
        return [public for role in SIGNERS[matter] for public in self.public_keys(role)]

    def retirement(self, public: str, matter: str) -> Retired | None:
        """The retirement of a key that once could sign this matter, if it is retired."""
        roles = SIGNERS[matter]
        return next((r for r in self.retired if r.public == public and r.role in roles), None)


@dataclass(frozen=True)
class Anchors:
    """Where trust starts: `pins` are an epoch with its signer, `own` are keys of the reader."""

    pins: frozenset[tuple[int, str]]
    own: frozenset[str]

    @property
    def oldest(self) -> int:
        """The epoch before which no configuration can be the newest one."""
        return max((epoch for epoch, _ in self.pins), default=0)

    def start(self, epoch: int, signer: str) -> bool:
        """Whether a chain may start with this epoch."""
        return (epoch, signer) in self.pins or signer in self.own


@dataclass(frozen=True)
class Chain:
    """The epochs that follow from each other, oldest first, and what lies behind and does not."""

    epochs: tuple[Configuration, ...]
    refused: Mapping[str, DamagedData]


def epochs(replicas: ReplicaSet) -> list[str]:
    """The names of all epochs that some replica holds, oldest first."""
    listings = replicas.listings(layout.CONFIG_PREFIX).values()
    return sorted({key for keys in listings for key in keys if _EPOCH.fullmatch(key)})


def is_newest(replicas: ReplicaSet, epoch: int) -> bool:
    """Whether no replica that answers holds a later epoch. Raises `VaultUnreachable`."""
    return max(epochs(replicas), default="") <= layout.config_key(epoch)


def read_configuration(
    replicas: ReplicaSet, vault_id: str, anchors: Anchors, names: Iterable[str]
) -> Chain:
    """Follow the chain. Raises `KeyUnusable` or `DamagedData` where it starts nowhere."""
    followed: list[Configuration] = []
    refused: dict[str, DamagedData] = {}
    for name in names:
        newest = followed[-1] if followed else None
        try:
            followed.append(replicas.fetch(name, _Link(name, vault_id, anchors, newest).check))
        except DamagedData as error:
            refused[name] = error
        else:
            refused.clear()  # what lies before the start, or was passed over by who could sign
    if followed and followed[-1].epoch < anchors.oldest:
        raise DamagedData(
            "the vault was set back: its configuration is older than this host's key",
            detail=f"the key knows epoch {anchors.oldest}, the replicas serve {followed[-1].epoch}",
            hint="do not write here; look at the stores, and at a replica that was not set back",
        )
    if followed:
        _refuse_contradiction(followed, anchors)
        return Chain(tuple(followed), refused)
    if not refused:
        raise DamagedData(
            "no replica holds the vault's configuration",
            hint="run `cellarer sync` with a replica that has it",
        )
    if not anchors.pins:
        raise KeyUnusable(
            "this identity alone does not say whose configuration to trust",
            hint="set vault.founder as `cellarer keys list` shows it on a host of this vault, "
            "or set vault.write_key or vault.collect_key beside it",
        )
    raise refused[min(refused)]


def _refuse_contradiction(followed: Iterable[Configuration], anchors: Anchors) -> None:
    """Raise `KeyUnusable` where something that this host trusts says otherwise than the chain."""
    signers = {configuration.epoch: configuration.signer for configuration in followed}
    for epoch, signer in sorted(anchors.pins):
        if signers.get(epoch, signer) != signer:
            raise KeyUnusable(
                f"vault.founder, or a key of this host, names another signer of epoch {epoch}",
                detail=f"{signer} where the vault has {signers[epoch]}",
                hint="correct vault.founder: `cellarer keys list` shows it on a host of this vault",
            )


@dataclass(frozen=True)
class _Link:
    """Checks one epoch against the one before it."""

    name: str
    vault_id: str
    anchors: Anchors
    before: Configuration | None

    def check(self, data: bytes) -> Configuration:
        """The configuration in `data`, if it goes on with the chain."""
        body, signer = crypto.read_signed("config", data)
        same = body.get("vault") == self.vault_id and isinstance(body.get("epoch"), int)
        if not same or layout.config_key(body["epoch"]) != self.name:
            raise DamagedData(f"{self.name} is the configuration of something else")
        if self.before is None:
            trusted = self.anchors.start(body["epoch"], signer)
        else:
            trusted = signer in self.before.public_keys(Role.ADMINISTRATOR)
        if not trusted:
            raise DamagedData(
                f"{self.name} is signed by a key this vault does not know", detail=signer
            )
        found = Configuration.from_body(body, signer, hashlib.sha256(data).hexdigest())
        if self.before and found.previous != self.before.sha256:
            raise DamagedData(f"{self.name} does not follow upon epoch {self.before.epoch}")
        return found
