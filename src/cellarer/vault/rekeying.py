"""Changing who may read and write: a new epoch of the configuration, and envelopes sealed anew.

Every step looks before it acts. Interrupted anywhere, the vault reads as before, and the same
change asked for again goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from cellarer.errors import (
    CellarerError,
    DamagedData,
    KeyUnusable,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from cellarer.ports import Store
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.configuration import Administrator, Retired, epochs
from cellarer.vault.envelopes import ADMIN, VAULT, content, key_in, open_envelope, parse_name
from cellarer.vault.keys import Identity
from cellarer.vault.log_keys import log_keys
from cellarer.vault.log_object import signed_header
from cellarer.vault.needs import Needs
from cellarer.vault.replicas import Replica, unreachable
from cellarer.vault.trust import Role
from cellarer.vault.vault import Vault

_SIGNED_PREFIXES = {
    layout.SNAPSHOTS_PREFIX: "snapshot",
    layout.SESSIONS_PREFIX: "session",
    layout.FORGOTTEN_PREFIX: "forgotten",
    layout.COLLECTIONS_PREFIX: "collection",
    layout.LEDGER_PREFIX: "ledger",
    layout.WAL_PREFIX: "wal",
}


@dataclass(frozen=True)
class Resealed:
    """What sealing anew came to.

    `sessions` and the vault's own keys have envelopes, of which `resealed` were sealed by this run.
    `kept` has replica name -> older envelopes that its store did not delete, with the reason.
    """

    recipients: tuple[str, ...]
    sessions: int
    resealed: int
    kept: Mapping[str, tuple[int, str]]


def publish(vault: Vault, changes: Mapping[str, object], now: datetime) -> Vault:
    """Sign the next epoch, put it on every replica, and open the vault anew.

    The replicas are asked one after the other, always in the same order: of two administrators who
    change something at once, the first replica lets one go on. Raises `StoreError` for the other,
    `VaultUnreachable` where a replica does not answer.
    """
    require_every_replica(vault)
    before = vault.configuration
    key = layout.config_key(before.epoch + 1)
    body = {
        **before.body,
        "admins": admins_body(before.admins),
        "collectors": before.body.get("collectors", []),
        "retired": before.body.get("retired", []),
        "generation": before.generation,
        **changes,
        "created": layout.time_text(now),
        "epoch": before.epoch + 1,
        "previous": before.sha256,
    }
    put_everywhere(vault, key, vault.signer_for("config").sign("config", body))
    return vault.reopen()


def admins_body(admins: Iterable[Administrator]) -> list[dict[str, str]]:
    """Administrators as the body of a configuration has them."""
    return [{"public": admin.public, "recipient": admin.recipient} for admin in admins]


def require_every_replica(vault: Vault) -> None:
    """Raises `VaultUnreachable` unless all replicas answer and hold this vault.

    One that is away may hold commits that must be vouched for, and keeps the old envelopes.
    """
    answers = vault.replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    if any(isinstance(answer, CellarerError) for answer in answers.values()):
        raise unreachable(
            "changing keys needs every replica to answer and to hold the vault", answers
        )


def put_everywhere(vault: Vault, key: str, data: bytes) -> None:
    """Create an object on each replica in turn."""
    for replica in vault.replicas.replicas:
        try:
            replica.store.create(key, data)
        except ObjectExists as error:
            raise StoreError(
                f"somebody else changed the vault's keys just now: {key}",
                detail=f"{replica.name}: {error}",
                hint="look at `cellarer keys list`, then run this again",
            ) from error


def vouch(vault: Vault, role: Role, identifier: str, public: str) -> Retired:
    """List everything that a key signed so far, on every replica; its retirement names the list.

    An announcement counts only with its session's register: a session that is still open when its
    writer's key is retired does not become a point.
    """
    objects: dict[str, list[str]] = {}
    for prefix, purpose in _SIGNED_PREFIXES.items():
        listings = vault.replicas.listings(prefix).values()
        keys = {key for found in listings for key in found}
        objects |= dict(vault.gather(keys, partial(_signed_by, vault, purpose, public)))
    objects = {key: sums for key, sums in objects.items() if sums}
    for key in [key for key in objects if key.startswith(layout.SESSIONS_PREFIX)]:
        if layout.snapshot_key(key.removeprefix(layout.SESSIONS_PREFIX)) not in objects:
            del objects[key]
    text = layout.canonical_json({"objects": objects, "public": public, "vault": vault.id})
    sha256 = hashlib.sha256(text).hexdigest()
    put_everywhere(vault, layout.vouched_key(sha256), text)
    return Retired(role, identifier, public, sha256)


def _signed_by(vault: Vault, purpose: str, public: str, key: str) -> tuple[str, list[str]]:
    """A name, and the SHA-256 of what replicas have there, as far as this key signed it."""
    sums = set()
    for answer in vault.replicas.each(partial(_signed_bytes, key=key)).values():
        if isinstance(answer, ObjectMissing | DamagedData):
            continue
        if isinstance(answer, CellarerError):
            raise answer
        try:
            _, signer = crypto.read_signed(purpose, answer)
        except DamagedData:
            continue
        if signer == public:
            sums.add(hashlib.sha256(answer).hexdigest())
    return key, sorted(sums)


def _signed_bytes(store: Store, key: str) -> bytes:
    """What of an object is signed: of WAL its header, which names the hash of the rest."""
    if key.startswith(layout.WAL_PREFIX):
        return signed_header(store, key)
    return store.read(key)


def retired_body(retired: Iterable[Retired]) -> list[dict[str, str]]:
    """Retirements as the body of a configuration has them."""
    return [
        {"role": r.role.value, "id": r.id, "public": r.public, "vouched": r.vouched}
        for r in retired
    ]


def envelopes(vault: Vault) -> dict[str, dict[str, set[int]]]:
    """What each envelope is for -> replica -> the generations that it has there."""
    found: dict[str, dict[str, set[int]]] = {}
    for replica, keys in vault.replicas.listings(layout.KEYS_PREFIX).items():
        for key in keys:
            if parsed := parse_name(key):
                found.setdefault(parsed[0], {}).setdefault(replica, set()).add(parsed[1])
    return found


def behind(vault: Vault) -> list[str]:
    """What is not yet sealed to the present recipients on some replica that has it.

    One that is away, or lacks the object altogether, is brought up to date by `sync`.
    """
    generation = vault.configuration.generation
    return sorted(
        name
        for name, places in envelopes(vault).items()
        if _needed(vault, name) and any(generation not in g for g in places.values())
    )


def _needed(vault: Vault, name: str) -> bool:
    """An administrator's key that is none any more is not sealed anew."""
    if not name.startswith(ADMIN):
        return True
    return name.removeprefix(ADMIN) in {a.public[:16] for a in vault.configuration.admins}


def reseal(vault: Vault, *, delete_older: bool) -> Resealed:
    """Seal every envelope to the present recipients, on every replica; then the older ones may go.

    A replica's older envelopes are deleted only after the new one was read back from it and opened.
    """
    identity = vault.identity
    if identity is None:
        raise KeyUnusable(
            "sealing keys anew needs an identity, and this host has none",
            hint="run this where vault.identity is set",
        )
    spread_configuration(vault)
    found = envelopes(vault)
    needed = {name: places for name, places in found.items() if _needed(vault, name)}
    resealed = 0
    problems: dict[str, CellarerError] = {}
    for name, places in needed.items():
        try:
            resealed += _reseal_one(vault, identity, name, places)
        except (DamagedData, KeyUnusable) as error:
            problems[name] = error
    kept: dict[str, tuple[int, str]] = {}
    for replica in vault.replicas.replicas if delete_older else ():
        whole = {name: places for name, places in found.items() if name not in problems}
        if left := _delete_older(vault, identity, replica, whole):
            kept[replica.name] = left
    _refuse_problems(vault, problems)
    sessions = sum(_is_session(name) for name in found)
    return Resealed(vault.recipients, sessions, resealed, kept)


def _is_session(name: str) -> bool:
    return name != VAULT and not name.startswith(ADMIN)


def _refuse_problems(vault: Vault, problems: Mapping[str, CellarerError]) -> None:
    """What could not be sealed anew matters unless no restore point, and no WAL, needs that key.

    One that was given up may have sealed what others have built upon.
    """
    if not problems:
        return
    needs = Needs(vault)
    needs.estimate()
    needed = needs.sessions | needs.unknown | log_keys(vault).keys()
    lost = sorted(name for name in problems if name in needed or not _is_session(name))
    if lost:
        raise DamagedData(
            f"{len(lost)} of the vault's keys could not be sealed to the new recipients",
            detail=f"{lost[0]}: {problems[lost[0]]}",
            hint="their older envelopes were kept; `cellarer sync` may bring a whole copy, then "
            "run this again",
        )


def spread_configuration(vault: Vault) -> None:
    """Finish what an interrupted change began: every epoch on every replica."""
    require_every_replica(vault)
    for key in epochs(vault.replicas):
        _copy_everywhere(vault, key)


def _copy_everywhere(vault: Vault, key: str) -> None:
    """An epoch that one replica has and another lacks, from a change that was interrupted."""
    answers = vault.replicas.each(lambda store: store.read(key))
    lacking = [name for name, answer in answers.items() if isinstance(answer, ObjectMissing)]
    data = next((answer for answer in answers.values() if isinstance(answer, bytes)), None)
    for replica in vault.replicas.replicas:
        if replica.name in lacking and data is not None:
            replica.store.create(key, data)


def _reseal_one(
    vault: Vault, identity: Identity, name: str, places: Mapping[str, set[int]]
) -> bool:
    """Whether this envelope had to be sealed: it may be that only a replica lacked it.

    What is there under the name already is opened first: anyone who may add objects could have
    put it there.
    """
    generation, listed = vault.configuration.generation, vault.sealed_to(identity)
    key = layout.envelope_key(name, generation)
    check, data = _content_check(vault, name), None
    lacking = []
    for replica in vault.replicas.replicas:
        if generation not in places.get(replica.name, ()):
            lacking.append(replica)
            continue
        data = replica.store.read(key)
        check(content(identity, key, data, listed=generation in listed), key)
    sealed = data is None
    if data is None:
        value = open_envelope(vault.replicas, name, generation, identity, check, listed)
        data = crypto.seal_to_recipients(layout.canonical_json(value), vault.recipients)
    for replica in lacking:
        replica.store.create(key, data)
    return sealed


def _content_check(vault: Vault, name: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Checks that an envelope holds what it is for: anyone can seal anything to a recipient."""
    check_root = vault.root_check(name) if _is_session(name) else None

    def check(value: dict[str, Any], key: str) -> dict[str, Any]:
        if value.get("vault") != vault.id:
            raise DamagedData(f"{key} holds a key of another vault")
        if check_root is not None:
            check_root(value, key)
        elif name == VAULT and key_in(value, "index", key) != vault.index_key:
            raise DamagedData(f"{key} holds another index key than the vault's")
        elif name.startswith(ADMIN):
            public = crypto.Signer(key_in(value, "signing_seed", key)).public
            if public not in vault.configuration.public_keys(Role.ADMINISTRATOR):
                raise DamagedData(f"{key} holds the key of nobody")
        return value

    return check


def outdated(vault: Vault, name: str, generations: Iterable[int]) -> list[int]:
    """The generations of an envelope that nobody needs any more.

    Of an administrator's key that is none any more also the present one, not one to come: somebody
    may be about to name it in a configuration.
    """
    present, needed = vault.configuration.generation, _needed(vault, name)
    return [
        number for number in generations if number < present or (number == present and not needed)
    ]


def _delete_older(
    vault: Vault,
    identity: Identity,
    replica: Replica,
    found: Mapping[str, Mapping[str, set[int]]],
) -> tuple[int, str] | None:
    """How many older envelopes a replica keeps, and why; None where none are left."""
    kept, reason = 0, ""
    for name, places in found.items():
        older = outdated(vault, name, places.get(replica.name, ()))
        if older and _needed(vault, name):
            key = layout.envelope_key(name, vault.configuration.generation)
            content = layout.parse_json(identity.open(replica.store.read(key), key), key)
            _content_check(vault, name)(content, key)
        for number in older:
            if problem := _delete(replica.store, layout.envelope_key(name, number)):
                kept, reason = kept + 1, problem
    return (kept, reason) if kept else None


def _delete(store: Store, key: str) -> str:
    """Empty, or why the store keeps the object."""
    try:
        store.delete(key)
    except ObjectMissing:
        return ""
    except StoreError as error:
        return str(error)
    return ""
