"""Damaged objects: what is read is right, or a named error; and a second replica heals it."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import CellarerError
from cellarer.vault import fetcher
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.vault import Commit, Vault
from stand_ins import Founded, flip, found, noise, restored, truncate

pytestmark = pytest.mark.usefixtures("small_packs")

KINDS = (
    "format.json",
    "config/",
    "keys/",
    "sessions/",
    "snapshots/",
    "index/",
    "packs/",
    "meta/",
    "ledger/",
)
FLIPS_PER_KIND = 80


@dataclass(frozen=True)
class Filled:
    """A vault, and all that it should give."""

    scene: Founded
    points: dict[str, dict[str, bytes]]
    proofs: list[ProofRecord]


@pytest.fixture(scope="module")
def single(small_packs: None) -> Filled:
    return _fill(found(replicas=1))


@pytest.fixture(scope="module")
def double(small_packs: None) -> Filled:
    return _fill(found(replicas=2))


def _fill(scene: Founded) -> Filled:
    points = {}
    records = []
    for n in range(2):
        contents = {"t": noise(1, 30_000) + b"more" * 3000 * n, "é": b"text", "n": noise(n, 9000)}
        commit = scene.backup(contents)
        points[commit.session] = contents
        record = ProofRecord(
            commit.session, "db", Proof.PROVEN, True, scene.now(), 1.5, (Check("c", True, "", ""),)
        )
        record_proof(scene.open(), record)
        records.append(record)
    return Filled(scene, points, records)


def keys_of(filled: Filled, kind: str) -> list[str]:
    return [key for key in filled.scene.stores["a"].objects if key.startswith(kind)]


def read_with_care(filled: Filled, scene: Founded) -> None:
    """Read all there is with either set of keys. Whatever is read is right, or refused."""
    for write_key in (scene.write_key, None):
        try:
            vault = Vault.open(scene.replicas(), write_key, scene.identity)
        except CellarerError:
            continue
        _read_points(filled, vault)
        with contextlib.suppress(CellarerError):
            assert all(record in filled.proofs for record in proofs(vault))


def _read_points(filled: Filled, vault: Vault) -> None:
    try:
        commits = vault.commits()
    except CellarerError:
        return
    assert {commit.session for commit in commits} <= set(filled.points)
    for commit in commits:
        try:
            assert restored(vault, commit) == filled.points[commit.session]
        except CellarerError:
            continue


def read_fully(filled: Filled, scene: Founded) -> None:
    """Read all there is with either set of keys; nothing may be refused."""
    for write_key in (scene.write_key, None):
        vault = Vault.open(scene.replicas(), write_key, scene.identity)
        points = {commit.session: restored(vault, commit) for commit in vault.commits()}
        assert points == filled.points
        assert proofs(vault) == filled.proofs


def test_undamaged(single: Filled, double: Filled) -> None:
    for filled in (single, double):
        read_fully(filled, filled.scene)
        assert all(keys_of(filled, kind) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_never_believed(single: Filled, kind: str) -> None:
    chance = random.Random(kind)
    for _ in range(FLIPS_PER_KIND):
        scene = single.scene.copy()
        key = chance.choice(keys_of(single, kind))
        bits = len(scene.stores["a"].objects[key]) * 8
        scene.stores["a"].damage(key, flip(chance.randrange(bits)))
        read_with_care(single, scene)


@pytest.mark.parametrize("kind", ["format.json", "config/"])
def test_a_flipped_bit_in_any_byte_of_what_opens_the_vault(single: Filled, kind: str) -> None:
    (key,) = keys_of(single, kind)
    for byte in range(len(single.scene.stores["a"].objects[key])):
        scene = single.scene.copy()
        scene.stores["a"].damage(key, flip(byte * 8 + byte % 8))
        for write_key in (scene.write_key, None):
            try:
                vault = Vault.open(scene.replicas(), write_key, scene.identity)
            except CellarerError:
                continue
            assert vault.id == scene.write_key.vault
            assert vault.recipients == scene.identity.recipients


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_object_is_never_believed(single: Filled, kind: str) -> None:
    chance = random.Random(kind)
    for key in keys_of(single, kind):
        length = len(single.scene.stores["a"].objects[key])
        for cut in {0, 1, 11, 12, 16, 28, length - 1, *chance.choices(range(length), k=6)}:
            scene = single.scene.copy()
            scene.stores["a"].damage(key, truncate(cut))
            read_with_care(single, scene)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_object_is_missed(single: Filled, kind: str) -> None:
    for key in keys_of(single, kind):
        scene = single.scene.copy()
        scene.stores["a"].delete(key)
        read_with_care(single, scene)


def test_swapped_objects_are_never_believed(single: Filled) -> None:
    keys = sorted(single.scene.stores["a"].objects)
    pairs = [(a, b) for a in keys for b in keys if a < b]
    same_kind = [(a, b) for a, b in pairs if a.split("/")[0] == b.split("/")[0]]
    others = random.Random(1).sample([pair for pair in pairs if pair not in same_kind], 60)
    for a, b in same_kind + others:
        scene = single.scene.copy()
        objects = scene.stores["a"].objects
        objects[a], objects[b] = objects[b], objects[a]
        read_with_care(single, scene)


def test_the_references_of_one_point_do_not_pass_for_those_of_another(single: Filled) -> None:
    scene = single.scene.copy()
    vault = scene.open()
    older, newer = vault.commits()
    objects = scene.stores["a"].objects
    a, b = (commit.body["references"] for commit in (older, newer))
    objects[a], objects[b] = objects[b], objects[a]
    for commit in (older, newer):
        assert refused(vault, commit)


def refused(vault: Vault, commit: Commit) -> bool:
    try:
        restored(vault, commit)
    except CellarerError:
        return True
    return False


def _middle_bit(data: bytes) -> bytes:
    return flip(len(data) * 4)(data)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _nothing(data: bytes) -> None:
    return None


def _nonsense(data: bytes) -> bytes:
    return b"\xff\x00" * 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [_middle_bit, _half, _nothing, _nonsense])
@pytest.mark.parametrize("replica", ["a", "b"])
def test_a_second_replica_makes_up_for_damage(
    double: Filled, kind: str, change: Callable[[bytes], bytes | None], replica: str
) -> None:
    for key in keys_of(double, kind):
        scene = double.scene.copy()
        scene.stores[replica].damage(key, change)
        read_fully(double, scene)


@pytest.mark.parametrize("kind", ["format.json", "keys/vault"])
def test_a_second_replica_makes_up_for_any_flipped_bit(double: Filled, kind: str) -> None:
    (key,) = keys_of(double, kind)
    chance = random.Random(kind)
    for bit in chance.sample(range(len(double.scene.stores["a"].objects[key]) * 8), 200):
        scene = double.scene.copy()
        scene.stores["a"].damage(key, flip(bit))
        for write_key in (scene.write_key, None):
            Vault.open(scene.replicas(), write_key, scene.identity)


def test_a_second_replica_makes_up_for_swaps(double: Filled) -> None:
    for kind in KINDS:
        keys = keys_of(double, kind)
        for a, b in itertools.pairwise(keys):
            scene = double.scene.copy()
            objects = scene.stores["a"].objects
            objects[a], objects[b] = objects[b], objects[a]
            read_fully(double, scene)


def test_damage_spread_over_both_replicas(double: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is damaged on one replica, by turns; every pack on both, each at one end."""
    monkeypatch.setattr(fetcher, "WHOLE_PACK_BYTES", 1)
    scene = double.scene.copy()
    for n, key in enumerate(sorted(scene.stores["a"].objects)):
        if key.startswith("packs/"):
            scene.stores["a"].damage(key, flip(8 * 8))
            scene.stores["b"].damage(key, lambda data: data[:-1])
        else:
            scene.stores["ab"[n % 2]].damage(key, _middle_bit)
    read_fully(double, scene)
