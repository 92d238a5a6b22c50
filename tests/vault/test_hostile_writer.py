"""A writer who signs what he likes: it hides no other point, and is never given out for content."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from cellarer.errors import CellarerError, DamagedData, StoreError
from cellarer.ports import Stream
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.known import load_references
from cellarer.vault.ledger import entries
from cellarer.vault.pack import TableOfContents
from cellarer.vault.record import open_record
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import SnapshotWriter
from hostile import SESSION, commit_of, inner_of, put, refused
from stand_ins import Founded, all_restored, found, noise, restored

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def made() -> Founded:
    scene = found()
    scene.backup({"t": noise(1, 20_000), "s": b"text"})
    scene.backup({"t": noise(1, 20_000) + b"more", "s": b"text"})
    return scene


@pytest.fixture
def scene(made: Founded) -> Founded:
    return made.copy()


# ------------------------------------------------------------------------------ forged registers


INNERS = [
    {}, {"started": 5}, {"started": "yesterday"}, {"started": "2026-03-01T12:00:00"},
    {"finished": None}, {"source": 7}, {"source": ["x"]}, {"source": "x\x1b[2J"}, {"kind": None},
    {"read_bytes": "x"}, {"read_bytes": -1}, {"streams": 1e400}, {"streams": 10**40},
    {"seconds": None}, {"added_bytes": True}, {"previous": None}, {"previous": ["x"]},
    {"note": None}, {"note": ["behind"]}, {"note": {"behind": 5}}, {"note": {"behind": ["a"]}},
]  # fmt: skip


@pytest.mark.parametrize("change", INNERS)
def test_a_commit_that_says_nonsense_hides_no_other(
    scene: Founded, change: dict[str, object]
) -> None:
    inner = {**inner_of(scene), **change} if change else {}
    key = commit_of(scene, inner)
    assert "not a record of a snapshot" in str(refused(scene, key))
    scene.backup({"t": b"goes on"})


@pytest.mark.parametrize("sealed_as", [None, 5, "no base64!", "", "AAAA"])
def test_a_commit_without_a_record(scene: Founded, sealed_as: object) -> None:
    key = commit_of(scene, {}, sealed=sealed_as)
    refused(scene, key)


def test_a_commit_in_the_name_of_another_writer(scene: Founded) -> None:
    key = commit_of(scene, inner_of(scene), writer="w-ffffffff")
    assert "the writer that it names" in str(refused(scene, key))


def test_a_commit_by_a_key_that_nobody_knows(scene: Founded) -> None:
    stranger = crypto.Signer(crypto.new_key())
    key = layout.snapshot_key(SESSION)
    body = {"outcome": "commit", "session": SESSION, "vault": scene.write_key.vault}
    put(scene, key, stranger.sign("snapshot", {**body, "sealed": "", "writer": "w-1"}))
    assert "does not know" in str(refused(scene, key))


def test_an_announcement_by_a_key_that_nobody_knows(scene: Founded) -> None:
    """The store makes a root of its own, seals it to the recipients, and announces that."""
    commit = scene.open().commits()[0]
    stranger, root = crypto.Signer(crypto.new_key()), crypto.new_key()
    body: dict[str, object] = {
        "commitment": blake3(root).hexdigest(),
        "session": commit.session,
        "vault": scene.write_key.vault,
        "writer": commit.writer,
    }
    put(scene, layout.session_key(commit.session), stranger.sign("session", body))
    with pytest.raises(DamagedData):
        restored(scene.open(), commit)


SCRUB = {
    "type": "scrub", "replica": "a", "depth": "stored", "round": 1, "through": "packs/",
    "objects": 1, "bytes": 1, "damaged": 0, "points": [1, "00"],
}  # fmt: skip
LOCKS = {
    "type": "immutability", "replica": "a", "locked_until": "2026-03-01T00:00:00.000000Z",
    "needed_objects": 1, "looked_objects": 1, "extended_objects": 0,
}  # fmt: skip
FACTS: list[dict[str, object]] = [
    {}, {"type": ["damage"]}, {"type": None}, {"type": "damage"},
    {"type": "damage", "replica": "a", "objects": [], "points": [["x", "db"]]},
    {"type": "damage", "replica": "a", "objects": [], "points": {"x": None}},
    {"type": "damage", "replica": "a", "objects": [], "points": 5},
    *({name: value for name, value in SCRUB.items() if name != lacking}
      for lacking in SCRUB if lacking != "type"),
    {**SCRUB, "round": "1"}, {**SCRUB, "round": -1}, {**SCRUB, "points": [1]},
    {**SCRUB, "points": ["x", "y"]}, {**SCRUB, "objects": True}, {**SCRUB, "through": None},
    *({name: value for name, value in LOCKS.items() if name != lacking}
      for lacking in LOCKS if lacking != "type"),
    {**LOCKS, "locked_until": "never"}, {**LOCKS, "needed_objects": "all"},
    {"type": "damage", "replica": 5, "objects": []},
    {"type": "damage", "replica": "a", "objects": 5},
    {"type": "repair", "replica": "a", "objects": [None]},
    {"type": "damage", "replica": "a", "objects": [], "time": "never"},
    {"type": "damage", "replica": "a", "objects": [], "time": "2026-03-01T00:00:00"},
    {"type": "scrub", "time": 5}, {"type": "proof", "point": "x"}, {"type": "of tomorrow"},
]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_that_says_nonsense_stops_nobody(scene: Founded, fact: dict[str, object]) -> None:
    key = "ledger/2026-03-01/120000000000-00000000"
    fact = {"time": "2026-03-01T12:00:00.000000Z", **fact} if fact else {}
    body: dict[str, object] = {
        "key": key,
        "previous": "",
        "sealed": crypto.sealed_text(scene.write_key.index, fact, f"ledger {key}"),
        "vault": scene.write_key.vault,
    }
    put(scene, key, scene.write_key.signer.sign("ledger", body))
    vault = scene.open()
    if fact and fact["type"] == "of tomorrow":
        assert [entry.fact["type"] for entry in entries(vault)] == ["of tomorrow"]
    elif fact:
        assert entries(vault) == []
        assert key in vault.unreadable
    scene.backup({"t": b"goes on"})


# ------------------------------------------------------- sessions, chunks and vaults of others


def test_a_writer_who_takes_the_session_of_another_is_met_by_an_error(scene: Founded) -> None:
    """He comes first; the one whose session it is learns of it, and nothing is mixed up."""
    mine = SnapshotWriter(scene.open(), "db", "test", scene.now)
    try:
        mine.add(Stream("t", "test", iter([b"mine"]), 4))
        commit_of(scene, inner_of(scene), mine.session)
        with pytest.raises(StoreError, match="was closed"):
            mine.commit()
    finally:
        mine.abandon()
    points = all_restored(scene.open())
    assert all(point["t"] != b"mine" for point in points.values())


def index_of_chunk(scene: Founded, chunk_id: bytes, other: Commit) -> None:
    """Add a segment to a session that is committed, which says that a chunk is in another place."""
    place = load_references(scene.open(), other).records[0]
    rows = np.zeros(1, [("id", "V16"), ("offset", ">u4"), ("length", ">u4"), ("chunks", ">u4"),
                        ("session", ">u2")])  # fmt: skip
    rows["id"], rows["offset"], rows["length"] = place.id, place.offset, place.length
    rows["chunks"] = 1
    toc = TableOfContents((place.session,), rows, chunk_id, np.array([4], ">u4"))
    header: dict[str, object] = {"packs": [[place.pack, len(toc.to_bytes())]]}
    plain = layout.frame(header, toc.to_bytes())
    data = crypto.seal(scene.write_key.index, plain, "cellarer/1/index")
    put(scene, layout.index_key(other.session, 77), data)


def test_an_id_that_leads_to_other_content_never_gives_that_out(scene: Founded) -> None:
    """The index says that a chunk is stored already, at the place of another: what is then backed
    up cannot be read back, and says so."""
    vault = scene.open()
    newest = vault.commits()[-1]
    chunk_id = crypto.keyed_id(vault.domain_key("db"), b"treasure")
    index_of_chunk(scene, chunk_id, newest)
    commit = scene.backup({"t": b"treasure"})
    with pytest.raises(DamagedData):
        restored(scene.open(), commit)


def test_chunks_of_another_source_are_not_found(scene: Founded) -> None:
    before = {k for k in scene.stores["a"].objects if k.startswith("packs/")}
    scene.backup({"t": noise(1, 20_000)}, source="other")
    assert {k for k in scene.stores["a"].objects if k.startswith("packs/")} > before


def test_records_of_a_foreign_session_do_not_open(scene: Founded) -> None:
    """References may name any session: a record opens under the one that sealed it alone."""
    vault = scene.open()
    older, newer = vault.commits()
    place = load_references(vault, older).records[0]
    sealed_record = scene.stores["a"].read_range(place.pack, place.offset, place.length)
    vault_id = bytes.fromhex(vault.id)
    for session, root in (
        (newer.session, vault.session_root(newer.session)),
        (newer.session, vault.session_root(older.session)),
        (older.session, vault.session_root(newer.session)),
    ):
        with pytest.raises(DamagedData):
            open_record(crypto.RecordCipher(vault_id, session, root), place.id, sealed_record)
    right = crypto.RecordCipher(vault_id, older.session, vault.session_root(older.session))
    with pytest.raises(DamagedData):
        open_record(right, bytes(16), sealed_record)
    assert open_record(right, place.id, sealed_record)


def test_objects_of_another_vault_of_the_same_owner_are_refused(scene: Founded) -> None:
    """The identity opens the envelopes of both: only what is written in them tells them apart."""
    other = found(identity=scene.identity)
    other.backup({"t": b"of the other vault"})
    whole = {point["t"] for point in all_restored(scene.open()).values()}
    for key, data in other.stores["a"].objects.items():
        changed = scene.copy()
        kind = key.partition("/")[0] + ("/" if "/" in key else "")
        same_kind = [k for k in changed.stores["a"].objects if k.startswith(kind)]
        for name in {key, *(k for k in same_kind if not k.startswith(("packs", "meta")))}:
            changed.stores["a"].objects[name] = data
        for write_key in (scene.write_key, None):
            try:
                vault = Vault.open(changed.replicas(), write_key, scene.identity)
                points = vault.commits()
            except CellarerError:
                continue
            for commit in points:
                try:
                    assert restored(vault, commit)["t"] in whole
                except CellarerError:
                    continue


def test_a_whole_other_vault_of_the_same_owner_is_refused(scene: Founded) -> None:
    other = found(identity=scene.identity)
    other.backup({"t": b"of the other vault"})
    with pytest.raises(CellarerError, match="another vault"):
        Vault.open(other.replicas(), scene.write_key, scene.identity)


@pytest.mark.parametrize("vault_id", ["", "00" * 16])
def test_keys_sealed_by_somebody_else_as_a_generation_to_come(
    scene: Founded, vault_id: str
) -> None:
    """Who may add objects makes an epoch of nothing, and under its generation keys of his own."""
    expected = all_restored(scene.open())
    keys = {"chunk_ids": KEY.hex(), "index": KEY.hex()}
    forged = {**keys, "vault": vault_id or scene.write_key.vault}
    sealed = crypto.seal_to_recipients(layout.canonical_json(forged), scene.identity.recipients)
    for number in (1, 2):
        put(scene, layout.config_key(number), b"nothing")
        put(scene, layout.envelope_key("vault", number), sealed)
    assert all_restored(Vault.open(scene.replicas(), None, scene.identity)) == expected


def test_a_root_sealed_by_the_store_is_not_used(scene: Founded) -> None:
    """Anybody can seal to a recipient: records under a key of the store would open."""
    vault = scene.open()
    commit = vault.commits()[0]
    envelope = {"root": KEY.hex(), "session": commit.session, "vault": vault.id}
    data = crypto.seal_to_recipients(layout.canonical_json(envelope), scene.identity.recipients)
    put(scene, layout.envelope_key(commit.session), data)
    with pytest.raises(DamagedData):
        restored(scene.open(), commit)
