"""The three key files: write key of a backup host, collect key of a keeper, identity of a reader.

The write key can deduplicate, add and sign, and can decrypt no content. The collect key can forget
and collect, and decrypts none either. The identity is an ordinary age identity; from it follows
everything else, the administrator's signing key included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyrage

from cellarer.errors import KeyUnusable
from cellarer.vault.age import (
    NOBODY,
    PLUGIN,
    X25519,
    Person,
    Secret,
    open_sealed,
    parse_secrets,
)
from cellarer.vault.crypto import KEY_BYTES, Signer, derive

WRITE_KEY_FORMAT = "cellarer-write-key"
COLLECT_KEY_FORMAT = "cellarer-collect-key"


@dataclass(frozen=True, repr=False)
class WriteKey:
    """What a writer holds. `index` reads indexes and references, `chunk_ids` names chunks."""

    vault: str
    writer: str
    signing_seed: bytes
    index: bytes
    chunk_ids: bytes
    admin: str
    recipients: tuple[str, ...]
    epoch: int = 0
    """The epoch of the configuration that `admin` signed: trust starts there."""

    @property
    def signer(self) -> Signer:
        """The writer's signing key."""
        return Signer(self.signing_seed)

    def to_text(self) -> str:
        """The file's content."""
        fields = {
            "writer": self.writer,
            "signing_seed": self.signing_seed.hex(),
            "index": self.index.hex(),
            "chunk_ids": self.chunk_ids.hex(),
            "admin": self.admin,
            "epoch": self.epoch,
            "recipients": list(self.recipients),
        }
        return _key_text(WRITE_KEY_FORMAT, self.vault, fields)

    @classmethod
    def from_text(cls, text: str) -> WriteKey:
        """Parse a write key. Raises `KeyUnusable`, never showing what it read."""
        try:
            value = _key_fields(text, WRITE_KEY_FORMAT)
            return cls(
                vault=str(value["vault"]),
                writer=str(value["writer"]),
                signing_seed=_secret(value, "signing_seed"),
                index=_secret(value, "index"),
                chunk_ids=_secret(value, "chunk_ids"),
                admin=str(value["admin"]),
                recipients=tuple(str(r) for r in value["recipients"]),
                epoch=int(value.get("epoch", 0)),
            )
        except (ValueError, KeyError, TypeError):
            raise KeyUnusable(
                "this is not a write key",
                hint="point vault.write_key at the file that `cellarer init` wrote",
            ) from None


@dataclass(frozen=True, repr=False)
class CollectKey:
    """What a keeper holds. `index` reads references and tables of contents, to know what is used.

    It has no chunk-id key: packs are told apart and written anew by the ids that stand in them.
    """

    vault: str
    collector: str
    signing_seed: bytes
    index: bytes
    admin: str
    epoch: int = 0

    @property
    def signer(self) -> Signer:
        """The collector's signing key."""
        return Signer(self.signing_seed)

    def to_text(self) -> str:
        """The file's content."""
        fields = {
            "collector": self.collector,
            "signing_seed": self.signing_seed.hex(),
            "index": self.index.hex(),
            "admin": self.admin,
            "epoch": self.epoch,
        }
        return _key_text(COLLECT_KEY_FORMAT, self.vault, fields)

    @classmethod
    def from_text(cls, text: str) -> CollectKey:
        """Parse a collect key. Raises `KeyUnusable`, never showing what it read."""
        try:
            value = _key_fields(text, COLLECT_KEY_FORMAT)
            return cls(
                vault=str(value["vault"]),
                collector=str(value["collector"]),
                signing_seed=_secret(value, "signing_seed"),
                index=_secret(value, "index"),
                admin=str(value["admin"]),
                epoch=int(value.get("epoch", 0)),
            )
        except (ValueError, KeyError, TypeError):
            raise KeyUnusable(
                "this is not a collect key",
                hint="point vault.collect_key at the file that `cellarer init` wrote",
            ) from None


def _key_text(form: str, vault: str, fields: Mapping[str, object]) -> str:
    return json.dumps({"format": form, "version": 1, "vault": vault, **fields}, indent=2) + "\n"


def _key_fields(text: str, form: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    if value["format"] != form or value["version"] != 1:
        raise ValueError
    return value


def _secret(value: dict[str, Any], name: str) -> bytes:
    secret = bytes.fromhex(value[name])
    if len(secret) != KEY_BYTES:
        raise ValueError
    return secret


@dataclass(frozen=True, repr=False)
class Identity:
    """The right to read: one age identity, or several that are tried in turn."""

    secrets: tuple[Secret, ...]
    person: Person = field(default=NOBODY, compare=False)

    @classmethod
    def generate(cls) -> Identity:
        """A new X25519 identity."""
        return cls.from_text(str(pyrage.x25519.Identity.generate()))

    @classmethod
    def from_text(cls, text: str, person: Person = NOBODY) -> Identity:
        """The identities in a file: as `age-keygen` or a plugin writes it, or an ssh private key.

        `person` is asked for a passphrase where there is one. Raises `KeyUnusable`.
        """
        try:
            return cls(parse_secrets(text, person), person)
        except (ValueError, pyrage.IdentityError):
            raise KeyUnusable(
                "this is not an age identity",
                hint="vault.identity names a file with a line AGE-SECRET-KEY-1… or AGE-PLUGIN-…, "
                "one that `age --passphrase --armor` made of it, or an ssh private key",
            ) from None

    @property
    def recipients(self) -> tuple[str, ...]:
        """The public halves, as far as they are known."""
        return tuple(secret.recipient for secret in self.secrets if secret.recipient)

    @property
    def at_hand(self) -> frozenset[str]:
        """The recipients whose envelopes surely open: a plugin may miss its device."""
        return frozenset(
            secret.recipient for secret in self.secrets if not secret.text.startswith(PLUGIN)
        )

    @property
    def admins(self) -> tuple[tuple[Signer, str], ...]:
        """The signing keys that follow from it, each with its recipient: only of X25519."""
        return tuple(
            (Signer(derive(secret.text.encode(), "cellarer/1/admin")), secret.recipient)
            for secret in self.secrets
            if secret.text.startswith(X25519)
        )

    @property
    def signers(self) -> tuple[Signer, ...]:
        """The signing keys alone."""
        return tuple(signer for signer, _ in self.admins)

    def __or__(self, other: Identity) -> Identity:
        """Both: what either opens."""
        return Identity(tuple(dict.fromkeys((*self.secrets, *other.secrets))), self.person)

    def to_text(self) -> str:
        """The file's content, readable by the age program."""
        return "".join(f"# public key: {s.recipient}\n{s.text}\n" for s in self.secrets)

    def open(self, envelope: bytes, what: str) -> bytes:
        """Decrypt an age file.

        Raises as `age.open_sealed`.
        """
        return open_sealed(envelope, self.secrets, self.person, what)


def write_private(path: Path, text: str) -> None:
    """Create a file that only its owner reads (0600) and that survives a power cut.

    Raises `KeyUnusable` where a file of that name exists: a key is never overwritten.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyUnusable(
            f"{path} exists already",
            hint="move it away, or name another file; a key is never overwritten",
        ) from None
    except OSError as error:
        raise KeyUnusable(f"{path} cannot be written", detail=error.strerror or "") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_private(path: Path) -> str:
    """The text of a key file. Raises `KeyUnusable` with the way out."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KeyUnusable(
            f"{path} is not there",
            hint="name the key's file in [vault], or bring it back from where you keep it",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusable(f"{path} cannot be read", detail=str(error)) from error
