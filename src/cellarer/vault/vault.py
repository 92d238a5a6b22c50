"""The vault as a whole: made, opened, listed.

Vault.make(...)     a new vault on every replica, with its keys
Vault.open(...)     an existing one, with a write key, an identity, or both
vault.commits()     every committed snapshot, signature checked
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from blake3 import blake3

from cellarer.errors import (
    CellarerError,
    DamagedData,
    KeyUnusable,
    ObjectExists,
    ObjectMissing,
    StoreError,
    VaultUnreachable,
)
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity, WriteKey
from cellarer.vault.replicas import ReplicaSet, unreachable

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
class Made:
    """What a new vault gives to its founder, once."""

    vault_id: str
    write_key: WriteKey
    recipients: tuple[str, ...]
    created: str


class Vault:
    """An open vault. Use `make` or `open`."""

    def __init__(
        self,
        replicas: ReplicaSet,
        vault_id: str,
        config: dict[str, Any],
        roots: dict[str, bytes],
        write_key: WriteKey | None,
        identity: Identity | None,
    ) -> None:
        self.replicas = replicas
        self.id = vault_id
        self.config = config
        self.index_key = roots["index"]
        self.chunk_ids = roots["chunk_ids"]
        self.write_key = write_key
        self.identity = identity
        self.unreadable: dict[str, DamagedData] = {}
        self._session_roots: dict[str, bytes] = {}

    @property
    def recipients(self) -> tuple[str, ...]:
        """Whoever can read what is written now."""
        return tuple(self.config["recipients"])

    @property
    def writers(self) -> dict[str, str]:
        """Writer id -> public signing key."""
        return {writer["id"]: writer["public"] for writer in self.config["writers"]}

    @property
    def admins(self) -> list[str]:
        """The public keys whose signature makes a configuration valid."""
        admins = [self.write_key.admin] if self.write_key else []
        return admins + ([self.identity.admin.public] if self.identity else [])

    @staticmethod
    def prepare(identity: Identity, now: datetime) -> Made:
        """The keys and first objects of a vault that is not made yet."""
        vault_id, writer = crypto.new_key()[:16].hex(), "w-" + crypto.new_key()[:4].hex()
        write_key = WriteKey(
            vault=vault_id,
            writer=writer,
            signing_seed=crypto.new_key(),
            index=crypto.new_key(),
            chunk_ids=crypto.new_key(),
            admin=identity.admin.public,
            recipients=(identity.recipient,),
        )
        return Made(vault_id, write_key, write_key.recipients, layout.time_text(now))

    @staticmethod
    def make(replicas: ReplicaSet, made: Made, identity: Identity) -> None:
        """Make a prepared vault on every replica; all must answer. Refuses where one is already.

        `format.json` comes last: without it there is no vault, only leftovers.
        """
        refuse_existing(replicas)
        for key, data in _first_objects(made, identity):
            _create_everywhere(replicas, key, data)

    @classmethod
    def open(
        cls, replicas: ReplicaSet, write_key: WriteKey | None, identity: Identity | None
    ) -> Vault:
        """Open an existing vault. Raises `KeyUnusable`, `VaultUnreachable`, `DamagedData`."""
        if write_key is None and identity is None:
            raise KeyUnusable(
                "the vault needs a key",
                hint="name vault.write_key, vault.identity or both in cellarer.toml",
            )
        _refuse_absent(replicas)
        if write_key is not None:
            vault_id = write_key.vault
            roots = {"index": write_key.index, "chunk_ids": write_key.chunk_ids}
        else:
            assert identity is not None
            vault_id, roots = _roots(replicas, identity)
        _check_marker(replicas, vault_id)
        admins = [write_key.admin] if write_key else []
        admins += [identity.admin.public] if identity else []
        config = _config(replicas, vault_id, admins)
        return cls(replicas, vault_id, config, roots, write_key, identity)

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
        trusted = list(self.writers.values())

        def check(data: bytes) -> Commit | None:
            body = crypto.verify_signed("snapshot", data, trusted)
            if body.get("session") != session or body.get("vault") != self.id:
                raise DamagedData(f"{key} holds the record of another snapshot")
            if body.get("outcome") != "commit":
                return None
            inner = crypto.unsealed_text(self.index_key, body["sealed"], f"snapshot {session}")
            sha256 = hashlib.sha256(data).hexdigest()
            return Commit(session, str(body["writer"]), inner, sha256, tuple(replicas))

        return self.replicas.fetch(key, check)

    def session_root(self, session: str) -> bytes:
        """The root key of a session; needs the identity."""
        root = self._session_roots.get(session)
        if root is None:
            if self.identity is None:
                raise KeyUnusable(
                    "reading needs an identity, and this host has only a write key",
                    hint="set vault.identity to your age identity file, or run this where it is",
                )
            key = layout.envelope_key(session)
            identity = self.identity

            commitment = self._commitment(session)

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

    def _commitment(self, session: str) -> str:
        """The hash of a session's root key, as its writer signed it."""
        key, trusted = layout.session_key(session), list(self.writers.values())

        def check(data: bytes) -> str:
            body = crypto.verify_signed("session", data, trusted)
            if body.get("session") != session or body.get("vault") != self.id:
                raise DamagedData(f"{key} holds the announcement of another session")
            return str(body.get("commitment"))

        return self.replicas.fetch(key, check)

    def domain_key(self, source: str) -> bytes:
        """The key under which the chunks of one source are named."""
        return crypto.derive(self.chunk_ids, f"cellarer/1/domain/{source}")


def _first_objects(made: Made, identity: Identity) -> list[tuple[str, bytes]]:
    """What a new vault holds, in the order of writing."""
    config: dict[str, object] = {
        "created": made.created,
        "epoch": 0,
        "recipients": list(made.recipients),
        "suite": crypto.SUITE,
        "vault": made.vault_id,
        "writers": [{"id": made.write_key.writer, "public": made.write_key.signer.public}],
    }
    roots = {
        "chunk_ids": made.write_key.chunk_ids.hex(),
        "index": made.write_key.index.hex(),
        "vault": made.vault_id,
    }
    marker = {
        "created": made.created,
        "format": layout.FORMAT_NAME,
        "vault": made.vault_id,
        "version": layout.FORMAT_VERSION,
    }
    rescue = importlib.resources.files("cellarer.vault").joinpath("rescue.py").read_bytes()
    envelope = crypto.seal_to_recipients(layout.canonical_json(roots), made.recipients)
    return [
        (layout.RESCUE_KEY, rescue),
        (layout.config_key(0), identity.admin.sign("config", config)),
        (layout.envelope_key("vault"), envelope),
        (layout.FORMAT_KEY, layout.canonical_json(marker) + b"\n"),
    ]


def refuse_existing(replicas: ReplicaSet) -> None:
    """Raise where a replica does not answer or holds a vault already."""
    answers = replicas.each(lambda store: [o.key for o in store.list("")][:1])
    broken = {n: a for n, a in answers.items() if isinstance(a, CellarerError)}
    if broken:
        raise unreachable("a new vault needs every replica to answer", broken)
    for name, answer in answers.items():
        if answer:
            raise StoreError(
                f"replica {name} is not empty",
                detail=f"it holds {answer[0]}" if isinstance(answer, list) else "",
                hint="a vault is only made in an empty place: name another, or empty it yourself "
                "if it holds the leftovers of an interrupted init",
            )


def _create_everywhere(replicas: ReplicaSet, key: str, data: bytes) -> None:
    answers = replicas.each(lambda store: store.create(key, data))
    problems = {n: a for n, a in answers.items() if isinstance(a, CellarerError)}
    if any(isinstance(problem, ObjectExists) for problem in problems.values()):
        raise StoreError(f"somebody else makes a vault here: {key} appeared just now")
    if problems:
        raise unreachable("a new vault needs every replica to answer", problems)


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
                hint="use the write key that `cellarer init` made for this vault",
            )

    replicas.fetch(layout.FORMAT_KEY, check)


def _config(replicas: ReplicaSet, vault_id: str, admins: Sequence[str]) -> dict[str, Any]:
    """The newest signed configuration that any replica holds."""
    found = {key for keys in replicas.listings(layout.CONFIG_PREFIX).values() for key in keys}
    if not found:
        raise DamagedData(
            "no replica holds the vault's configuration",
            hint="run `cellarer sync` with a replica that has it",
        )
    newest = max(found)

    def check(data: bytes) -> dict[str, Any]:
        config = crypto.verify_signed("config", data, admins)
        if config.get("vault") != vault_id or layout.config_key(config["epoch"]) != newest:
            raise DamagedData(f"{newest} is the configuration of something else")
        return config

    return replicas.fetch(newest, check)


def _roots(replicas: ReplicaSet, identity: Identity) -> tuple[str, dict[str, bytes]]:
    """The vault's id and its root keys, out of the envelope that every recipient can open."""
    key = layout.envelope_key("vault")

    def check(data: bytes) -> tuple[str, dict[str, bytes]]:
        value = layout.parse_json(identity.open(data, key), key)
        roots = {name: _key_in(value, name, key) for name in ("index", "chunk_ids")}
        return str(value.get("vault")), roots

    return replicas.fetch(key, check)


def _key_in(value: dict[str, Any], name: str, what: str) -> bytes:
    try:
        key = bytes.fromhex(value[name])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"{what} holds no {name} key") from error
    if len(key) != crypto.KEY_BYTES:
        raise DamagedData(f"{what} holds no {name} key")
    return key
