"""The few cryptographic operations the format uses, over well-known libraries.

AES-256-GCM from `cryptography`, keyed BLAKE3 from `blake3`, age from `pyrage`, Ed25519 signatures.
"""

from __future__ import annotations

import base64
import secrets
import struct
import threading
from collections.abc import Sequence
from typing import Any

import pyrage
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cellarer.errors import CellarerError, DamagedData
from cellarer.vault.age import parse_recipient
from cellarer.vault.format import ID_BYTES, canonical_json, parse_json

KEY_BYTES = 32
NONCE_BYTES = 12

SUITE = 1
"""AES-256-GCM, BLAKE3, zstd: the only suite of format 1."""

ENCODING_RAW = 0
ENCODING_ZSTD = 1

LARGEST_SEALED = 1 << 30
"""A reader refuses sealed objects that claim more plaintext: references of 80 million chunks."""

SEAL_BYTES = NONCE_BYTES + 4 + 16
"""By so much a sealed object is longer than what was compressed: nonce, length and tag."""

_LENGTH = struct.Struct(">I")
RECORD_HEADER = struct.Struct(">BBHQ")
"""suite, encoding, lane, counter."""


def new_key() -> bytes:
    """32 bytes from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def derive(key: bytes, purpose: str) -> bytes:
    """A key for one purpose, by HKDF-SHA256."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(key)


def keyed_id(key: bytes, data: bytes | memoryview) -> bytes:
    """The 128-bit id of some plaintext under a key."""
    return blake3(data, key=key).digest(ID_BYTES)


def seal(key: bytes, plaintext: bytes, purpose: str, padding: int = 0) -> bytes:
    """Compress and encrypt a small object under a random nonce; `purpose` is authenticated.

    Raises `CellarerError` for what no reader would open.

    The encrypted text is the compressed length, the compressed bytes and `padding` zero bytes.
    """
    if len(plaintext) > LARGEST_SEALED:
        raise CellarerError(
            f"{purpose} is too large: {len(plaintext)} bytes, where readers take {LARGEST_SEALED}",
            hint="back the source up in several parts, as sources of their own",
        )
    return seal_packed(key, zstandard.ZstdCompressor(level=6).compress(plaintext), purpose, padding)


def seal_packed(key: bytes, packed: bytes, purpose: str, padding: int) -> bytes:
    """The same for what was compressed before."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    padded = b"".join((_LENGTH.pack(len(packed)), packed, bytes(padding)))
    return nonce + AESGCM(key).encrypt(nonce, padded, purpose.encode())


def unseal(key: bytes, sealed: bytes, purpose: str) -> bytes:
    """The plaintext of `seal`; `DamagedData` where the bytes or the purpose differ."""
    nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        padded = AESGCM(key).decrypt(nonce, body, purpose.encode())
        (length,) = _LENGTH.unpack_from(padded)
    except (InvalidTag, ValueError, struct.error) as error:
        raise DamagedData(f"{purpose} does not authenticate") from error
    return decompress(padded[_LENGTH.size : _LENGTH.size + length], LARGEST_SEALED, purpose)


def decompress(packed: bytes, largest: int, what: str) -> bytes:
    """One zstd frame of a known size that is not larger. Raises `DamagedData`.

    The size is looked at before any memory is taken for it: no decompression bomb.
    """
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= largest:
            raise DamagedData(f"{what} claims an impossible size", detail=f"{size} bytes")
        plain: bytes = decompressor.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedData(f"{what} does not decompress", detail=str(error)) from error
    return plain


_local = threading.local()


class RecordCipher:
    """Seals and opens the records of one session.

    One AES key per lane, nonce = lane and counter, so that a nonce never comes twice under a key.
    The vault, the session and the record's id are authenticated with the bytes: a record cannot be
    passed off as another, wherever a later repacking puts it.
    """

    def __init__(self, vault: bytes, session: str, root: bytes) -> None:
        self._context = b"cellarer/record/1" + vault + session.encode()
        self._root = root
        self._ciphers: dict[int, AESGCM] = {}

    def seal(self, record_id: bytes, encoding: int, plain: bytes, lane: int, counter: int) -> bytes:
        """Header and ciphertext. The caller never gives the same lane and counter twice."""
        header = RECORD_HEADER.pack(SUITE, encoding, lane, counter)
        nonce = struct.pack(">IQ", lane, counter)
        return header + self._cipher(lane).encrypt(nonce, plain, self._aad(header, record_id))

    def open(self, record_id: bytes, sealed: bytes | memoryview) -> tuple[int, bytes]:
        """The encoding and the (still compressed) plaintext. Raises `DamagedData`."""
        header = bytes(sealed[: RECORD_HEADER.size])
        try:
            suite, encoding, lane, counter = RECORD_HEADER.unpack(header)
            if suite != SUITE or encoding not in (ENCODING_RAW, ENCODING_ZSTD):
                raise DamagedData("a record has an unknown suite or encoding")
            nonce = struct.pack(">IQ", lane, counter)
            body = sealed[RECORD_HEADER.size :]
            return encoding, self._cipher(lane).decrypt(nonce, body, self._aad(header, record_id))
        except (InvalidTag, ValueError, struct.error) as error:
            raise DamagedData("a record does not authenticate") from error

    def _cipher(self, lane: int) -> AESGCM:
        cipher = self._ciphers.get(lane)
        if cipher is None:
            cipher = self._ciphers[lane] = AESGCM(derive(self._root, f"cellarer/1/records/{lane}"))
        return cipher

    def _aad(self, header: bytes, record_id: bytes) -> bytes:
        return self._context + record_id + header


class Verified(bytes):
    """Bytes of a signed object whose signature was found right before, on this host.

    It is not computed again. Whether the key that made it is trusted is another question.
    """


class Signer:
    """An Ed25519 key that signs control objects."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw().hex()

    def sign(self, purpose: str, body: dict[str, object]) -> bytes:
        """A signed object: canonical JSON with the body, the signer's key and the signature."""
        signature = self._key.sign(_signed_bytes(purpose, body)).hex()
        return canonical_json({"body": body, "signed_by": self.public, "signature": signature})


def read_signed(purpose: str, data: bytes) -> tuple[dict[str, Any], str]:
    """The body of a signed object and the public key (hex) that signed it, trusted or not."""
    value = parse_json(data, purpose)
    body, signer, signature = (value.get(k) for k in ("body", "signed_by", "signature"))
    if not isinstance(body, dict) or not isinstance(signer, str) or not isinstance(signature, str):
        raise DamagedData(f"{purpose} is not a signed object")
    if isinstance(data, Verified):
        return body, signer
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
        public.verify(bytes.fromhex(signature), _signed_bytes(purpose, body))
    except (InvalidSignature, ValueError, RecursionError) as error:
        raise DamagedData(f"the signature of {purpose} is wrong") from error
    return body, signer


def _signed_bytes(purpose: str, body: dict[str, Any]) -> bytes:
    return f"cellarer/1/{purpose}\n".encode() + canonical_json(body)


def sealed_text(key: bytes, value: object, purpose: str) -> str:
    """A value sealed into text, to stand inside a signed JSON object."""
    return base64.b64encode(seal(key, canonical_json(value), purpose)).decode()


def unsealed_text(key: bytes, text: str, purpose: str) -> dict[str, Any]:
    """The value of `sealed_text`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DamagedData(f"{purpose} is not readable", detail=str(error)) from error
    return parse_json(unseal(key, raw, purpose), purpose)


def seal_to_recipients(plaintext: bytes, recipients: Sequence[str]) -> bytes:
    """An age file that every recipient can open."""
    return bytes(pyrage.encrypt(plaintext, [parse_recipient(r) for r in recipients]))
