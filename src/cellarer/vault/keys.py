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

from cellarer.errors import KeyUnusable, UsageError
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


@dataclass(frozen=True, repr=False, kw_only=True)
class SigningKey:
    """What the keys of a writer and of a collector have in common.

    `index` reads indexes, tables of contents and references. `admin` signed the configuration of
    `epoch`: trust starts there.
    """

    vault: str
    signing_seed: bytes
    index: bytes
    admin: str
    epoch: int = 0

    @property
    def signer(self) -> Signer:
        """What it signs with."""
        return Signer(self.signing_seed)


@dataclass(frozen=True, repr=False, kw_only=True)
class WriteKey(SigningKey):
    """What a writer holds. `chunk_ids` names chunks."""

    writer: str
    chunk_ids: bytes
    recipients: tuple[str, ...]

    def to_text(self) -> str:
        """The file's content."""
        own = {"writer": self.writer, "chunk_ids": self.chunk_ids.hex()}
        return _text(WRITE_KEY_FORMAT, self, {**own, "recipients": list(self.recipients)})

    @classmethod
    def from_text(cls, text: str) -> WriteKey:
        """Parse a write key. Raises `KeyUnusable`, never showing what it read."""
        try:
            value, common = _parsed(text, WRITE_KEY_FORMAT)
            return cls(
                **common,
                writer=str(value["writer"]),
                chunk_ids=_secret(value, "chunk_ids"),
                recipients=tuple(str(r) for r in value["recipients"]),
            )
        except _NO_KEY:
            raise _unusable("write") from None


def needed_write_key(key: WriteKey | None, purpose: str) -> WriteKey:
    """The write key of this host, which it needs to do something. Raises `UsageError`."""
    if key is None:
        raise UsageError(
            "this host has no write key",
            hint=f"set vault.write_key in cellarer.toml to {purpose} from here",
        )
    return key


@dataclass(frozen=True, repr=False, kw_only=True)
class CollectKey(SigningKey):
    """What a keeper holds.

    It has no chunk-id key: packs are told apart and written anew by the ids that stand in them.
    """

    collector: str

    def to_text(self) -> str:
        """The file's content."""
        return _text(COLLECT_KEY_FORMAT, self, {"collector": self.collector})

    @classmethod
    def from_text(cls, text: str) -> CollectKey:
        """Parse a collect key. Raises `KeyUnusable`, never showing what it read."""
        try:
            value, common = _parsed(text, COLLECT_KEY_FORMAT)
            return cls(**common, collector=str(value["collector"]))
        except _NO_KEY:
            raise _unusable("collect") from None


_NO_KEY = (KeyError, OverflowError, RecursionError, TypeError, ValueError)


def _text(form: str, key: SigningKey, own: Mapping[str, object]) -> str:
    fields = {
        "format": form,
        "version": 1,
        "vault": key.vault,
        "signing_seed": key.signing_seed.hex(),
        "index": key.index.hex(),
        "admin": key.admin,
        "epoch": key.epoch,
        **own,
    }
    return json.dumps(fields, indent=2) + "\n"


def _parsed(text: str, form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything in a key file, and the arguments for what all keys have in common."""
    value: dict[str, Any] = json.loads(text)
    if value["format"] != form or value["version"] != 1:
        raise ValueError
    return value, {
        "vault": str(value["vault"]),
        "signing_seed": _secret(value, "signing_seed"),
        "index": _secret(value, "index"),
        "admin": str(value["admin"]),
        "epoch": int(value.get("epoch", 0)),
    }


def _unusable(kind: str) -> KeyUnusable:
    return KeyUnusable(
        f"this is not a {kind} key",
        hint=f"point vault.{kind}_key at the file that `cellarer init` wrote",
    )


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
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        # Half a key would be taken for one, and be in the way of the next attempt.
        path.unlink(missing_ok=True)
        raise KeyUnusable(
            f"{path} cannot be written",
            detail=error.strerror or "",
            hint="free some room, or name a file elsewhere",
        ) from error


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
