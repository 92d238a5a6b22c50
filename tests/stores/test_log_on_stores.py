"""WAL over the wire: on every kind of store that keeps its promises, and on one that overwrites."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellarer.errors import DamagedData, WalAbsent, WalConflict
from cellarer.ports import Store
from cellarer.vault.founding import make, prepare
from cellarer.vault.keys import Identity
from cellarer.vault.log import LogReader, LogWriter
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Vault
from stand_ins import ticking
from wal_files import SYSTEM, history, segment


def opened(store: Store, tmp_path: Path) -> tuple[LogWriter, LogReader]:
    """A new vault, written by a host that cannot read, and read by one that can."""
    identity, now = Identity.generate(), ticking()
    replicas = ReplicaSet([Replica("only", store)], 1)
    made = prepare(identity, now())
    make(replicas, made)
    writer = Vault.open(replicas, made.write_key, None)
    return (
        LogWriter(writer, SYSTEM, tmp_path / "state", now),
        LogReader(Vault.open(replicas, None, identity), SYSTEM),
    )


def test_wal_is_stored_once_and_read(store: Store, tmp_path: Path) -> None:
    writer, reader = opened(store, tmp_path)
    files = [segment(1), segment(2), history(2, (1, "0/280000")), segment(2, timeline=2)]
    for name, data in files:
        assert writer.put(name, data).new
        assert not writer.put(name, data).new
    tail, data = segment(3, timeline=2)
    writer.put_piece(tail, 0, data[:8192])
    assert reader.names() == {name for name, _ in files} | {f"{tail}.00000000-00002000"}
    for name, content in files:
        assert reader.read(name) == content
    assert reader.read(tail)[:8192] == data[:8192]
    with pytest.raises(WalConflict):
        writer.put(files[0][0], segment(1, seed=1)[1])
    with pytest.raises(WalAbsent):
        reader.read(segment(5, timeline=2)[0])
    writer.put(*segment(5))
    with pytest.raises(DamagedData):
        reader.read(segment(4)[0])
    assert [len(window.gaps) for window in reader.continuity().windows] == [1, 0]


def test_even_a_store_that_overwrites_is_looked_at_first(any_store: Store, tmp_path: Path) -> None:
    writer, reader = opened(any_store, tmp_path)
    name, data = segment(1)
    writer.put(name, data)
    with pytest.raises(WalConflict):
        writer.put(name, segment(1, seed=1)[1])
    assert reader.read(name) == data
