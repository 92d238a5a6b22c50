"""A vault on an S3 server with object lock: locks are extended over the wire, and read back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cellarer.errors import ObjectLocked
from cellarer.ports import Stream
from cellarer.stores.object_lock import LockingStore
from cellarer.vault.founding import Made, make, prepare
from cellarer.vault.keys import Identity
from cellarer.vault.locks import Locked, extend_locks, needed_objects
from cellarer.vault.needs import Needs
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import noise
from stores.test_object_lock import MONTH, amazon, open_locking

__all__ = ["amazon", "open_locking"]  # fixtures


def now() -> datetime:
    return datetime.now(UTC)


def back_up(replicas: ReplicaSet, made: Made, seed: int) -> str:
    writer = SnapshotWriter(Vault.open(replicas, made.write_key, None), f"s{seed}", "test", now)
    writer.add(Stream("t", "test", iter([noise(seed, 40_000)]), 40_000))
    return writer.commit().session


@pytest.fixture
def vault(open_locking: Callable[..., LockingStore]) -> tuple[Vault, LockingStore, str]:
    """With a point that was given up and one that is kept; the id of the former."""
    store, identity = open_locking(), Identity.generate()
    replicas = ReplicaSet([Replica("s3", store)], 1)
    made = prepare(identity, now())
    make(replicas, made)
    gone = back_up(replicas, made, 1)
    back_up(replicas, made, 2)
    opened = Vault.open(replicas, made.write_key, identity, made.collect_key)
    forget(opened, gone, "", now())
    return opened, store, gone


def extend(vault: Vault, store: LockingStore, moment: datetime) -> Locked:
    needs = Needs(vault)
    needs.estimate()
    (replica,) = vault.replicas.replicas
    return extend_locks(vault, replica, store, needs, lambda: moment)


def test_what_is_needed_is_locked_again_and_the_rest_is_not(
    vault: tuple[Vault, LockingStore, str], amazon: Any
) -> None:
    opened, store, gone = vault
    first = extend(opened, store, now())
    assert first.complete
    in_time = now() + timedelta(days=25)
    done = extend(opened, store, in_time)
    assert (done.complete, done.problem) == (True, None)
    assert done.extended_objects == done.needed_objects
    needs = Needs(opened)
    needs.refresh()
    needed = needed_objects(opened, opened.replicas.replicas[0], needs)
    _, _, bucket, prefix = store.url.split("/", 3)
    for info in store.list(""):
        head = amazon.head_object(Bucket=bucket, Key=f"{prefix}/{info.key}")
        until = head["ObjectLockRetainUntilDate"]
        assert (until >= in_time + MONTH - timedelta(seconds=1)) is (info.key in needed), info.key
        assert head["ObjectLockMode"] == "COMPLIANCE"
    alone = {i.key for i in store.list("")} - needed
    assert {key.split("/")[0] for key in alone} == {"index", "keys", "meta", "packs", "sessions"}
    assert any(gone in key for key in alone)
    with pytest.raises(ObjectLocked):
        store.delete(min(needed))
    again = extend(opened, store, in_time)
    assert (again.complete, again.extended_objects) == (True, 0)
    assert again.locked_until == done.locked_until
