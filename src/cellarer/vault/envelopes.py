"""Envelopes: keys sealed to the recipients, one generation for each set of recipients."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cellarer.errors import DamagedData, KeyUnusable
from cellarer.vault import format as layout
from cellarer.vault.age import NotSealedTo
from cellarer.vault.crypto import KEY_BYTES, seal_to_recipients
from cellarer.vault.keys import Identity
from cellarer.vault.marker import another_vault
from cellarer.vault.replicas import ReplicaSet

T = TypeVar("T")

VAULT = "vault"
ADMIN = "admin-"
_NAME = re.compile(rf"{layout.KEYS_PREFIX}([A-Za-z0-9-]+)\.(\d+)\.age")


@dataclass(frozen=True, repr=False)
class VaultKeys:
    """A vault's id, its index key, and the key that names chunks, which a collector lacks."""

    vault: str
    index: bytes
    chunk_ids: bytes | None

    def sealed(self, recipients: Sequence[str]) -> bytes:
        """As they stand in the vault's own envelope. A collector cannot make that."""
        if self.chunk_ids is None:
            raise ValueError("a collect key does not name chunks")
        roots = {
            "chunk_ids": self.chunk_ids.hex(),
            "index": self.index.hex(),
            "vault": self.vault,
        }
        return seal_to_recipients(layout.canonical_json(roots), recipients)


def parse_name(key: str) -> tuple[str, int] | None:
    """What an envelope is for, and its generation; None for other objects."""
    match = _NAME.fullmatch(key)
    return (match[1], int(match[2])) if match else None


def superseded(keys: Iterable[str], last: int) -> set[str]:
    """Those of some objects that are envelopes with a later generation beside them.

    They are not copied: they may be sealed to somebody who was removed. Generations after `last`
    cannot be (an epoch makes one at most): what has such a name came from nobody who may seal.
    """
    found = {key: content for key in keys if (content := parse_name(key))}
    parsed = {key: (name, number) for key, (name, number) in found.items() if number <= last}
    newest: dict[str, int] = {}
    for name, generation in parsed.values():
        newest[name] = max(generation, newest.get(name, 0))
    return {key for key, (name, generation) in parsed.items() if generation < newest[name]}


def open_envelope(
    replicas: ReplicaSet,
    name: str,
    generation: int,
    identity: Identity,
    check: Callable[[dict[str, Any], str], T],
    listed: Collection[int] = (),
) -> T:
    """What `check` makes of the newest generation that the identity opens.

    Those before `generation` are tried as well, for they may not all be sealed anew yet; so is the
    next, for that may happen while this runs. `listed` are generations of which the identity is a
    recipient: what it does not open of them is damaged.
    """
    problems: dict[str, KeyUnusable | DamagedData] = {}
    damaged: set[str] = set()
    for number in (*range(generation, -1, -1), generation + 1):
        key = layout.envelope_key(name, number)

        def opened(data: bytes, key: str = key, number: int = number) -> T:
            try:
                return check(content(identity, key, data, listed=number in listed), key)
            except DamagedData:
                if number in listed:
                    damaged.add(key)
                raise

        try:
            return replicas.fetch(key, opened)
        except (KeyUnusable, DamagedData) as error:
            problems[key] = error
    certain = (problem for key, problem in problems.items() if key in damaged)
    wrong_key = (p for p in problems.values() if isinstance(p, KeyUnusable))
    raise next(certain, None) or next(wrong_key, None) or next(iter(problems.values()))


def content(identity: Identity, key: str, data: bytes, *, listed: bool) -> dict[str, Any]:
    """What an envelope holds; `listed` says that it was sealed to this identity.

    Age cannot tell a damaged stanza from one for somebody else, so that has to be known. Raises
    `DamagedData`, or `KeyUnusable` where it may be for others.
    """
    try:
        return layout.parse_json(identity.open(data, key), key)
    except NotSealedTo as error:
        if not listed:
            raise
        raise DamagedData(
            f"{key} is not what was written",
            detail="it was sealed to this identity, which does not open it",
        ) from error


def vault_keys(
    replicas: ReplicaSet, identity: Identity, generation: int, vaults: Collection[str]
) -> VaultKeys:
    """The vault's id and its root keys, out of the envelope that every recipient can open.

    It is one of `vaults`, where these are known: anybody can seal the id of another.
    """

    def check(value: dict[str, Any], key: str) -> VaultKeys:
        vault_id = str(value.get("vault"))
        if vaults and vault_id not in vaults:
            raise another_vault(vault_id, ", ".join(sorted(vaults)))
        index, chunk_ids = (key_in(value, name, key) for name in ("index", "chunk_ids"))
        return VaultKeys(vault_id, index, chunk_ids)

    return open_envelope(replicas, VAULT, generation, identity, check)


def key_in(value: Mapping[str, Any], name: str, what: str) -> bytes:
    """A key of 32 bytes out of an envelope's content."""
    try:
        key = bytes.fromhex(value[name])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"{what} holds no {name} key") from error
    if len(key) != KEY_BYTES:
        raise DamagedData(f"{what} holds no {name} key")
    return key
