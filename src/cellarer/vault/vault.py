"""The vault as a whole: made, opened, listed.

Vault.open(...)     an existing one, with any of its keys
vault.commits()     every committed snapshot, signature checked
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from cellarer.errors import (
    DamagedData,
    KeyUnusable,
    VaultUnreachable,
)
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.configuration import (
    Anchors,
    Chain,
    Retired,
    epochs,
    read_configuration,
)
from cellarer.vault.control import ControlCache, ListedObjects, read_many
from cellarer.vault.envelopes import (
    ADMIN,
    VaultKeys,
    key_in,
    open_envelope,
    vault_keys,
)
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.marker import check_marker, marked, set_foreign_aside
from cellarer.vault.registers import (
    Commit,
    Outcome,
    Repack,
    open_register,
    read_commits,
    read_repacks,
)
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.trust import KEY_SETTINGS, LATE_IS_NOTHING, SIGNERS, Role, SignedTooLate

__all__ = ["Commit", "Keys", "Vault"]

T = TypeVar("T")


@dataclass(frozen=True)
class Keys:
    """The keys that a host has: at least one of them."""

    write_key: WriteKey | None
    collect_key: CollectKey | None
    identity: Identity | None
    founder: str | None = None

    @property
    def anchors(self) -> Anchors:
        """Where trust in a configuration may start with these keys."""
        pinned = [key for key in (self.write_key, self.collect_key) if key]
        pins = {(key.epoch, key.admin) for key in pinned}
        if self.founder:
            pins.add((0, self.founder))
        own = {signer.public for signer in self.identity.signers} if self.identity else set()
        return Anchors(frozenset(pins), frozenset(own))


class Vault:
    """An open vault. Use `open`."""

    def __init__(
        self,
        replicas: ReplicaSet,
        chain: Chain,
        keys: Keys,
        roots: VaultKeys,
        cache: Path | None = None,
    ) -> None:
        self.replicas = replicas
        self.cache = cache
        self._control = ControlCache(cache, roots.vault, roots.index)
        self.id = roots.vault
        self.epochs = chain.epochs
        self.configuration = chain.epochs[-1]
        self.keys = keys
        self.index_key = roots.index
        self._chunk_ids = roots.chunk_ids
        self.write_key = keys.write_key
        self.collect_key = keys.collect_key
        self.identity = keys.identity
        self.unreadable: dict[str, DamagedData] = dict(chain.refused)
        self.too_late: set[str] = set()
        self._unfollowed = chain.refused
        self._vouched: dict[str, Mapping[str, Any]] = {}
        self._session_roots: dict[str, bytes] = {}
        self._envelopes: dict[str, tuple[str, str] | None] = {}

    @property
    def recipients(self) -> tuple[str, ...]:
        """Whoever can read what is written now."""
        return self.configuration.recipients

    def signers(self, role: Role) -> list[crypto.Signer]:
        """The signing keys at hand that stand for a right, trusted or not."""
        if role is Role.WRITER:
            return [self.write_key.signer] if self.write_key else []
        if role is Role.COLLECTOR:
            return [self.collect_key.signer] if self.collect_key else []
        if self.identity is None:
            return []
        return [*self.identity.signers, *self._sealed_signers(self.identity)]

    def _sealed_signers(self, identity: Identity) -> list[crypto.Signer]:
        """The administrator's keys that are sealed to all recipients, as far as this opens them."""
        found = []
        for admin in self.configuration.admins:
            if not admin.recipient:
                name = ADMIN + admin.public[:16]

                def check(value: dict[str, Any], key: str, public: str = admin.public) -> Any:
                    signer = crypto.Signer(key_in(value, "signing_seed", key))
                    if signer.public != public:
                        raise DamagedData(f"{key} holds another key than the configuration names")
                    return signer

                generation = self.configuration.generation
                with contextlib.suppress(KeyUnusable):
                    found.append(open_envelope(self.replicas, name, generation, identity, check))
        return found

    def _check_name(self, signer: crypto.Signer) -> None:
        """Raise `KeyUnusable` where the write key calls itself what the vault does not call it.

        What it signed would be nobody's: a point that cannot be read.
        """
        key = self.write_key
        if key is None or key.signer.public != signer.public:
            return
        if self.configuration.writers.get(key.writer) != signer.public:
            raise KeyUnusable(
                f"the write key calls itself {key.writer}, which is no name of it in this vault",
                hint="bring the file back as `cellarer init` or `keys rotate-write-key` wrote it",
            )

    def signer_for(self, matter: str) -> crypto.Signer:
        """The least key at hand that may sign a matter of `trust.SIGNERS`.

        Raises `KeyUnusable` where this host has none, or where the vault no longer trusts it, and
        `DamagedData` where an epoch of the configuration cannot be followed: nothing is signed by
        an old one.
        """
        for key, error in self._unfollowed.items():
            raise DamagedData(
                f"{key} is not a configuration that can be trusted",
                detail=str(error),
                hint="bring it back with `cellarer sync` from a replica that has it whole; where "
                "nobody who holds an identity made it, delete it from the store",
            )
        signers = []
        for role in SIGNERS[matter]:
            signers += self.signers(role)
            for signer in signers:
                if signer.public in self.configuration.trusted(matter):
                    self._check_name(signer)
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
        founder: str | None = None,
        cache: Path | None = None,
    ) -> Vault:
        """Open an existing vault. Raises `KeyUnusable`, `VaultUnreachable`, `DamagedData`.

        `founder` is the public key that signed epoch 0, for an identity that cannot tell. Below
        `cache` it is remembered what was read; without, everything is read from the replicas.
        """
        keys = Keys(write_key, collect_key, identity, founder)
        if not any((write_key, collect_key, identity)):
            raise KeyUnusable(
                "the vault needs a key",
                hint="name vault.write_key, vault.collect_key or vault.identity in cellarer.toml",
            )
        marked_as = marked(replicas)
        if write_key is not None:
            roots = VaultKeys(write_key.vault, write_key.index, write_key.chunk_ids)
        elif identity is not None:
            # An epoch makes one generation at most.
            newest = len(epochs(replicas)) - 1
            roots = vault_keys(replicas, identity, newest, marked_as)
        else:
            assert collect_key is not None
            roots = VaultKeys(collect_key.vault, collect_key.index, None)
        for vault_id in (roots.vault, *(key.vault for key in (collect_key,) if key)):
            check_marker(replicas, vault_id)
        set_foreign_aside(replicas, roots.vault)
        chain = read_configuration(replicas, roots.vault, keys.anchors, epochs(replicas))
        generation = chain.epochs[-1].generation
        if write_key is None and identity is not None and generation < newest:
            # Whoever may add objects can have sealed keys of his own as a generation to come.
            roots = vault_keys(replicas, identity, generation, {roots.vault})
        return cls(replicas, chain, keys, roots, cache)

    def reopen(self) -> Vault:
        """The same, with the same keys, as its newest configuration says."""
        return Vault.open(self.replicas, **vars(self.keys), cache=self.cache)

    def commits(self, *, forgotten: bool = False) -> list[Commit]:
        """Every restore point that some reachable replica has, oldest first.

        With `forgotten` also those that retention gave up: while their chunks are there, they may
        be built upon.
        """
        commits = read_commits(self, forgotten)
        self._envelopes |= {commit.session: commit.envelope for commit in commits}
        return commits

    def listed(self, prefix: str) -> ListedObjects:
        """The signed objects below a prefix that some reachable replica lists."""
        return ListedObjects(self._control, self.replicas, prefix)

    def repacks(self) -> list[Repack]:
        """Every repack that some reachable replica knows as done, in the order of their ids."""
        return read_repacks(self)

    def gather(self, keys: Iterable[str], read: Callable[[str], T]) -> list[T]:
        """Read many control objects at once, in the order of their keys.

        One that no replica has whole must not take the others with it: it is left out and told of
        in `unreadable`, which `status` and `doctor` report; what counts for nothing, in `too_late`.
        """
        values, problems = read_many(keys, read)
        self.too_late |= {key for key, e in problems.items() if isinstance(e, SignedTooLate)}
        self.unreadable |= {key: e for key, e in problems.items() if key not in self.too_late}
        return values

    def open_register(self, key: str, data: bytes) -> Outcome | None:
        """A register out of its bytes; None for an ABORT. Raises `DamagedData`."""
        return open_register(self, key, data).outcome

    def check_signer(self, key: str, data: bytes, signer: str, matter: str) -> None:
        """Raises `DamagedData` where an object is signed by a key that may not sign this matter.

        A retired key is trusted for the objects that were there when it was retired.
        """
        if signer in self.configuration.trusted(matter):
            return
        retired = self.configuration.retirement(signer, matter)
        if retired is not None:
            vouched = self._vouched_for(retired)
            if hashlib.sha256(data).hexdigest() in vouched.get(key, ()):
                return
            if key not in vouched:
                late = SignedTooLate if matter in LATE_IS_NOTHING else DamagedData
                raise late(f"{key} is signed by a key that was retired before", detail=signer)
            raise DamagedData(f"{key} is not what it was when its key was retired", detail=signer)
        known = any(signer in self.configuration.public_keys(role) for role in Role)
        told = f"may not sign: {matter}" if known else "this vault does not know"
        raise DamagedData(f"{key} is signed by a key that {told}", detail=signer)

    def _vouched_for(self, retired: Retired) -> Mapping[str, Any]:
        """The objects that a retired key signed while it was trusted, with their SHA-256."""
        if retired.vouched not in self._vouched:
            key = layout.vouched_key(retired.vouched)

            def check(data: bytes) -> Mapping[str, Any]:
                if hashlib.sha256(data).hexdigest() != retired.vouched:
                    raise DamagedData(f"{key} is not what the configuration names")
                objects: Mapping[str, Any] = layout.parse_json(data, key)["objects"]
                return objects

            self._vouched[retired.vouched] = self.replicas.fetch(key, check)
        return self._vouched[retired.vouched]

    def session_root(self, session: str) -> bytes:
        """The root key of a session; needs the identity."""
        root = self._session_roots.get(session)
        if root is None:
            if self.identity is None:
                raise KeyUnusable(
                    "reading needs an identity, and this host has none",
                    hint="set vault.identity to your age identity file, or run this where it is",
                )
            root = self._opened_root(session, self.identity)
            self._session_roots[session] = root
        return root

    def _opened_root(self, session: str, identity: Identity) -> bytes:
        check = self.root_check(session)
        generation, listed = self.configuration.generation, self.sealed_to(identity)
        return open_envelope(self.replicas, session, generation, identity, check, listed)

    def sealed_to(self, identity: Identity) -> frozenset[int]:
        """The generations of envelopes that an identity opens unless they are damaged."""
        return frozenset(
            epoch.generation
            for epoch in self.epochs
            if not identity.at_hand.isdisjoint(epoch.recipients)
        )

    def announced_envelope(self, session: str) -> tuple[str, str] | None:
        """The name of the envelope that a session's writer sealed, and the SHA-256 of its bytes.

        The register says so, or the announcement of a log key. None where neither does: the session
        did not end well, or is of long ago.
        """
        if session not in self._envelopes:
            key = layout.snapshot_key(session)
            try:
                ended = self.replicas.fetch(key, partial(self.open_register, key))
            except (DamagedData, VaultUnreachable):
                return None
            named = ended.envelope if isinstance(ended, Commit) else None
            self._envelopes[session] = named or self._log_envelope(session)
        return self._envelopes[session]

    def _log_envelope(self, session: str) -> tuple[str, str] | None:
        """The envelope of a log key, as it was announced."""
        try:
            announced = self.announcement(session).get("log")
        except (DamagedData, VaultUnreachable):
            return None
        match announced:
            case {"envelope": [str(name), str(sha256)]}:
                return name, sha256
        return None

    def root_check(self, session: str) -> Callable[[dict[str, Any], str], bytes]:
        """Checks what an envelope holds against what the session's writer announced."""
        announced = self.announcement(session)
        if "repacker" in announced:
            raise DamagedData(f"session {session} moved records and sealed none: it has no key")
        commitment = str(announced.get("commitment"))

        def check(value: dict[str, Any], key: str) -> bytes:
            if value.get("session") != session or value.get("vault") != self.id:
                raise DamagedData(f"{key} holds the key of another session")
            root = key_in(value, "root", key)
            if blake3(root).hexdigest() != commitment:
                # Anyone can seal to a recipient; the writer's signature vouches for the key.
                raise DamagedData(f"{key} holds another key than its writer announced")
            return root

        return check

    def announcement(self, session: str) -> dict[str, Any]:
        """What was signed when the session began."""
        key = layout.session_key(session)
        return self.replicas.fetch(key, lambda data: self.open_announcement(key, data))

    def open_announcement(self, key: str, data: bytes) -> dict[str, Any]:
        """What was signed when a session began, by a writer, or for a repack by a collector.

        Raises `DamagedData`.
        """
        body, signer = crypto.read_signed("session", data)
        self.check_signer(key, data, signer, "repack" if "repacker" in body else "session")
        if layout.session_key(str(body.get("session"))) != key or body.get("vault") != self.id:
            raise DamagedData(f"{key} holds the announcement of another session")
        return body

    @property
    def chunk_ids(self) -> bytes:
        """The key from which those that name chunks are derived; a collect key lacks it."""
        if self._chunk_ids is None:
            raise KeyUnusable(
                "a collect key does not name chunks",
                hint="set vault.write_key or vault.identity in cellarer.toml",
            )
        return self._chunk_ids

    def domain_key(self, source: str) -> bytes:
        """The key under which the chunks of one source are named."""
        return crypto.derive(self.chunk_ids, f"cellarer/1/domain/{source}")
