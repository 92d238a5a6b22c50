"""Whether an object is what its name says, as far as the keys at hand can tell.

Packs and meta objects are named by their content, so anybody can tell. Signed objects need the keys
that are trusted, index segments the index key, envelopes the identity. Without them only the form
can be looked at, and whether the replicas agree.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from cellarer.errors import DamagedData, KeyUnusable, StoreError
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.envelopes import ADMIN, VAULT, content, key_in, parse_name
from cellarer.vault.founding import rescue_program
from cellarer.vault.index import open_segment
from cellarer.vault.joining import joined
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import open_entry
from cellarer.vault.log_object import check_body, open_header, parse_header
from cellarer.vault.replicas import ReplicaSet, none_whole
from cellarer.vault.tombstones import open_tombstone
from cellarer.vault.vault import Vault

_AGE_MAGIC = b"age-encryption.org/v1\n"


@dataclass(frozen=True)
class Trust:
    """What objects are judged by: a vault opened with keys; without any, its id at most."""

    vault: Vault | None = None
    vault_id: str | None = None

    @classmethod
    def of(cls, vault: Vault) -> Trust:
        """What a vault that was opened trusts."""
        return cls(vault, vault.id)

    @property
    def index_key(self) -> bytes | None:
        """Opens index segments and references; None without a key."""
        return self.vault.index_key if self.vault else None

    def check(self, key: str, data: bytes) -> bool:
        """Whether `data` is for certain what was written as `key`; False where only its form is.

        Raises `DamagedData` for what it cannot be.
        """
        kind = key.partition("/")[0]
        if kind in ("packs", "meta"):
            layout.check_content_name(key, data)
            return True
        if key.startswith(layout.vouched_key("")):
            if layout.vouched_key(hashlib.sha256(data).hexdigest()) != key:
                raise DamagedData(f"{key} is not what was written")
            return True
        if kind == "index":
            return self._segment(data, key)
        if kind == "keys":
            return self._envelope(key, data)
        if kind in ("config", "sessions", "snapshots", "forgotten", "ledger"):
            return self._signed(kind, key, data)
        if kind == "collections":
            return self._round(key, data)
        if kind == "wal":
            return self._log(key, data)
        if key == layout.FORMAT_KEY:
            return self._marker(data)
        if key == layout.RESCUE_KEY:
            _parse_python(data)
            return data == rescue_program()
        return False

    def _segment(self, data: bytes, key: str) -> bool:
        if self.index_key is not None:
            for _ in open_segment(self.index_key, data):
                pass
            return True
        if len(data) <= crypto.NONCE_BYTES + 16:
            raise DamagedData(f"{key} is too short for an index segment")
        return False

    def _envelope(self, key: str, data: bytes) -> bool:
        check_age_file(key, data)
        if self.vault is None:
            return False
        if self.vault.identity is not None:
            with contextlib.suppress(KeyUnusable):  # sealed to others
                _open_envelope(self.vault, self.vault.identity, key, data)
                return True
        return announced(self.vault, key, data)

    def _signed(self, kind: str, key: str, data: bytes) -> bool:
        purpose = {"sessions": "session", "snapshots": "snapshot"}.get(kind, kind)
        body, signer = crypto.read_signed(purpose, data)
        if _name_in(kind, body) != key:
            raise DamagedData(f"{key} holds what belongs under another name")
        if self.vault_id is not None and body.get("vault") != self.vault_id:
            raise DamagedData(f"{key} belongs to another vault")
        if self.vault is None:
            return False
        if kind == "snapshots":
            self.vault.open_register(key, data)
        elif kind == "ledger":
            open_entry(self.vault, key, data)
        elif kind == "forgotten":
            open_tombstone(self.vault, key, data)
        elif kind == "sessions":
            self.vault.open_announcement(key, data)
        else:
            # One of a former administrator is signed by nobody who is trusted now.
            return signer in self.vault.configuration.trusted("config")
        return True

    def _round(self, key: str, data: bytes) -> bool:
        body, signer = crypto.read_signed("collection", data)
        number = body.get("round")
        if not isinstance(number, int) or layout.round_key(number, str(body.get("step"))) != key:
            raise DamagedData(f"{key} holds what belongs under another name")
        if self.vault is None:
            return False
        self.vault.check_signer(key, data, signer, "collection")
        return True

    def _log(self, key: str, data: bytes) -> bool:
        header = parse_header(key, data)
        if self.vault is not None:
            open_header(self.vault, key, data)
        elif self.vault_id is not None and header.vault != self.vault_id:
            raise DamagedData(f"{key} belongs to another vault")
        check_body(header, data)
        return self.vault is not None

    def _marker(self, data: bytes) -> bool:
        marker = layout.parse_json(data, layout.FORMAT_KEY)
        expected = (layout.FORMAT_NAME, layout.FORMAT_VERSION)
        if (marker.get("format"), marker.get("version")) != expected:
            raise DamagedData(f"{layout.FORMAT_KEY} marks no vault of this format")
        if self.vault_id is not None and marker.get("vault") != self.vault_id:
            raise DamagedData(f"{layout.FORMAT_KEY} marks another vault")
        if self.vault is None:
            return False
        if self.vault.epochs[0].epoch > 0:
            return False  # the keys at hand trust the vault from a later epoch on
        # The first epoch, which is signed, says the same.
        body = self.vault.epochs[0].body
        wanted = {"created": body["created"], "format": expected[0], "version": expected[1]}
        if marker != {**wanted, "vault": self.vault.id}:
            raise DamagedData(f"{layout.FORMAT_KEY} is not what was written")
        return True


def good_copy(
    replicas: ReplicaSet, trust: Trust, key: str, besides: str | None = None
) -> tuple[bytes, bool]:
    """The bytes of an object, and whether they are certain, from any replica but `besides`.

    Where none of them has it whole, it is put together from all that is left of it, if these
    parts make up what was written. Where the keys at hand cannot tell, the replicas vote: what most
    of them hold is taken, and is certain if two agree and none differs. Raises `DamagedData`, or
    `VaultUnreachable`.
    """
    votes: Counter[bytes] = Counter()
    damaged: list[bytes] = []
    problems: dict[str, StoreError | DamagedData] = {}
    for replica in replicas.replicas:
        if replica.name == besides:
            continue
        try:
            data = replicas.ask(replica, lambda store: store.read(key))
        except (StoreError, DamagedData) as error:
            problems[replica.name] = error
            continue
        try:
            if trust.check(key, data):
                return data, True
            votes[data] += 1
        except DamagedData as error:
            problems[replica.name] = error
            damaged.append(data)
    for replica in replicas.replicas:
        # Put together before, by who was killed while it was put in its place.
        with contextlib.suppress(StoreError, DamagedData):
            data = replicas.ask(replica, lambda store: store.read(layout.aside_key(key)))
            if trust.check(key, data):
                return data, True
    if damaged:
        parts = [*damaged, *votes]
        if besides is not None:
            with contextlib.suppress(StoreError, DamagedData):
                left = replicas.named(besides)
                parts.append(replicas.ask(left, lambda store: store.read(key)))
        whole = joined(parts, lambda data: trust.check(key, data))
        if whole is not None:
            return whole, True
    if not votes:
        raise none_whole(key, dict(problems))
    (best, count), *others = votes.most_common()
    if others and count == others[0][1]:
        raise DamagedData(
            f"the replicas hold different bytes as {key}",
            hint="run this with the vault's keys in the config, which tell which of them is right",
        )
    return best, count > 1 and not others


def check_age_file(key: str, data: bytes) -> None:
    """Raise `DamagedData` for what has not the form of an envelope."""
    if not data.startswith(_AGE_MAGIC) or b"\n--- " not in data:
        raise DamagedData(f"{key} is no age file")


def announced(vault: Vault, key: str, data: bytes) -> bool:
    """Whether an envelope is the one that its session's writer named when it ended.

    False where that is not known, as of envelopes that were sealed anew. Raises `DamagedData`.
    """
    name, _ = parse_name(key) or ("", 0)
    known = vault.announced_envelope(name) if layout.is_session(name) else None
    if known is None or known[0] != key:
        return False
    if hashlib.sha256(data).hexdigest() != known[1]:
        raise DamagedData(f"{key} is not what its writer sealed")
    return True


def _open_envelope(vault: Vault, identity: Identity, key: str, data: bytes) -> None:
    """Raise `DamagedData` or `KeyUnusable` unless this is the envelope of that name."""
    name, generation = parse_name(key) or ("", 0)
    value = content(identity, key, data, listed=generation in vault.sealed_to(identity))
    if name == VAULT:
        key_in(value, "index", key)
    elif not name.startswith(ADMIN):
        vault.root_check(name)(value, key)


def _name_in(kind: str, body: dict[str, Any]) -> str:
    """The name of the object in which this body belongs."""
    if kind == "config":
        epoch = body.get("epoch")
        return layout.config_key(epoch) if isinstance(epoch, int) else ""
    if kind == "ledger":
        return str(body.get("key"))
    return f"{kind}/{body.get('session')}"


def _parse_python(data: bytes) -> None:
    try:
        compile(data, layout.RESCUE_KEY, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise DamagedData(f"{layout.RESCUE_KEY} is no program") from error
