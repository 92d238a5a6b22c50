"""The vault as a whole: made, opened, listed.

Vault.open(...)     an existing one, with any of its keys
vault.commits()     every committed snapshot, signature checked
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from blake3 import blake3

from cellarer.errors import (
    DamagedData,
    KeyUnusable,
    ObjectMissing,
    VaultUnreachable,
)
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.configuration import Configuration, read_configuration
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.trust import KEY_SETTINGS, SIGNERS, Role

T = TypeVar("T")

_READERS = 16


@dataclass(frozen=True)
class Commit:
    """A committed snapshot, as its signed record says it."""

    session: str
    writer: str
    body: dict[str, Any]
    sha256: str
    replicas: tuple[str, ...]

    @property
    def source(self) -> str:
        """The source's name in the config."""
        return str(self.body["source"])

    @property
    def started(self) -> datetime:
        """When its session began, by the writer's clock."""
        return layout.parse_time(self.body["started"])

    @property
    def finished(self) -> datetime:
        """When it was committed, by the writer's clock."""
        return layout.parse_time(self.body["finished"])


@dataclass(frozen=True)
class Keys:
    """The keys that a host has: at least one of them."""

    write_key: WriteKey | None
    collect_key: CollectKey | None
    identity: Identity | None

    @property
    def admins(self) -> list[str]:
        """The public keys whose signature makes a configuration valid."""
        pinned = [key.admin for key in (self.write_key, self.collect_key) if key]
        return pinned + ([self.identity.admin.public] if self.identity else [])


@dataclass(frozen=True, repr=False)
class VaultKeys:
    """A vault's id, its index key, and the key that names chunks, which a collector lacks."""

    vault: str
    index: bytes
    chunk_ids: bytes | None


class Vault:
    """An open vault. Use `open`."""

    def __init__(
        self,
        replicas: ReplicaSet,
        configuration: Configuration,
        keys: Keys,
        roots: VaultKeys,
    ) -> None:
        self.replicas = replicas
        self.id = roots.vault
        self.configuration = configuration
        self.index_key = roots.index
        self._chunk_ids = roots.chunk_ids
        self.write_key = keys.write_key
        self.collect_key = keys.collect_key
        self.identity = keys.identity
        self.unreadable: dict[str, DamagedData] = {}
        self._session_roots: dict[str, bytes] = {}

    @property
    def recipients(self) -> tuple[str, ...]:
        """Whoever can read what is written now."""
        return self.configuration.recipients

    @property
    def signers(self) -> dict[Role, crypto.Signer]:
        """The signing keys at hand, trusted or not."""
        held = {
            Role.WRITER: self.write_key.signer if self.write_key else None,
            Role.COLLECTOR: self.collect_key.signer if self.collect_key else None,
            Role.ADMINISTRATOR: self.identity.admin if self.identity else None,
        }
        return {role: signer for role, signer in held.items() if signer}

    def signer_for(self, matter: str) -> crypto.Signer:
        """The least key at hand that may sign a matter of `trust.SIGNERS`.

        Raises `KeyUnusable` where this host has none, or where the vault no longer trusts it.
        """
        held = self.signers
        signers = [held[role] for role in SIGNERS[matter] if role in held]
        for signer in signers:
            if signer.public in self.configuration.trusted(matter):
                return signer
        settings = " or ".join(f"vault.{KEY_SETTINGS[role]}" for role in SIGNERS[matter])
        if signers:
            raise KeyUnusable(
                f"the vault does not trust this host's key for: {matter}",
                detail=f"it is not in the configuration of epoch {self.configuration.epoch}",
                hint=f"put a current key in the place of {settings}",
            )
        raise KeyUnusable(
            f"this host has no key that may sign: {matter}",
            hint=f"set {settings} in cellarer.toml, or run this where it is set",
        )

    @classmethod
    def open(
        cls,
        replicas: ReplicaSet,
        write_key: WriteKey | None,
        identity: Identity | None,
        collect_key: CollectKey | None = None,
    ) -> Vault:
        """Open an existing vault. Raises `KeyUnusable`, `VaultUnreachable`, `DamagedData`."""
        keys = Keys(write_key, collect_key, identity)
        if not any((write_key, collect_key, identity)):
            raise KeyUnusable(
                "the vault needs a key",
                hint="name vault.write_key, vault.collect_key or vault.identity in cellarer.toml",
            )
        _refuse_absent(replicas)
        if write_key is not None:
            roots = VaultKeys(write_key.vault, write_key.index, write_key.chunk_ids)
        elif identity is not None:
            roots = _roots(replicas, identity)
        else:
            assert collect_key is not None
            roots = VaultKeys(collect_key.vault, collect_key.index, None)
        for vault_id in (roots.vault, *(key.vault for key in (collect_key,) if key)):
            _check_marker(replicas, vault_id)
        return cls(replicas, read_configuration(replicas, roots.vault, keys.admins), keys, roots)

    def commits(self) -> list[Commit]:
        """Every committed snapshot that some reachable replica has, oldest first."""
        where: dict[str, list[str]] = {}
        for name, keys in self.replicas.listings(layout.SNAPSHOTS_PREFIX).items():
            for key in keys:
                where.setdefault(key, []).append(name)
        commits = self.gather(where, lambda key: self.commit(key, where[key]))
        if where and not commits:
            # Not one can be read: a wrong key, or a vault that is damaged as a whole.
            raise self.unreadable[min(where)]
        found = [commit for commit in commits if commit is not None]
        return sorted(found, key=lambda commit: (commit.finished, commit.session))

    def gather(self, keys: Iterable[str], read: Callable[[str], T]) -> list[T]:
        """Read many control objects at once, in the order of their keys.

        One that no replica has whole must not take the others with it: it is left out and told of
        in `unreadable`, which `status` and `doctor` report.
        """

        def attempt(key: str) -> list[T]:
            try:
                return [read(key)]
            except DamagedData as error:
                self.unreadable[key] = error
                return []

        with ThreadPoolExecutor(_READERS) as pool:
            return [value for found in pool.map(attempt, sorted(keys)) for value in found]

    def commit(self, key: str, replicas: Iterable[str]) -> Commit | None:
        """One snapshot register; None where it holds an ABORT."""
        session = key.removeprefix(layout.SNAPSHOTS_PREFIX)

        def check(data: bytes) -> Commit | None:
            body, signer = crypto.read_signed("snapshot", data)
            outcome = body.get("outcome")
            if outcome not in ("commit", "abort"):
                raise DamagedData(f"{key} has an outcome that format 1 does not know")
            self.check_signer(key, signer, outcome)
            if body.get("session") != session or body.get("vault") != self.id:
                raise DamagedData(f"{key} holds the record of another snapshot")
            if outcome == "abort":
                self._check_abort(session, signer)
                return None
            inner = crypto.unsealed_text(self.index_key, body["sealed"], f"snapshot {session}")
            sha256 = hashlib.sha256(data).hexdigest()
            return Commit(session, str(body["writer"]), inner, sha256, tuple(replicas))

        return self.replicas.fetch(key, check)

    def check_signer(self, key: str, signer: str, matter: str) -> None:
        """Raises `DamagedData` where an object is signed by a key that may not sign this matter."""
        if signer in self.configuration.trusted(matter):
            return
        known = any(signer in self.configuration.public_keys(role) for role in Role)
        told = f"may not sign: {matter}" if known else "this vault does not know"
        raise DamagedData(f"{key} is signed by a key that {told}", detail=signer)

    def _check_abort(self, session: str, signer: str) -> None:
        """A writer ends its own sessions only; collectors and administrators end any."""
        if signer not in self.configuration.public_keys(Role.WRITER):
            return
        key = layout.session_key(session)
        answers = self.replicas.each(lambda store: store.read(key)).values()
        if all(isinstance(answer, ObjectMissing) for answer in answers):
            return  # collected: nothing of the session is left
        if self.configuration.writers.get(self._announcement(session)["writer"]) != signer:
            raise DamagedData(f"session {session} was ended by another writer than its own")

    def session_root(self, session: str) -> bytes:
        """The root key of a session; needs the identity."""
        root = self._session_roots.get(session)
        if root is None:
            if self.identity is None:
                raise KeyUnusable(
                    "reading needs an identity, and this host has none",
                    hint="set vault.identity to your age identity file, or run this where it is",
                )
            key = layout.envelope_key(session)
            identity = self.identity

            commitment = str(self._announcement(session).get("commitment"))

            def check(data: bytes) -> bytes:
                value = layout.parse_json(identity.open(data, key), key)
                if value.get("session") != session or value.get("vault") != self.id:
                    raise DamagedData(f"{key} holds the key of another session")
                opened = _key_in(value, "root", key)
                if blake3(opened).hexdigest() != commitment:
                    # Anyone can seal to a recipient; the writer's signature vouches for the key.
                    raise DamagedData(f"{key} holds another key than its writer announced")
                return opened

            root = self._session_roots[session] = self.replicas.fetch(key, check)
        return root

    def _announcement(self, session: str) -> dict[str, Any]:
        """What a writer signed when it began the session."""
        key = layout.session_key(session)

        def check(data: bytes) -> dict[str, Any]:
            body, signer = crypto.read_signed("session", data)
            self.check_signer(key, signer, "session")
            if body.get("session") != session or body.get("vault") != self.id:
                raise DamagedData(f"{key} holds the announcement of another session")
            return body

        return self.replicas.fetch(key, check)

    def domain_key(self, source: str) -> bytes:
        """The key under which the chunks of one source are named; a collect key has it not."""
        if self._chunk_ids is None:
            raise KeyUnusable(
                "a collect key does not name chunks",
                hint="set vault.write_key or vault.identity in cellarer.toml",
            )
        return crypto.derive(self._chunk_ids, f"cellarer/1/domain/{source}")


def _refuse_absent(replicas: ReplicaSet) -> None:
    answers = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    if all(isinstance(answer, ObjectMissing) for answer in answers.values()):
        raise VaultUnreachable(
            "there is no vault at any replica",
            detail=", ".join(replica.store.url for replica in replicas.replicas),
            hint="check the urls in [[vault.replicas]], or make a vault with `cellarer init`",
        )


def _check_marker(replicas: ReplicaSet, vault_id: str) -> None:
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


def _roots(replicas: ReplicaSet, identity: Identity) -> VaultKeys:
    """The vault's id and its root keys, out of the envelope that every recipient can open."""
    key = layout.envelope_key("vault")

    def check(data: bytes) -> VaultKeys:
        value = layout.parse_json(identity.open(data, key), key)
        index, chunk_ids = (_key_in(value, name, key) for name in ("index", "chunk_ids"))
        return VaultKeys(str(value.get("vault")), index, chunk_ids)

    return replicas.fetch(key, check)


def _key_in(value: dict[str, Any], name: str, what: str) -> bytes:
    try:
        key = bytes.fromhex(value[name])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"{what} holds no {name} key") from error
    if len(key) != crypto.KEY_BYTES:
        raise DamagedData(f"{what} holds no {name} key")
    return key
