"""The objects of collection rounds on a replica: read, checked, written.

    collections/<n>/begin   a round is under way
    collections/<n>/mark    what shall go; nothing new may point there from now on
    collections/<n>/sweep   what does go, once every open session was waited for
    collections/<n>/done    all of it is gone

Every one but the first names the round's `begin` by its hash, and that the `done` of the round
before, so that an object of one round, or of another replica, is never taken for one of another.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing
from cellarer.ports import Store
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.rounds import Round, condemned
from cellarer.vault.vault import Vault


def read_rounds(vault: Vault, replica: Replica) -> list[Round]:
    """The rounds of a replica, in order. What a finished one named is not read.

    Raises `StoreError`, or `DamagedData` for an unfinished round that cannot be understood, or one
    that no collector finished.
    """
    rounds = _read(vault.replicas, replica, vault)
    if rounds:
        _check_last(vault, replica.store, rounds[-1])
    return rounds


def _read(replicas: ReplicaSet, replica: Replica, vault: Vault | None) -> list[Round]:
    steps: dict[int, set[str]] = {}
    for info in replicas.ask(replica, lambda store: list(store.list(_PREFIX))):
        number, _, step = info.key.removeprefix(_PREFIX).partition("/")
        if not number.isdecimal():
            raise DamagedData(f"replica {replica.name} holds {info.key}, which is no round")
        steps.setdefault(int(number), set()).add(step)
    return [_round(vault, replica.store, number, steps[number]) for number in sorted(steps)]


def fenced(
    replicas: ReplicaSet, replica: Replica, vault: Vault | None
) -> tuple[frozenset[str], frozenset[str]]:
    """What must not be written to a replica, and what nothing may point to there now.

    The first is all that any round swept, finished or not: a collector that slept may still be
    deleting it. Without a vault signatures are not checked, which at worst keeps something out.
    """
    keys = replicas.ask(replica, lambda store: [info.key for info in store.list(_PREFIX)])
    numbers = [int(key.split("/")[1]) for key in keys if key.endswith("/sweep")]
    swept = (_named(vault, replica.store, number, "sweep") for number in numbers)
    return frozenset().union(*swept), condemned(_read(replicas, replica, vault))


def write_step(
    vault: Vault, replica: Replica, number: int, step: str, objects: Iterable[str], now: datetime
) -> None:
    """Create one object of a round. Where another collector was first, its object counts."""
    signer = vault.signer_for("collection")
    begin = "" if step == "begin" else _sha256(replica.store, number, "begin")
    body: dict[str, object] = {
        "begin": begin,
        "by": signer.public,
        "nonce": secrets.token_hex(16),
        "objects": sorted(objects),
        "round": number,
        "step": step,
        "time": layout.time_text(now),
        "vault": vault.id,
    }
    if step == "begin":
        body["previous"] = _sha256(replica.store, number - 1, "done") if number else ""
    data = signer.sign("collection", body)
    try:
        replica.store.create(layout.round_key(number, step), data)
    except ObjectExists:
        return


_PREFIX = layout.COLLECTIONS_PREFIX


def _round(vault: Vault | None, store: Store, number: int, steps: set[str]) -> Round:
    if "done" in steps:
        return Round(number, done=True)
    mark = _named(vault, store, number, "mark") if "mark" in steps else None
    sweep = _named(vault, store, number, "sweep") if "sweep" in steps else None
    if sweep is not None and not sweep <= (mark or frozenset()):
        raise DamagedData(f"round {number} sweeps what it did not mark", hint=_HINT)
    return Round(number, mark, sweep)


def _check_last(vault: Vault, store: Store, last: Round) -> None:
    """Raise `DamagedData` unless collectors began the last round, and finished those before it.

    Who began a round saw to it that the one before was finished, and names its `done`. So the last
    ones vouch for all: with a `done` that anybody may write, what a collector is still deleting
    would be built upon.
    """
    begun = _body(vault, store, last.number, "begin")
    before = _sha256(store, last.number - 1, "done") if last.number else ""
    # Those of the first vaults do not name it.
    if begun.get("previous", before) != before:
        raise DamagedData(f"round {last.number} does not follow the one before", hint=_HINT)
    if last.done:
        _body(vault, store, last.number, "done")


def _named(vault: Vault | None, store: Store, number: int, step: str) -> frozenset[str]:
    """What a mark or a sweep names. Raises as `_body`."""
    objects = _body(vault, store, number, step).get("objects")
    if not isinstance(objects, list) or not all(_may_go(name) for name in objects):
        key = layout.round_key(number, step)
        raise DamagedData(f"{key} names what no round may name", hint=_HINT)
    return frozenset(objects)


def _body(vault: Vault | None, store: Store, number: int, step: str) -> dict[str, Any]:
    """What an object of a round says. Raises `DamagedData` unless a collector of this vault wrote
    it for this very round."""
    key = layout.round_key(number, step)
    data = store.read(key)
    body, signer = crypto.read_signed("collection", data)
    vault_id = body.get("vault")
    if vault is not None:
        vault.check_signer(key, data, signer, "collection")
        vault_id = vault.id
    begin = "" if step == "begin" else _sha256(store, number, "begin")
    said = (body.get("vault"), body.get("round"), body.get("step"), body.get("begin"))
    if said != (vault_id, number, step, begin):
        raise DamagedData(f"{key} belongs to another round", hint=_HINT)
    return body


def _sha256(store: Store, number: int, step: str) -> str:
    key = layout.round_key(number, step)
    try:
        return hashlib.sha256(store.read(key)).hexdigest()
    except ObjectMissing as error:
        raise DamagedData(f"{key} is not there, and a later one is", hint=_HINT) from error


def _may_go(name: object) -> bool:
    """Packs, meta objects and index segments; a round can name nothing else."""
    prefixes = (layout.PACKS_PREFIX, layout.META_PREFIX, layout.INDEX_PREFIX)
    return isinstance(name, str) and name.startswith(prefixes)


_HINT = "nothing is deleted here until the round is understood; see docs/format.md, section 9.4"
