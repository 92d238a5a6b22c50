"""One file of write-ahead log as an object of the vault: a signed header, and a sealed body.

The body is sealed to the public half of a log key (`log_keys.py`): whoever writes cannot read. The
header can be read by everyone, alone and without the body.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import (
    History,
    Kind,
    lsn_text,
    parse_lsn,
    parse_name,
)
from cellarer.errors import DamagedData
from cellarer.ports import Store
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.record import COMPRESSION_LEVEL
from cellarer.vault.replicas import Replica
from cellarer.vault.vault import Vault

MAGIC = b"CLRWAL01"
_START = struct.Struct(">8sI")
"""The magic, and the length of the header."""

_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class LogHeader:
    """What the header of an object says, once its signature was found right.

    `sighting` is what was known of the server then, sealed, "" for nothing: see `sighting_in`.
    `data` are its bytes, whose hash stands for the object; `offset` is where the body begins.
    """

    key: str
    vault: str
    session: str
    ephemeral: str
    size_bytes: int
    content: str
    body_sha256: str
    stored: datetime
    switches: tuple[tuple[int, int], ...]
    sighting: str
    signer: str
    data: bytes
    offset: int

    @property
    def history(self) -> History:
        """The history that the object holds, if it holds one."""
        return History(parse_name(self.key.rpartition("/")[2]).timeline, self.switches)


@dataclass(frozen=True)
class SealedLog:
    """An object as it is stored; `session` is that of the log key to which it is sealed."""

    key: str
    session: str
    data: bytes


def content_sum(chunk_ids: bytes, system: str, data: bytes) -> str:
    """What tells the same WAL from other WAL, to those who have a key that names chunks."""
    key = crypto.derive(chunk_ids, f"cellarer/1/wal/{system}")
    return blake3(data, key=key).hexdigest()


def private_key(root: bytes) -> X25519PrivateKey:
    """The private half of the log key that follows from the root key of its session."""
    return X25519PrivateKey.from_private_bytes(crypto.derive(root, "cellarer/1/wal"))


def public_half(private: X25519PrivateKey) -> str:
    """The public half, in hex."""
    return private.public_key().public_bytes_raw().hex()


def seal_log(
    signer: crypto.Signer,
    vault: str,
    key: str,
    data: bytes,
    *,
    session: str,
    public: str,
    content: str,
    stored: datetime,
    sighting: str = "",
) -> SealedLog:
    """The object `key` that holds `data`, sealed to the `public` log key of a session."""
    ephemeral = X25519PrivateKey.generate()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    own = public_half(ephemeral)
    packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(data)
    unpadded = len(packed) + crypto.SEAL_BYTES
    sealing = crypto.derive(shared, f"cellarer/1/wal/{own}/{public}")
    purpose, padding = _purpose(vault, session, key), layout.padded_length(unpadded) - unpadded
    body = crypto.seal_packed(sealing, packed, purpose, padding)
    header: dict[str, object] = {
        "content": content,
        "ephemeral": own,
        "name": key,
        "session": session,
        "sha256": hashlib.sha256(body).hexdigest(),
        "size": len(data),
        "stored": layout.time_text(stored),
        "vault": vault,
    }
    name = parse_name(key.rpartition("/")[2])
    if name.kind is Kind.HISTORY:
        header["switches"] = _switches(History.parse(name.timeline, data.decode()))
    if sighting:
        header["sighting"] = sighting
    signed = signer.sign("wal", header)
    return SealedLog(key, session, b"".join((_START.pack(MAGIC, len(signed)), signed, body)))


def open_log(header: LogHeader, data: bytes, private: X25519PrivateKey) -> bytes:
    """The WAL in an object whose header was read. Raises `DamagedData`."""
    try:
        peer = X25519PublicKey.from_public_bytes(bytes.fromhex(header.ephemeral))
        shared = private.exchange(peer)
    except ValueError as error:
        raise DamagedData(f"{header.key} does not authenticate") from error
    key = crypto.derive(shared, f"cellarer/1/wal/{header.ephemeral}/{public_half(private)}")
    purpose = _purpose(header.vault, header.session, header.key)
    plain = crypto.unseal(key, data[header.offset :], purpose)
    if len(plain) != header.size_bytes:
        raise DamagedData(f"{header.key} is not as long as it says")
    return plain


def read_header(store: Store, key: str) -> bytes:
    """The beginning of an object up to its body. Raises `ObjectMissing`, `DamagedData`."""
    start = store.read_range(key, 0, _START.size)
    return start + store.read_range(key, _START.size, _header_length(key, start))


def signed_header(store: Store, key: str) -> bytes:
    """The signed part of an object alone. Raises as `read_header`."""
    return read_header(store, key)[_START.size :]


def parse_header(key: str, data: bytes) -> LogHeader:
    """The header at the beginning of `data`. Raises `DamagedData`.

    Its signature is right; whether the key that made it may sign is for the caller to ask.
    """
    length = _header_length(key, data[: _START.size])
    end = _START.size + length
    signed = data[_START.size : end]
    if len(signed) < length:
        raise DamagedData(f"{key} is shorter than its header")
    body, signer = crypto.read_signed("wal", signed)
    if body.get("name") != key:
        raise DamagedData(f"{key} holds what belongs under another name")
    try:
        return LogHeader(
            key=key,
            vault=str(body["vault"]),
            session=layout.sessions_in([body["session"]])[0],
            ephemeral=_hex(body["ephemeral"]),
            size_bytes=layout.count_in(body, "size"),
            content=_hex(body["content"]),
            body_sha256=_hex(body["sha256"]),
            stored=layout.parse_time(body["stored"]),
            switches=_switches_in(body.get("switches", [])),
            sighting=str(body.get("sighting", "")),
            signer=signer,
            data=signed,
            offset=end,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedData(f"{key} has a header that says nothing", detail=str(error)) from error


def open_header(vault: Vault, key: str, data: bytes) -> LogHeader:
    """The header of an object, signed by who may store WAL in this vault. Raises `DamagedData`."""
    header = parse_header(key, data)
    vault.check_signer(key, header.data, header.signer, "wal")
    if header.vault != vault.id:
        raise DamagedData(f"{key} belongs to another vault")
    return header


def header_on(vault: Vault, replica: Replica, key: str) -> LogHeader:
    """That of what one replica has. Raises `ObjectMissing`, `StoreError`, `DamagedData`."""
    data = vault.replicas.ask(replica, lambda store: read_header(store, key))
    return open_header(vault, key, data)


def sealed_sighting(index_key: bytes, key: str, sighting: Sighting) -> str:
    """A sighting as it stands in the header of the object `key`: for those who have a key."""
    return crypto.sealed_text(index_key, sighting.as_json(), f"sighting {key}")


def sighting_in(index_key: bytes, header: LogHeader) -> Sighting | None:
    """What was known of the server when an object was stored. Raises `DamagedData`."""
    if not header.sighting:
        return None
    value = crypto.unsealed_text(index_key, header.sighting, f"sighting {header.key}")
    try:
        return Sighting.parse(value)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{header.key} tells nothing of its server"
        raise DamagedData(problem, detail=str(error)) from error


def check_body(header: LogHeader, data: bytes) -> None:
    """Raise `DamagedData` unless the body is the one for which the header was signed."""
    if hashlib.sha256(memoryview(data)[header.offset :]).hexdigest() != header.body_sha256:
        raise DamagedData(f"{header.key} is not what was written")


def _purpose(vault: str, session: str, key: str) -> str:
    return f"wal {vault} {session} {key}"


def _header_length(key: str, start: bytes) -> int:
    try:
        magic, length = _START.unpack(start)
    except struct.error as error:
        raise DamagedData(f"{key} is too short for a file of WAL") from error
    if magic != MAGIC or not 0 < length <= _LARGEST_HEADER:
        raise DamagedData(f"{key} is no file of WAL")
    return int(length)


def _hex(text: object) -> str:
    """32 bytes in hex. Raises `ValueError`."""
    if not isinstance(text, str) or len(bytes.fromhex(text)) != crypto.KEY_BYTES:
        raise ValueError("not 32 bytes in hex")
    return text


def _switches(history: History) -> list[list[object]]:
    return [[timeline, lsn_text(lsn)] for timeline, lsn in history.switches]


def _switches_in(value: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    found = [(timeline, parse_lsn(lsn)) for timeline, lsn in value]
    if not all(type(timeline) is int and timeline > 0 for timeline, _ in found):
        raise ValueError("a switch between no timelines")
    return tuple(found)
