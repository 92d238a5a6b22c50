"""age identities and recipients of every kind: X25519, ssh keys, plugins."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyrage
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from cellarer.errors import DamagedData, KeyUnusable

X25519 = "AGE-SECRET-KEY-1"
PLUGIN = "AGE-PLUGIN-"
_SSH = re.compile(
    r"-----BEGIN (OPENSSH|RSA) PRIVATE KEY-----.*?-----END \1 PRIVATE KEY-----\n?", re.DOTALL
)
_ARMOUR = "-----BEGIN AGE ENCRYPTED FILE-----"
_PLUGIN_RECIPIENT = re.compile(r"\bage1[a-z0-9+._-]*1[ac-hj-np-z02-9]+\b")

_NO_RECIPIENT = "No matching keys found"
"""What pyrage says of a well-formed age file that is sealed to others."""


class NotSealedTo(KeyUnusable):
    """None of the secrets is a recipient of this envelope; a damaged one may look like that."""


@dataclass(frozen=True)
class Person:
    """How to ask whoever runs this: for a secret, and to be told something."""

    ask: Callable[[str], str | None]
    tell: Callable[[str], None]

    def display_message(self, message: str) -> None:
        """A plugin has something to say, such as "touch your key"."""
        self.tell(message)

    def confirm(self, message: str, yes_string: str, no_string: str | None) -> bool | None:
        """A plugin wants a decision; nothing here can be decided without a terminal of its own."""
        self.tell(message)
        return None

    def request_public_string(self, description: str) -> str | None:
        """A plugin asks for something that is no secret."""
        return self.ask(description)

    def request_passphrase(self, description: str) -> str | None:
        """A plugin asks for a secret, such as a PIN."""
        return self.ask(description)


NOBODY = Person(lambda question: None, lambda message: None)
"""Where no one can be asked."""


@dataclass(frozen=True, repr=False)
class Secret:
    """One private key: a line of an identity file, or an ssh key without its passphrase.

    `recipient` is empty where a plugin's identity file does not name it.
    """

    text: str
    recipient: str


def parse_secrets(text: str, person: Person) -> tuple[Secret, ...]:
    """All identities in a file. Raises `ValueError` for text that holds none that is valid."""
    if text.lstrip().startswith(_ARMOUR):
        text = _unlocked(text, person)
    found = [_ssh_secret(match[0], person) for match in _SSH.finditer(text)]
    named = _PLUGIN_RECIPIENT.findall(text)
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith(X25519):
            public = pyrage.x25519.Identity.from_str(line).to_public()
            found.append(Secret(line, str(public)))
        elif line.startswith(PLUGIN):
            pyrage.plugin.Identity.from_str(line)
            name = _plugin_name(line)
            found.append(Secret(line, next((r for r in named if _plugin_of(r) == name), "")))
    if not found:
        raise ValueError
    return tuple(found)


class PassphraseNeeded(KeyUnusable):
    """An identity has a passphrase, and nobody could be asked for it."""


def _unlocked(text: str, person: Person) -> str:
    passphrase = person.ask("passphrase of the identity")
    if passphrase is None:
        raise PassphraseNeeded(
            "the identity has a passphrase, and nobody can be asked for it here",
            hint="name it as vault.identity_passphrase, or run this on a terminal",
        )
    try:
        return bytes(pyrage.passphrase.decrypt(text.encode(), passphrase)).decode()
    except (pyrage.DecryptError, UnicodeDecodeError):
        raise KeyUnusable(
            "the passphrase does not open the identity",
            hint="type it again, or see where it is kept",
        ) from None


def _ssh_secret(text: str, person: Person) -> Secret:
    data = text.encode()
    load = load_ssh_private_key if "OPENSSH" in text else load_pem_private_key
    try:
        key: Any = _without_passphrase(load, data, person)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        opened = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        pyrage.ssh.Identity.from_buffer(opened)
        pyrage.ssh.Recipient.from_str(public)
    except (UnsupportedAlgorithm, pyrage.IdentityError, pyrage.RecipientError) as error:
        raise KeyUnusable(
            "this ssh key cannot be an identity",
            detail=str(error),
            hint="age takes ssh-ed25519 and ssh-rsa keys",
        ) from None
    return Secret(opened.decode(), public)


def _without_passphrase(load: Callable[..., Any], data: bytes, person: Person) -> Any:
    try:
        return load(data, password=None)
    except (TypeError, ValueError):
        passphrase = person.ask("passphrase of the ssh key")
    if passphrase is None:
        raise PassphraseNeeded(
            "this ssh key has a passphrase, and nobody can be asked for it here, or it is broken",
            hint="name it as vault.identity_passphrase, or run this on a terminal",
        )
    try:
        return load(data, password=passphrase.encode())
    except (TypeError, ValueError):
        raise KeyUnusable(
            "the passphrase does not open the ssh key", hint="try it with `ssh-keygen -y`"
        ) from None


def open_sealed(envelope: bytes, secrets: Sequence[Secret], person: Person, what: str) -> bytes:
    """Decrypt an age file.

    Raises `NotSealedTo` where none of the secrets opens it, another `KeyUnusable` where a plugin
    fails, and `DamagedData` for anything else.
    """
    try:
        return bytes(pyrage.decrypt(envelope, [_identity(secret, person) for secret in secrets]))
    except pyrage.DecryptError as error:
        plugin = any(secret.text.startswith(PLUGIN) for secret in secrets)
        others = str(error) == _NO_RECIPIENT
        if not others and not plugin:
            raise DamagedData(f"{what} is not what was written", detail=str(error)) from error
        raise (NotSealedTo if others else KeyUnusable)(
            f"this identity does not open {what}",
            detail=" ".join(str(error).split()),
            hint="use an identity whose recipient is listed by `cellarer keys list`",
        ) from error


def _identity(secret: Secret, person: Person) -> Any:
    if secret.text.startswith(X25519):
        return pyrage.x25519.Identity.from_str(secret.text)
    if secret.text.startswith(PLUGIN):
        parsed = pyrage.plugin.Identity.from_str(secret.text)
        return pyrage.plugin.IdentityPluginV1(parsed.plugin(), [parsed], person)
    return pyrage.ssh.Identity.from_buffer(secret.text.encode())


def parse_recipient(text: str, person: Person = NOBODY) -> Any:
    """A recipient that pyrage seals to. Raises `KeyUnusable`."""
    try:
        if text.startswith("ssh-"):
            return pyrage.ssh.Recipient.from_str(text)
        if name := _plugin_of(text):
            parsed = pyrage.plugin.Recipient.from_str(text)
            return pyrage.plugin.RecipientPluginV1(name, [parsed], [], person)
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.EncryptError as error:
        raise KeyUnusable(
            f"the recipient {text[:24]}… needs its plugin",
            detail=" ".join(str(error).split()),
            hint=f"install age-plugin-{_plugin_of(text)} on this host: it seals keys",
        ) from error
    except pyrage.RecipientError as error:
        raise KeyUnusable(
            f"not an age recipient: {text[:24]}…",
            hint="a recipient reads age1… or ssh-… and is printed by age-keygen or the plugin",
        ) from error


def written_alike(recipient: str) -> str:
    """A recipient in the one form in which it is kept and compared, whether it is one or not.

    An ssh key is often given with a comment, which what follows from the private key lacks.
    """
    text = recipient.strip()
    return " ".join(text.split()[:2]) if text.startswith("ssh-") else text.lower()


def _plugin_of(recipient: str) -> str:
    """The plugin's name in `age1NAME1…`; empty for others."""
    if not recipient.startswith("age1"):
        return ""
    return recipient[: recipient.rindex("1")].removeprefix("age").removeprefix("1")


def _plugin_name(identity: str) -> str:
    return identity.removeprefix(PLUGIN).rpartition("-1")[0].lower()
