"""Who may read and who may write: recipients added, removed and replaced; a new write key."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from cellarer.errors import DamagedData, KeyUnusable, UsageError
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.age import Person, parse_recipient, written_alike
from cellarer.vault.configuration import Administrator, Configuration
from cellarer.vault.envelopes import ADMIN
from cellarer.vault.keys import Identity, WriteKey, read_private, write_private
from cellarer.vault.rekeying import (
    Resealed,
    admins_body,
    behind,
    envelopes,
    outdated,
    publish,
    put_everywhere,
    require_every_replica,
    reseal,
    retired_body,
    spread_configuration,
    vouch,
)
from cellarer.vault.shares import Share, combine, split
from cellarer.vault.trust import Role
from cellarer.vault.vault import Vault


@dataclass(frozen=True)
class KeyList:
    """Whoever can read, write and change the vault now.

    `behind` names the sessions whose key is not sealed to the present recipients everywhere yet.
    """

    configuration: Configuration
    founder: str
    sessions: int
    behind: tuple[str, ...]


def list_keys(vault: Vault) -> KeyList:
    """The keys as the newest configuration has them."""
    sessions = [name for name in envelopes(vault) if name[0].isdigit()]
    return KeyList(vault.configuration, _founder(vault), len(sessions), tuple(behind(vault)))


def _founder(vault: Vault) -> str:
    """Who signed epoch 0. Others will trust that key: so each epoch is one that the next names.

    The chain of this host may begin later, with an epoch that its own identity signed.
    """
    first = vault.epochs[0]
    signer, sha256 = first.signer, first.previous
    for epoch in range(first.epoch - 1, -1, -1):
        key = layout.config_key(epoch)
        data = vault.replicas.fetch(key, partial(_named, key, sha256))
        body, signer = crypto.read_signed("config", data)
        sha256 = str(body.get("previous"))
    return signer


def _named(key: str, sha256: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedData(f"{key} is not the epoch that the next one names")
    return data


def add_recipient(vault: Vault, recipient: str, now: datetime) -> Resealed:
    """Let one more identity read everything, what is stored already included."""
    _require_identity(vault)
    recipient = written_alike(recipient)
    parse_recipient(recipient)
    if recipient not in vault.recipients:
        everyone = [*vault.recipients, recipient]
        vault = _change(vault, everyone, vault.configuration.admins, now)
    return reseal(vault, delete_older=False)


def remove_recipient(vault: Vault, recipient: str, now: datetime) -> Resealed:
    """Seal everything to the others, then delete the envelopes that this one opens."""
    identity = _require_identity(vault)
    recipient = written_alike(recipient)
    if not recipient:
        raise UsageError("no recipient is named", hint="`cellarer keys list` shows them")
    if recipient in vault.recipients:
        others = [other for other in vault.recipients if other != recipient]
        if not set(identity.recipients) & set(others):
            raise UsageError(
                "this host's identity is the one to be removed",
                detail="nobody here could seal the keys for those who stay",
                hint="use an identity that stays, or replace this one with `cellarer keys rotate`",
            )
        # A key that is sealed to all was sealed to the one who leaves as well.
        leaving = ("", recipient)
        staying = [a for a in vault.configuration.admins if a.recipient not in leaving]
        vault = _change(vault, others, staying, now)
    elif not _was_recipient(vault, recipient) or not _older_left(vault):
        raise UsageError(
            f"{recipient} is no recipient of this vault",
            hint="`cellarer keys list` shows them",
        )
    return reseal(vault, delete_older=True)


def _was_recipient(vault: Vault, recipient: str) -> bool:
    """Whether it was one: then its removal may have to be finished."""
    return any(recipient in epoch.recipients for epoch in vault.epochs)


def rotate(vault: Vault, new: Identity, now: datetime) -> Resealed:
    """Put a new identity in the place of this host's: as recipient and as administrator.

    The new one signs an epoch of its own at the end. Whoever has it and nothing else can tell by
    that signature that the configuration is the vault's.
    """
    old = _require_identity(vault)
    if new == old and not behind(vault) and not _older_left(vault):
        raise UsageError(
            "this identity is the host's already, and everything is sealed to it",
            hint="name a file that is not there yet, for a new identity",
        )
    keys = vault.keys
    vault = Vault.open(vault.replicas, keys.write_key, old | new, keys.collect_key, keys.founder)
    if not set(new.recipients) & set(vault.recipients):
        leaving = set(old.recipients)
        others = [other for other in vault.recipients if other not in leaving]
        staying = [a for a in vault.configuration.admins if a.recipient not in {"", *leaving}]
        staying += [Administrator(signer.public, recipient) for signer, recipient in new.admins]
        vault = _change(vault, [*others, *new.recipients], staying, now)
    own = {signer.public for signer in new.signers}
    if own and vault.configuration.signer not in own:
        vault = publish(vault, {}, now)
    return reseal(vault, delete_older=True)


def new_identity(file: Path, person: Person) -> Identity:
    """The identity in a file; a new one where there is no such file."""
    if file.exists():
        identity = Identity.from_text(read_private(file), person)
        if not identity.recipients:
            raise KeyUnusable(
                f"{file} does not name its recipient",
                hint="put the line with the public key, age1…, that its plugin printed into it",
            )
        return identity
    identity = Identity.generate()
    write_private(file, identity.to_text())
    return identity


def rotate_write_key(vault: Vault, file: Path, now: datetime) -> WriteKey:
    """A new write key in `file`; the old ones sign nothing that counts from now on.

    What they signed before is listed and stays valid. The keys of the index and of the chunk ids
    stay: see docs/format.md. A file that an interrupted run wrote is used.
    """
    _require_identity(vault)
    spread_configuration(vault)
    write_key = _new_write_key(vault, file)
    before = vault.configuration
    if write_key.writer in before.writers:
        own = vault.write_key
        if own is None or own.writer == write_key.writer:
            raise UsageError(
                f"the key in {file} is the one that writes now",
                hint="name a file that is not there yet with --to FILE, for a new key",
            )
        return write_key  # of a run that was interrupted at its end
    gone = [vouch(vault, Role.WRITER, name, public) for name, public in before.writers.items()]
    writer = {"id": write_key.writer, "public": write_key.signer.public}
    changes = {"writers": [writer], "retired": retired_body([*before.retired, *gone])}
    publish(vault, changes, now)
    return write_key


def _new_write_key(vault: Vault, file: Path) -> WriteKey:
    epoch, admin = vault.configuration.epoch + 1, vault.signer_for("config").public
    if file.exists():
        write_key = WriteKey.from_text(read_private(file))
        retired = {r.public for r in vault.configuration.retired}
        begun = write_key.writer in vault.configuration.writers
        # Of a run that was interrupted before somebody else changed the vault's keys.
        late = not begun and (write_key.epoch, write_key.admin) != (epoch, admin)
        if write_key.vault != vault.id or write_key.signer.public in retired or late:
            raise UsageError(f"{file} exists already", hint="name a new file with --to FILE")
        return write_key
    write_key = WriteKey(
        vault=vault.id,
        writer="w-" + crypto.new_key()[:4].hex(),
        signing_seed=crypto.new_key(),
        index=vault.index_key,
        chunk_ids=vault.chunk_ids,
        admin=admin,
        recipients=vault.recipients,
        epoch=epoch,
    )
    write_private(file, write_key.to_text())
    return write_key


def write_shares(vault: Vault, shares: int, threshold: int, directory: Path) -> list[Path]:
    """The identity of this host in shares, one file (0600) each."""
    made = split(_require_identity(vault), vault.id, shares, threshold)
    files = [directory / f"share-{share.set}-{share.share}.txt" for share in made]
    for file, share in zip(files, made, strict=True):
        write_private(file, share.to_text())
    return files


def combine_shares(files: Iterable[Path], to: Path) -> Identity:
    """The identity out of its shares, written to a new file (0600)."""
    identity = combine([Share.from_text(read_private(file), file.name) for file in files])
    write_private(to, identity.to_text())
    return identity


def _require_identity(vault: Vault) -> Identity:
    if vault.identity is None:
        raise KeyUnusable(
            "changing keys needs an identity, and this host has none",
            hint="run this where vault.identity is set",
        )
    return vault.identity


def _change(
    vault: Vault,
    recipients: Collection[str],
    admins: Iterable[Administrator],
    now: datetime,
) -> Vault:
    """The next epoch, with other recipients: a new generation of every envelope follows from it."""
    require_every_replica(vault)
    before, staying = vault.configuration, list(admins)
    generation = before.generation + 1
    signed_by = {admin.recipient for admin in staying}
    if "" not in signed_by and not set(recipients) <= signed_by:
        staying.append(_sealed_admin(vault, recipients, generation))
    gone = [admin for admin in before.admins if admin not in staying]
    retired = [vouch(vault, Role.ADMINISTRATOR, admin.recipient, admin.public) for admin in gone]
    changes = {
        "admins": admins_body(staying),
        "generation": generation,
        "recipients": list(recipients),
        "retired": retired_body([*before.retired, *retired]),
    }
    return publish(vault, changes, now)


def _sealed_admin(vault: Vault, recipients: Collection[str], generation: int) -> Administrator:
    """A signing key for recipients from whose identity none is known to follow."""
    seed = crypto.new_key()
    admin = Administrator(crypto.Signer(seed).public)
    content = layout.canonical_json({"signing_seed": seed.hex(), "vault": vault.id})
    key = layout.envelope_key(ADMIN + admin.public[:16], generation)
    put_everywhere(vault, key, crypto.seal_to_recipients(content, tuple(recipients)))
    return admin


def _older_left(vault: Vault) -> bool:
    """Whether some replica still has envelopes that a removal was to delete."""
    return any(
        outdated(vault, name, generations)
        for name, places in envelopes(vault).items()
        for generations in places.values()
    )
