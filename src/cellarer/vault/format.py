"""Format 1 as names and bytes: where objects lie and how small records are encoded.

`docs/format.md` specifies all of this to the byte; golden vectors in `tests/golden/vault` hold it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cellarer.errors import DamagedData

FORMAT_NAME = "cellarer-vault"
FORMAT_VERSION = 1

FORMAT_KEY = "format.json"
RESCUE_KEY = "rescue.py"
CONFIG_PREFIX = "config/"
KEYS_PREFIX = "keys/"
SESSIONS_PREFIX = "sessions/"
SNAPSHOTS_PREFIX = "snapshots/"
INDEX_PREFIX = "index/"
PACKS_PREFIX = "packs/"
META_PREFIX = "meta/"
FORGOTTEN_PREFIX = "forgotten/"
COLLECTIONS_PREFIX = "collections/"
LEDGER_PREFIX = "ledger/"
WAL_PREFIX = "wal/"
ASIDE_PREFIX = "aside/"

ID_BYTES = 16
"""Length of a chunk id and of a record id: 128 bits of a keyed BLAKE3.

Two of 2**40 chunks share an id with a probability of 2**-49; nobody without the key can aim at it.
"""

_HEADER_LENGTH = struct.Struct(">I")
_PACK = re.compile(r"(?:packs|meta)/([0-9a-f]{2})/([0-9a-f]{64})")
_SESSION = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


def config_key(epoch: int) -> str:
    """Where the signed configuration of one epoch lies."""
    return f"{CONFIG_PREFIX}{epoch:08d}"


def aside_key(key: str) -> str:
    """Where the whole bytes of an object lie while they take the place of damaged ones."""
    return ASIDE_PREFIX + key


def vouched_key(sha256: str) -> str:
    """Where the list of objects lies that a retired key signed while it was trusted."""
    return f"{CONFIG_PREFIX}vouched-{sha256}"


def envelope_key(session: str, generation: int = 0) -> str:
    """Where the session's root key lies, sealed to the recipients."""
    return f"{KEYS_PREFIX}{session}.{generation}.age"


def session_key(session: str) -> str:
    """Where a writer announces itself."""
    return SESSIONS_PREFIX + session


def snapshot_key(session: str) -> str:
    """The one-shot register that a COMMIT or an ABORT takes."""
    return SNAPSHOTS_PREFIX + session


def forgotten_key(session: str) -> str:
    """The tombstone of a restore point that retention gave up."""
    return FORGOTTEN_PREFIX + session


def round_key(number: int, step: str) -> str:
    """Where one step of a collection round lies: `begin`, `mark`, `sweep` or `done`."""
    return f"{COLLECTIONS_PREFIX}{number:08d}/{step}"


def index_key(session: str, number: int) -> str:
    """Where the n-th index segment of a session lies."""
    return f"{INDEX_PREFIX}{session}/{number:06d}"


def wal_prefix(system: str) -> str:
    """Below this lies the WAL of one cluster, by its system identifier."""
    return f"{WAL_PREFIX}{system}/"


def wal_key(system: str, name: str) -> str:
    """Where a file of WAL lies: by the timeline with which its name begins."""
    return f"{wal_prefix(system)}{name[:8]}/{name}"


def object_key(prefix: str, sha256: str) -> str:
    """Where a content-named object lies: fanned out by its first two hex digits."""
    return f"{prefix}{sha256[:2]}/{sha256}"


def check_content_name(key: str, data: bytes) -> bytes:
    """`data`, if the last part of `key` is its SHA-256. Raises `DamagedData`."""
    check_content_blocks(key, [data])
    return data


def check_content_blocks(key: str, blocks: Iterable[bytes]) -> int:
    """The same for an object in blocks, of which none is kept; its length in bytes."""
    digest, size_bytes = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size_bytes += len(block)
    if digest.hexdigest() != key.rpartition("/")[2]:
        raise DamagedData(f"{key} is not what was written")
    return size_bytes


def new_session(now: datetime) -> str:
    """A fresh session id, which is also the id of the restore point it may become.

    The time makes it readable, 32 random bits make it unique; safety rests on create-if-absent.
    """
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def session_start(session: str) -> datetime:
    """When a session began, by the clock of its writer. Raises `ValueError` for no session's id."""
    return datetime.strptime(session[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def is_session(name: str) -> bool:
    """Whether this is the form of a session's id."""
    return _SESSION.fullmatch(name) is not None


def sessions_in(names: object) -> list[str]:
    """A list of session ids, which become names of objects. Raises `ValueError` for others."""
    if not isinstance(names, list) or not all(isinstance(n, str) and is_session(n) for n in names):
        raise ValueError("not a list of sessions")
    return names


def packs_in(names: object) -> list[str]:
    """A list of names below `packs/` or `meta/`. Raises `ValueError` for anything else."""
    if not isinstance(names, list) or not all(isinstance(n, str) and is_pack(n) for n in names):
        raise ValueError("not a list of packs")
    return names


def is_pack(name: str) -> bool:
    """Whether this is the form of the name of a pack or a meta object."""
    found = _PACK.fullmatch(name)
    return found is not None and found[1] == found[2][:2]


def ledger_key(now: datetime) -> str:
    """A fresh name for a ledger entry; names sort by time."""
    moment = now.astimezone(UTC)
    return f"{LEDGER_PREFIX}{moment:%Y-%m-%d}/{moment:%H%M%S%f}-{secrets.token_hex(4)}"


def canonical_json(value: object) -> bytes:
    """The one way in which a value is written for signing: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """The object in `data`; `DamagedData` where it is none."""
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        raise DamagedData(f"{what} is not readable", detail="its bytes are no text") from error
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{what} is not readable", detail=str(error)) from error
    if not isinstance(value, dict):
        raise DamagedData(f"{what} is not readable", detail="not a JSON object")
    return value


def frame(header: dict[str, object], *arrays: bytes) -> bytes:
    """A JSON header with its length before it, and binary arrays behind it."""
    encoded = canonical_json(header)
    return b"".join((_HEADER_LENGTH.pack(len(encoded)), encoded, *arrays))


def unframe(data: bytes, what: str) -> tuple[dict[str, Any], memoryview]:
    """The header of a frame and the bytes of its arrays."""
    if len(data) < _HEADER_LENGTH.size:
        raise DamagedData(f"{what} is not readable", detail="too short")
    (length,) = _HEADER_LENGTH.unpack_from(data)
    end = _HEADER_LENGTH.size + length
    if end > len(data):
        raise DamagedData(f"{what} is not readable", detail="its header is longer than it is")
    return parse_json(data[_HEADER_LENGTH.size : end], what), memoryview(data)[end:]


def count_in(header: Mapping[str, Any], name: str) -> int:
    """How many rows an array has, by the header of its frame. Raises `ValueError`, `KeyError`."""
    value = header[name]
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError(f"{name} is no count of rows")
    return value


def time_text(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds and `Z`."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def parse_time(text: str) -> datetime:
    """The moment that `time_text` wrote. Raises `ValueError`."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a time without its zone: {text}")
    return moment.astimezone(UTC)


def padded_length(length: int) -> int:
    """The Padmé length for `length` bytes: it hides all but the leading bits of the size.

    Costs at most 12 %, and about 1.5 % on packs of this format. Nikitin et al., "Reducing Metadata
    Leakage from Encrypted Files and Communication with PURBs", PoPETs 2019.
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    free_bits = exponent - exponent.bit_length()
    mask = (1 << max(free_bits, 0)) - 1
    return (length + mask) & ~mask
