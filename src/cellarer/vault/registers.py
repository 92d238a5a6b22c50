"""The registers of sessions: which ended as restore points, and on which replicas."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from cellarer.domain.history import in_order
from cellarer.errors import DamagedData, ObjectMissing, StoreError
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.control import ListedObjects
from cellarer.vault.tombstones import tombstones
from cellarer.vault.trust import Role, SignedTooLate

if TYPE_CHECKING:
    from cellarer.vault.vault import Vault


@dataclass(frozen=True)
class Commit:
    """A committed snapshot, as its signed record says it.

    `replicas` hold the record; `absent` are those where a collector closed the session first, so
    that the snapshot will never be there.
    """

    session: str
    writer: str
    body: dict[str, Any]
    sha256: str
    replicas: tuple[str, ...]
    absent: tuple[str, ...] = ()
    forgotten: bool = False

    @property
    def source(self) -> str:
        """The source's name in the config."""
        return str(self.body["source"])

    @property
    def previous(self) -> str:
        """The SHA-256 of the register that its writer knew as the last; "" for the first."""
        return str(self.body["previous"])

    @property
    def envelope(self) -> tuple[str, str] | None:
        """The name of the envelope with the session's key, and the SHA-256 of its bytes.

        None where its writer did not say so yet.
        """
        match self.body.get("envelope"):
            case [str(name), str(sha256)]:
                return name, sha256
        return None

    @property
    def clock(self) -> str:
        """What sorts by the writer's clock."""
        return f"{self.body['finished']} {self.session}"

    @property
    def started(self) -> datetime:
        """When its session began, by the writer's clock."""
        return layout.parse_time(self.body["started"])

    @property
    def finished(self) -> datetime:
        """When it was committed, by the writer's clock."""
        return layout.parse_time(self.body["finished"])


@dataclass(frozen=True)
class Repack:
    """A session in which a collector copied records into new packs.

    `moves` names the object that says which and where to. `replicas` hold its register; `absent`
    are those where another collector closed the session first.
    """

    session: str
    moves: str
    replicas: tuple[str, ...]
    absent: tuple[str, ...] = ()


Outcome = Commit | Repack


@dataclass(frozen=True)
class Register:
    """What one replica's register says; `outcome` is None for an ABORT."""

    size_bytes: int
    outcome: Outcome | None


def signed_register(
    signer: crypto.Signer, vault: Vault, session: str, writer: str, outcome: str, **more: object
) -> bytes:
    """The register with which a session ends, by who has the right to end it so."""
    body: dict[str, object] = {
        "outcome": outcome,
        "session": session,
        "vault": vault.id,
        "writer": writer,
        **more,
    }
    return signer.sign("snapshot", body)


def read_commits(vault: Vault, forgotten: bool) -> list[Commit]:
    """See `Vault.commits`."""
    given_up = tombstones(vault)
    found = [
        replace(outcome, forgotten=outcome.session in given_up)
        for outcome in read_outcomes(vault)
        if isinstance(outcome, Commit)
    ]
    # Ordered before any is left out: a forgotten one may be what links two others.
    return [commit for commit in in_order(found) if forgotten or not commit.forgotten]


def read_repacks(vault: Vault) -> list[Repack]:
    """See `Vault.repacks`."""
    return [outcome for outcome in read_outcomes(vault) if isinstance(outcome, Repack)]


def read_outcomes(vault: Vault) -> list[Outcome]:
    """How sessions ended that were not aborted everywhere, in the order of their ids."""
    with vault.listed(layout.SNAPSHOTS_PREFIX) as registers:
        names = registers.sizes
        outcomes = vault.gather(names, lambda key: read_outcome(vault, key, registers))
    if names and not outcomes:
        # Not one can be read: a wrong key, or a vault that is damaged as a whole.
        raise vault.unreadable[min(names)]
    return [outcome for outcome in outcomes if outcome is not None]


def read_outcome(vault: Vault, key: str, registers: ListedObjects) -> Outcome | None:
    """One register; None where no replica holds anything but an ABORT.

    The register belongs to the replica: one may hold the COMMIT and another the ABORT of a
    collector that came first. Raises `DamagedData` where one that cannot be read may be the only
    COMMIT.
    """
    sizes, check = registers.sizes[key], partial(open_register, vault, key)
    first = registers.fetch(key, check)
    by_size = {first.size_bytes: first}
    doubt: StoreError | DamagedData | None = None
    for replica in vault.replicas.replicas:
        size = sizes.get(replica.name, first.size_bytes)
        if size in by_size:
            continue
        try:
            by_size[size] = registers.fetch_from(replica, key, check)
        except SignedTooLate:
            continue
        except (StoreError, DamagedData) as error:
            # It is damaged there, and that replica has not this register. One that went away is
            # told of by itself.
            if isinstance(error, DamagedData) or not error.retryable:
                doubt = error
    outcome = next((each.outcome for each in by_size.values() if each.outcome), None)
    if outcome is None and doubt is not None:
        raise DamagedData(
            f"{key} is an ABORT on one replica, and cannot be read on another, where it may be the "
            "only COMMIT",
            detail=str(doubt),
            hint="bring it back from a copy of that replica; or give up what may be a restore "
            "point, and delete this object there",
        )
    if outcome is None:
        return None
    states = {name: by_size[size].outcome for name, size in sizes.items() if size in by_size}
    return replace(
        outcome,
        replicas=tuple(name for name, held in states.items() if held),
        absent=tuple(name for name, held in states.items() if not held),
    )


def open_register(vault: Vault, key: str, data: bytes) -> Register:
    """A register out of its bytes. Raises `DamagedData`."""
    session = key.removeprefix(layout.SNAPSHOTS_PREFIX)
    body, signer = crypto.read_signed("snapshot", data)
    outcome = body.get("outcome")
    if outcome not in ("commit", "abort", "repack"):
        raise DamagedData(f"{key} has an outcome that format 1 does not know")
    vault.check_signer(key, data, signer, outcome)
    if body.get("session") != session or body.get("vault") != vault.id:
        raise DamagedData(f"{key} holds the record of another snapshot")
    if outcome == "abort":
        if not isinstance(data, crypto.Verified):
            _check_abort(vault, session, signer)
        return Register(len(data), None)
    inner = crypto.unsealed_text(vault.index_key, str(body.get("sealed")), f"snapshot {session}")
    if outcome == "repack":
        return Register(len(data), _repack(key, session, inner))
    writer = str(body.get("writer"))
    if not vault.configuration.is_writer(writer, signer):
        raise DamagedData(f"{key} is not signed by the writer that it names")
    sha256 = hashlib.sha256(data).hexdigest()
    return Register(len(data), Commit(session, writer, _checked(key, inner), sha256, ()))


def _repack(key: str, session: str, inner: dict[str, Any]) -> Repack:
    moves = str(inner.get("moves"))
    if not layout.is_pack(moves):
        raise DamagedData(f"{key} is not a record of a repack")
    return Repack(session, moves, ())


_TEXTS = ("source", "kind", "previous")
_NUMBERS = ("read_bytes", "added_bytes", "stored_bytes", "streams")


def _checked(key: str, inner: dict[str, Any]) -> dict[str, Any]:
    """The inner record, if it says what everyone who lists points relies on."""
    try:
        for name in ("started", "finished"):
            layout.parse_time(inner[name])
        texts = [inner[name] for name in _TEXTS]
        whole = all(isinstance(text, str) and text.isprintable() for text in texts)
        numbers = [inner["seconds"], *(inner[name] for name in _NUMBERS)]
        whole = whole and all(_is_size(number) for number in numbers)
        whole = whole and isinstance(inner["note"].get("behind", {}), dict)
        layout.packs_in([inner["references"]])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedData(f"{key} is not a record of a snapshot", detail=str(error)) from error
    if not whole:
        raise DamagedData(f"{key} is not a record of a snapshot")
    return inner


def _is_size(number: object) -> bool:
    """A number that is no less than 0 and fits in 64 bits; seconds may have a fraction."""
    return type(number) in (int, float) and 0 <= float(str(number)) < 1 << 64


def _check_abort(vault: Vault, session: str, signer: str) -> None:
    """A writer ends its own sessions only; collectors and administrators end any."""
    if signer not in vault.configuration.public_keys(Role.WRITER):
        return
    key = layout.session_key(session)
    answers = vault.replicas.each(lambda store: store.read(key)).values()
    if all(isinstance(answer, ObjectMissing) for answer in answers):
        return  # collected: nothing of the session is left
    writer = str(vault.announcement(session).get("writer"))
    if vault.configuration.writers.get(writer) != signer:
        raise DamagedData(f"session {session} was ended by another writer than its own")
