"""Making a new vault: its keys, then its first objects on every replica."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from datetime import datetime

from cellarer.errors import CellarerError, KeyUnusable, ObjectExists, StoreError
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.envelopes import ADMIN, VAULT, VaultKeys
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.replicas import ReplicaSet, unreachable


@dataclass(frozen=True)
class Made:
    """What a new vault gives to its founder, once.

    `objects` are what every replica gets, in the order of writing; secrets in them are sealed.
    """

    vault_id: str
    write_key: WriteKey
    collect_key: CollectKey
    recipients: tuple[str, ...]
    objects: tuple[tuple[str, bytes], ...]


def prepare(identity: Identity, now: datetime) -> Made:
    """The keys and first objects of a vault that is not made yet; nothing is written.

    Raises `KeyUnusable` where the identity's recipients cannot be sealed to.
    """
    if not identity.recipients:
        raise KeyUnusable(
            "the identity file does not name its recipient",
            hint="put the line with the public key, age1…, that its plugin printed into it",
        )
    vault_id, index = crypto.new_key()[:16].hex(), crypto.new_key()
    seed = None if len(identity.signers) == len(identity.recipients) else crypto.new_key()
    admin = crypto.Signer(seed) if seed else identity.signers[0]
    write_key = WriteKey(
        vault=vault_id,
        writer="w-" + crypto.new_key()[:4].hex(),
        signing_seed=crypto.new_key(),
        index=index,
        chunk_ids=crypto.new_key(),
        admin=admin.public,
        recipients=identity.recipients,
    )
    collect_key = CollectKey(
        vault=vault_id,
        collector="c-" + crypto.new_key()[:4].hex(),
        signing_seed=crypto.new_key(),
        index=index,
        admin=admin.public,
    )
    objects = _first_objects(write_key, collect_key, identity, seed, layout.time_text(now))
    return Made(vault_id, write_key, collect_key, identity.recipients, objects)


def make(replicas: ReplicaSet, made: Made) -> None:
    """Make a prepared vault on every replica; all must answer. Refuses where one is already.

    `format.json` comes last: without it there is no vault, only leftovers.
    """
    refuse_existing(replicas)
    for key, data in made.objects:
        _create_everywhere(replicas, key, data)


def _first_objects(
    write_key: WriteKey,
    collect_key: CollectKey,
    identity: Identity,
    founder_seed: bytes | None,
    created: str,
) -> tuple[tuple[str, bytes], ...]:
    """What a new vault holds, in the order of writing.

    `founder_seed` is sealed into it: what its founder's signing key is made of, where none follows
    from the identity.
    """
    vault, recipients = write_key.vault, identity.recipients
    founder = crypto.Signer(founder_seed) if founder_seed else identity.signers[0]
    admins = [{"public": s.public, "recipient": recipient} for s, recipient in identity.admins]
    sealed = []
    if founder_seed:
        admins.append({"public": founder.public, "recipient": ""})
        secret = layout.canonical_json({"signing_seed": founder_seed.hex(), "vault": vault})
        name = layout.envelope_key(ADMIN + founder.public[:16])
        sealed.append((name, crypto.seal_to_recipients(secret, recipients)))
    config: dict[str, object] = {
        "admins": admins,
        "collectors": [{"id": collect_key.collector, "public": collect_key.signer.public}],
        "created": created,
        "epoch": 0,
        "generation": 0,
        "previous": "",
        "recipients": list(recipients),
        "retired": [],
        "suite": crypto.SUITE,
        "vault": vault,
        "writers": [{"id": write_key.writer, "public": write_key.signer.public}],
    }
    roots = VaultKeys(vault, write_key.index, write_key.chunk_ids)
    marker = {
        "created": created,
        "format": layout.FORMAT_NAME,
        "vault": vault,
        "version": layout.FORMAT_VERSION,
    }
    return (
        (layout.RESCUE_KEY, rescue_program()),
        (layout.config_key(0), founder.sign("config", config)),
        (layout.envelope_key(VAULT), roots.sealed(recipients)),
        *sealed,
        (layout.FORMAT_KEY, layout.canonical_json(marker) + b"\n"),
    )


def refuse_existing(replicas: ReplicaSet) -> None:
    """Raise where a replica does not answer or holds a vault already."""
    answers = replicas.each(lambda store: [o.key for o in store.list("")][:1])
    broken = {n: a for n, a in answers.items() if isinstance(a, CellarerError)}
    if broken:
        raise unreachable("a new vault needs every replica to answer", broken)
    for name, answer in answers.items():
        if answer:
            raise StoreError(
                f"replica {name} is not empty",
                detail=f"it holds {answer[0]}" if isinstance(answer, list) else "",
                hint="a vault is only made in an empty place: name another, or empty it yourself "
                "if it holds the leftovers of an interrupted init",
            )


def _create_everywhere(replicas: ReplicaSet, key: str, data: bytes) -> None:
    answers = replicas.each(lambda store: store.create(key, data))
    problems = {n: a for n, a in answers.items() if isinstance(a, CellarerError)}
    if any(isinstance(problem, ObjectExists) for problem in problems.values()):
        raise StoreError(f"somebody else makes a vault here: {key} appeared just now")
    if problems:
        raise unreachable("a new vault needs every replica to answer", problems)


def rescue_program() -> bytes:
    """The reader that a new vault gets."""
    return importlib.resources.files("cellarer.vault").joinpath("rescue.py").read_bytes()
