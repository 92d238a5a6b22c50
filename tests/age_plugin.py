"""A real age plugin for the tests: X25519 and AES-GCM, spoken over the plugin protocol.

    age-plugin-cellar --age-plugin=recipient-v1 | identity-v1

Its identity holds a seed, its recipient the public key of it. With CELLAR_PIN in the environment it
asks for a PIN before it unwraps anything.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cellarer.vault import bech32

Stanza = tuple[list[str], bytes]


def make() -> tuple[str, str]:
    """A new identity and its recipient."""
    key = X25519PrivateKey.generate()
    identity = bech32.encode("age-plugin-cellar-", key.private_bytes_raw()).upper()
    return identity, bech32.encode("age1cellar", key.public_key().public_bytes_raw())


def install(directory: Path) -> None:
    """Put the program into a directory, to be named in PATH."""
    directory.mkdir(exist_ok=True)
    program = directory / "age-plugin-cellar"
    paths = ":".join(path for path in sys.path if path)
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "{__file__}" "$@"\n'
    )
    program.chmod(0o755)


def read() -> Stanza:
    words = sys.stdin.readline().split()
    body = ""
    while len(line := sys.stdin.readline().rstrip("\n")) == 64:
        body += line
    body += line
    return words[1:], base64.b64decode(body + "=" * (-len(body) % 4))


def send(words: str, body: bytes = b"") -> None:
    text = base64.b64encode(body).decode().rstrip("=")
    lines = [text[at : at + 64] for at in range(0, len(text) + 1, 64)]
    sys.stdout.write(f"-> {words}\n" + "\n".join(lines) + "\n")
    sys.stdout.flush()


def wrapping_key(shared: bytes, ephemeral: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=ephemeral, info=b"cellar").derive(shared))


def wrap(recipients: list[str], files: list[bytes]) -> None:
    for number, file_key in enumerate(files):
        for recipient in recipients:
            key = X25519PrivateKey.generate()
            public = key.public_key().public_bytes_raw()
            shared = key.exchange(X25519PublicKey.from_public_bytes(bech32.decode(recipient)[1]))
            sealed = wrapping_key(shared, public).encrypt(bytes(12), file_key, None)
            argument = base64.b64encode(public).decode().rstrip("=")
            send(f"recipient-stanza {number} cellar {argument}", sealed)
            read()


def unwrap(identities: list[str], stanzas: list[Stanza]) -> None:
    if "CELLAR_PIN" in os.environ:
        send("request-secret", b"PIN of the cellar")
        words, pin = read()
        if words != ["ok"] or pin.decode() != os.environ["CELLAR_PIN"]:
            send("error internal", b"wrong PIN")
            read()
            return
    done = set()
    for (number, _, argument, *_), sealed in stanzas:
        public = base64.b64decode(argument + "=" * (-len(argument) % 4))
        for identity in identities:
            key = X25519PrivateKey.from_private_bytes(bech32.decode(identity)[1])
            shared = key.exchange(X25519PublicKey.from_public_bytes(public))
            try:
                file_key = wrapping_key(shared, public).decrypt(bytes(12), sealed, None)
            except InvalidTag:
                continue
            if number not in done:
                done.add(number)
                send(f"file-key {number}", file_key)
                read()


def main() -> None:
    given: list[Stanza] = []
    while (stanza := read())[0] != ["done"]:
        given.append(stanza)
    named = {kind: [w[1] for w, _ in given if w[0] == kind] for kind in (
        "add-recipient", "add-identity"
    )}  # fmt: skip
    if sys.argv[1].endswith("recipient-v1"):
        wrap(named["add-recipient"], [body for w, body in given if w[0] == "wrap-file-key"])
    else:
        unwrap(
            named["add-identity"],
            [(w[1:], b) for w, b in given if w[0] == "recipient-stanza" and w[2] == "cellar"],
        )
    send("done")


if __name__ == "__main__":
    main()
