"""WAL is kept like everything else: copied, scrubbed, healed, sealed anew, vouched for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cellarer.errors import DamagedData, KeyUnusable
from cellarer.flows.keys import rotate, rotate_write_key
from cellarer.flows.sync import synchronise
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity, WriteKey
from cellarer.vault.ledger import entries
from cellarer.vault.log_keys import log_key
from cellarer.vault.log_object import content_sum, open_header, public_half, seal_log
from cellarer.vault.repair import standing_damage
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Vault
from key_changes import NOW
from scrubbing import Silent, run, told
from stand_ins import Founded, Objects, flip, found, truncate
from wal_files import (
    SYSTEM,
    away,
    history,
    keys_of,
    reader,
    segment,
    sessions_of,
    writer,
)

FILES = [segment(1), segment(2), history(2, (1, "0/280000")), segment(2, timeline=2)]


def scene_of(replicas: int, state: Path) -> Founded:
    """A vault with two points and some WAL, of which the ledger was told."""
    made = found(replicas=replicas)
    made.backup({"t": b"rows"})
    putting = writer(made, state)
    for name, data in FILES:
        putting.put(name, data)
    putting.told(force=True)
    return made


def readable(made: Founded) -> bool:
    """Whether all WAL is read, of each replica alone."""
    return all(
        [reader(made.alone(name)).read(file) for file, _ in FILES] == [data for _, data in FILES]
        for name in made.stores
    )


@pytest.mark.parametrize("keyed", [True, False])
def test_a_replica_that_was_away_is_brought_up_to_date(tmp_path: Path, keyed: bool) -> None:
    made = found(replicas=2)
    made.backup({"t": b"rows"})
    putting = writer(made, tmp_path, away(made, "b"))
    for name, data in FILES:
        assert set(putting.put(name, data).behind) == {"b"}
    assert not keys_of(made.stores["b"])
    vault = Vault.open(made.replicas(), made.write_key, None) if keyed else None
    outcome = synchronise(made.replicas(), vault, Silent(), made.now)
    assert {name: each.problem for name, each in outcome.items()} == {"a": None, "b": None}
    assert readable(made)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_new_replica_is_filled(tmp_path: Path, keyed: bool) -> None:
    made = scene_of(1, tmp_path)
    both = ReplicaSet([*made.replicas().replicas, Replica("b", Objects("b"))], 1)
    synchronise(both, made.open(both) if keyed else None, Silent(), made.now)
    made.stores["b"] = both.replicas[1].store  # type: ignore[assignment]
    assert readable(made)


def test_wal_that_is_damaged_is_never_copied(tmp_path: Path) -> None:
    made = scene_of(1, tmp_path)
    key = layout.wal_key(SYSTEM, FILES[0][0])
    made.stores["a"].damage(key, flip(40_000))
    both = ReplicaSet([*made.replicas().replicas, Replica("b", Objects("b"))], 1)
    outcome = synchronise(both, None, Silent(), made.now)
    assert isinstance(outcome["b"].problem, DamagedData)
    assert key in outcome["b"].failed
    assert not outcome["b"].withheld


def test_pieces_of_a_whole_segment_are_not_copied(tmp_path: Path) -> None:
    made = scene_of(1, tmp_path)
    name, data = FILES[1]
    writer(made, tmp_path).put_piece(name, 0, data[:8192])
    both = ReplicaSet([*made.replicas().replicas, Replica("b", Objects("b"))], 1)
    synchronise(both, made.open(both), Silent(), made.now)
    copied = keys_of(both.replicas[1].store)  # type: ignore[arg-type]
    assert copied == {layout.wal_key(SYSTEM, file) for file, _ in FILES}


def test_whole_wal_is_found_whole(tmp_path: Path) -> None:
    made = scene_of(2, tmp_path)
    for vault in (made.open(), Vault.open(made.replicas(), made.write_key, None)):
        outcome = run(made, vault=vault, deep=vault.identity is not None)
        assert outcome.remaining == []
        assert outcome.lost == []


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_what_one_replica_has_damaged_is_found_and_healed(tmp_path: Path, how: str) -> None:
    made = scene_of(2, tmp_path)
    session = _log_session(made)
    envelope = next(k for k in made.stores["a"].objects if k.startswith(f"keys/{session}"))
    hit = [
        layout.wal_key(SYSTEM, FILES[0][0]),
        layout.wal_key(SYSTEM, "00000002.history"),
        layout.session_key(session),
        envelope,
    ]
    change = {"flipped": flip(2000), "cut": truncate(150), "lost": lambda data: None}[how]
    for key in hit:
        made.stores["b"].damage(key, change)
    # A host that only backs up finds it, though it can read nothing of it.
    found_out = run(made, vault=Vault.open(made.replicas(), made.write_key, None))
    found_keys = {key for _, key in told([*found_out.damaged, *found_out.missing])}
    # WAL that only another replica has may never have come here.
    owed = [key for key in hit if how == "lost" and key.startswith(layout.WAL_PREFIX)]
    assert set(hit) - {*owed} <= found_keys
    assert found_out.replicas[1].owed == len(owed)
    assert run(made, repair=True).remaining == []
    synchronise(made.replicas(), made.open(), Silent(), made.now)
    for key in hit:
        assert made.stores["b"].objects[key] == made.stores["a"].objects[key]
    assert readable(made)


def test_wal_that_is_gone_everywhere_is_missed(tmp_path: Path) -> None:
    made = scene_of(2, tmp_path)
    key = layout.wal_key(SYSTEM, FILES[1][0])
    for store in made.stores.values():
        del store.objects[key]
    outcome = run(made, vault=Vault.open(made.replicas(), made.write_key, None))
    assert told(outcome.missing) == [("a", key), ("b", key)]
    standing = standing_damage(entries(made.open()))
    assert key in standing["a"]
    # While the server has it, it can be put again, and all is well.
    writer(made, tmp_path).put(*FILES[1])
    assert run(made).remaining == []
    assert standing_damage(entries(made.open())) == {}


def test_wal_that_was_written_wrongly_is_found_by_opening_it(tmp_path: Path) -> None:
    """A writer that seals to another key than it says signs something that nobody opens."""
    made = scene_of(2, tmp_path)
    name, data = segment(7)
    vault = Vault.open(made.replicas(), made.write_key, None)
    key = layout.wal_key(SYSTEM, name)
    sealed = seal_log(
        vault.signer_for("wal"),
        vault.id,
        key,
        data,
        session=_log_session(made),
        public=public_half(X25519PrivateKey.generate()),
        content=content_sum(vault.chunk_ids, SYSTEM, data),
        stored=NOW,
    )
    for store in made.stores.values():
        store.create(key, sealed.data)
    assert run(made).remaining == []
    assert key in {found_key for _, found_key in told(run(made, deep=True).damaged)}


@pytest.mark.parametrize("who", ["writer", "retired", "collector", "stranger"])
def test_whose_signature_counts(tmp_path: Path, who: str) -> None:
    """Whoever can write to the store can put anything there, sealed to a key that is known."""
    made = scene_of(2, tmp_path)
    name, data = segment(7)
    key = layout.wal_key(SYSTEM, name)
    session = _log_session(made)
    retired = made.write_key.signer
    file = tmp_path / "new.key"
    rotate_write_key(made.open(), file, NOW)
    new = replace(made, write_key=WriteKey.from_text(file.read_text()))
    assert made.collect_key is not None
    signers = {
        "writer": new.write_key.signer,
        "retired": retired,
        "collector": made.collect_key.signer,
        "stranger": crypto.Signer(bytes(32)),
    }
    vault = new.open()
    sealed = seal_log(
        signers[who],
        vault.id,
        key,
        data,
        session=session,
        public=log_key(vault, session).public,
        content=content_sum(vault.chunk_ids, SYSTEM, data),
        stored=NOW,
    )
    for store in made.stores.values():
        store.create(key, sealed.data)
    if who == "writer":
        assert reader(new).read(name) == data
        assert run(new).remaining == []
        return
    with pytest.raises(DamagedData, match="signed by a key"):
        reader(new).read(name)
    assert key in {found_key for _, found_key in told(run(new).damaged)}


def test_a_lost_envelope_of_a_log_key_is_told_when_keys_are_sealed_anew(tmp_path: Path) -> None:
    made = scene_of(1, tmp_path)
    session = _log_session(made)
    for key in [k for k in made.stores["a"].objects if k.startswith(f"keys/{session}")]:
        made.stores["a"].damage(key, truncate(100))
    new = Identity.generate()
    with pytest.raises((DamagedData, KeyUnusable)):
        rotate(made.open(), new, NOW)


def test_a_new_identity_reads_what_was_stored_before(tmp_path: Path) -> None:
    made = scene_of(2, tmp_path)
    new = Identity.generate()
    rotate(made.open(), new, NOW)
    assert readable(replace(made, identity=new))
    with pytest.raises(KeyUnusable):
        readable(made)


def test_wal_of_a_write_key_that_was_replaced_stays_good(tmp_path: Path) -> None:
    made = scene_of(2, tmp_path)
    file = tmp_path / "new.key"
    rotate_write_key(made.open(), file, NOW)
    new = replace(made, write_key=WriteKey.from_text(file.read_text()))
    assert readable(new)
    assert run(new).remaining == []
    later = NOW + timedelta(days=1)
    writer(replace(new, now=lambda: later), tmp_path).put(*segment(4))
    assert len(sessions_of(new)) == 3
    assert reader(new).read(segment(4)[0]) == segment(4)[1]


def _log_session(made: Founded) -> str:
    key = layout.wal_key(SYSTEM, FILES[0][0])
    return open_header(made.open(), key, made.stores["a"].objects[key]).session
