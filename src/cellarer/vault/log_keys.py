"""Log keys: to what write-ahead log is sealed, so that the host that stores it cannot read it.

A log key is a session like any other, with an envelope for the recipients, whose announcement gives
the public half of a key that follows from the session's root. It is closed by its own ABORT at
once: it never becomes a point, and no collector need wait for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from blake3 import blake3

from cellarer.domain.wal import is_system
from cellarer.errors import CellarerError, DamagedData, ObjectExists, ObjectMissing
from cellarer.ports import Store
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.genuine import Trust, good_copy
from cellarer.vault.keys import needed_write_key
from cellarer.vault.log_object import private_key, public_half
from cellarer.vault.registers import signed_register
from cellarer.vault.replicas import Replica, unreachable
from cellarer.vault.vault import Vault

LOG_KEY_AGE = timedelta(days=30)
"""A key is used for so long. Whoever gets one identity out of a removed recipient's hands reads
what was sealed until then."""

STORING = "store write-ahead log"
"""What a host needs the write key for here."""


@dataclass(frozen=True)
class LogKey:
    """The public half of a log key, as its announcement says it.

    `envelope` is the name of the envelope that its writer sealed, and the SHA-256 of its bytes.
    """

    session: str
    system: str
    public: str
    writer: str
    envelope: tuple[str, str]

    @property
    def generation(self) -> int:
        """The generation of the recipients to whom it was sealed."""
        return int(self.envelope[0].rsplit(".", 2)[1])


def announced_key(body: Mapping[str, Any]) -> LogKey | None:
    """The log key in a session's announcement; None for a session of another kind.

    Raises `DamagedData` for one that says nothing.
    """
    told = body.get("log")
    if told is None:
        return None
    session = str(body.get("session"))
    try:
        name, sha256 = told["envelope"]
        system, public = str(told["system"]), str(told["public"])
        right = len(bytes.fromhex(public)) == len(bytes.fromhex(sha256)) == crypto.KEY_BYTES
        generation = str(name).removeprefix(f"{layout.KEYS_PREFIX}{session}.")
        right &= name == layout.envelope_key(session, int(generation.removesuffix(".age")))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"session {session} announces no log key") from error
    if not right or not is_system(system):
        raise DamagedData(f"session {session} announces no log key")
    return LogKey(session, system, public, str(body.get("writer")), (name, sha256))


def log_keys(vault: Vault) -> dict[str, LogKey]:
    """The log keys that some replica has, by their sessions."""
    with vault.listed(layout.SESSIONS_PREFIX) as found:

        def read(name: str) -> LogKey | None:
            return found.fetch(name, lambda data: _opened(vault, name, data))

        keys = vault.gather(found.sizes, read)
    return {key.session: key for key in keys if key is not None}


def log_key(vault: Vault, session: str) -> LogKey:
    """That of one session. Raises `DamagedData` where it announced none."""
    found = announced_key(vault.announcement(session))
    if found is None:
        raise DamagedData(f"session {session} has no log key")
    return found


def new_log_key(vault: Vault, system: str, now: datetime) -> LogKey:
    """Make a log key, on all replicas that answer; `sync` brings it to the others.

    First the announcement, then the envelope, then the ABORT. Raises `VaultUnreachable` where fewer
    than the quorum take them.
    """
    writer = needed_write_key(vault.write_key, STORING).writer
    signer = vault.signer_for("session")
    root, session = crypto.new_key(), layout.new_session(now)
    envelope = {"root": root.hex(), "session": session, "vault": vault.id}
    sealed = crypto.seal_to_recipients(layout.canonical_json(envelope), vault.recipients)
    name = layout.envelope_key(session, vault.configuration.generation)
    sha256 = hashlib.sha256(sealed).hexdigest()
    public = public_half(private_key(root))
    announcement: dict[str, object] = {
        "commitment": blake3(root).hexdigest(),
        "log": {"envelope": [name, sha256], "public": public, "system": system},
        "session": session,
        "started": layout.time_text(now),
        "vault": vault.id,
        "writer": writer,
    }
    _spread(
        vault,
        {
            layout.session_key(session): signer.sign("session", announcement),
            name: sealed,
            layout.snapshot_key(session): signed_register(signer, vault, session, writer, "abort"),
        },
    )
    return LogKey(session, system, public, writer, (name, sha256))


def bring_key(vault: Vault, replica: Replica, session: str) -> None:
    """See that a replica has what opens a log key; it may have been away when that was made.

    Raises `StoreError`, and `DamagedData` where no replica has it.
    """
    announced = log_key(vault, session)
    register = layout.snapshot_key(session)
    for name in (layout.session_key(session), announced.envelope[0], register):
        try:
            vault.replicas.ask(replica, partial(_read_start, key=name))
        except ObjectMissing:
            data, _ = good_copy(vault.replicas, Trust.of(vault), name, besides=replica.name)
            with suppress(ObjectExists):  # somebody was faster, or a collector closed it there
                vault.replicas.ask(replica, partial(_create, key=name, data=data))


def _spread(vault: Vault, objects: Mapping[str, bytes]) -> None:
    """Create some objects on every replica, one after the other there."""

    def create(replica: Replica) -> None:
        for key, data in objects.items():
            vault.replicas.ask(replica, partial(_create, key=key, data=data))

    answers = vault.replicas.each_of(vault.replicas.replicas, create)
    took = [name for name, answer in answers.items() if not isinstance(answer, CellarerError)]
    if len(took) < vault.replicas.write_quorum:
        raise unreachable("too few replicas take the key to which WAL is sealed", answers)


def _create(store: Store, key: str, data: bytes) -> None:
    store.create(key, data)


def _read_start(store: Store, key: str) -> None:
    store.read_range(key, 0, 1)


def _opened(vault: Vault, name: str, data: bytes) -> LogKey | None:
    return announced_key(vault.open_announcement(name, data))
