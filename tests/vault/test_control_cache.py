"""What this host remembers of control objects saves requests, and never hides or adds anything."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import DamagedData
from cellarer.vault import control
from cellarer.vault import format as layout
from cellarer.vault.control import ControlCache
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.vault import Vault
from stand_ins import Founded, Objects, flip, found

POINTS = 6


class Counting(Objects):
    """Counts the objects that are read whole."""

    def __init__(self, store: Objects) -> None:
        super().__init__(store.url, store.objects)
        self.objects = store.objects
        self.reads: Counter[str] = Counter()

    def read(self, key: str) -> bytes:
        self.reads[key.partition("/")[0]] += 1
        return super().read(key)


@pytest.fixture(autouse=True)
def sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object of a kind is read although it is known, not sixteen: the vaults here are small."""
    monkeypatch.setattr(control, "SAMPLE", 1)


@pytest.fixture(scope="module")
def filled() -> Founded:
    scene = found(replicas=2)
    for n in range(POINTS):
        commit = scene.backup({"t": b"text %d" % n})
        record = ProofRecord(
            commit.session, "db", Proof.PROVEN, True, scene.now(), 1.5, (Check("c", True, "", ""),)
        )
        record_proof(scene.open(), record)
    return scene


@pytest.fixture
def scene(filled: Founded) -> Founded:
    return filled.copy()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "cellarer"


def opened(scene: Founded, cache: Path | None, replicas: ReplicaSet | None = None) -> Vault:
    return Vault.open(replicas or scene.replicas(), scene.write_key, scene.identity, cache=cache)


def seen(vault: Vault) -> tuple[object, object]:
    return vault.commits(), proofs(vault)


def file_of(scene: Founded, cache: Path) -> Path:
    return cache / scene.write_key.vault / "control.sqlite"


def reads(scene: Founded, cache: Path) -> Counter[str]:
    """What is asked of the first replica to list points and proofs, which come out right."""
    stores: list[Counting] = []

    def counting(name: str, store: Objects) -> Counting:
        stores.append(Counting(store))
        return stores[-1]

    assert seen(opened(scene, cache, scene.replicas(counting))) == seen(opened(scene, None))
    return sum((store.reads for store in stores), Counter())


def test_what_is_known_is_not_fetched_again_but_for_a_sample(scene: Founded, cache: Path) -> None:
    first, second = reads(scene, cache), reads(scene, cache)
    assert (first["snapshots"], first["ledger"]) == (POINTS, POINTS)
    assert (second["snapshots"], second["ledger"]) == (1, 1)


def test_what_came_since_is_fetched(scene: Founded, cache: Path) -> None:
    reads(scene, cache)
    scene.backup({"t": b"new"})
    assert reads(scene, cache)["snapshots"] in (1, 2)
    assert reads(scene, cache)["snapshots"] == 1


def test_an_open_vault_knows_what_it_read_without_a_file(scene: Founded) -> None:
    store = Counting(scene.stores["a"])
    vault = opened(scene, None, scene.replicas(lambda n, s: store if n == "a" else s))
    before = vault.commits()
    store.reads.clear()
    newest = scene.backup({"t": b"new"})
    assert vault.commits() == [*before, replace(newest, replicas=("a", "b"))]
    assert store.reads["snapshots"] == 1


def test_only_its_owner_may_read_it(scene: Founded, cache: Path) -> None:
    os.umask(os.umask(0))
    reads(scene, cache)
    assert file_of(scene, cache).stat().st_mode & 0o777 == 0o600
    assert file_of(scene, cache).parent.stat().st_mode & 0o077 == 0


def test_it_holds_no_secret(scene: Founded, cache: Path) -> None:
    reads(scene, cache)
    held = file_of(scene, cache).read_bytes()
    key = scene.write_key
    for secret in (key.index, key.chunk_ids, key.signing_seed):
        assert secret not in held
        assert secret.hex().encode() not in held
    assert b"proven" not in held, "ledger entries and registers stay sealed"


# ---------------------------------------------------------------------------------- existence


def test_what_no_replica_lists_is_not_there(scene: Founded, cache: Path) -> None:
    gone = opened(scene, cache).commits()[2]
    for store in scene.stores.values():
        store.delete(layout.snapshot_key(gone.session))
    assert gone.session not in {c.session for c in opened(scene, cache).commits()}


def test_a_replica_that_lacks_it_is_behind(scene: Founded, cache: Path) -> None:
    gone = opened(scene, cache).commits()[2]
    scene.stores["b"].delete(layout.snapshot_key(gone.session))
    after = {c.session: c.replicas for c in opened(scene, cache).commits()}
    assert after.pop(gone.session) == ("a",)
    assert set(after.values()) == {("a", "b")}


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b" ", lambda d: b""])
def test_another_size_is_noticed(
    scene: Founded, cache: Path, change: Callable[[bytes], bytes]
) -> None:
    commit = opened(scene, cache).commits()[2]
    for store in scene.stores.values():
        store.damage(layout.snapshot_key(commit.session), change)
    vault = opened(scene, cache)
    left = {c.session for c in vault.commits()}
    whole = opened(scene, None)
    assert left == {c.session for c in whole.commits()}
    assert vault.unreadable.keys() == whole.unreadable.keys()


def test_the_same_size_is_noticed_when_the_sample_meets_it(scene: Founded, cache: Path) -> None:
    commit = opened(scene, cache).commits()[2]
    key = layout.snapshot_key(commit.session)
    for store in scene.stores.values():
        store.damage(key, flip(200 * 8))
    for _ in range(200):
        vault = opened(scene, cache)
        vault.commits()
        if key in vault.unreadable:
            return
    pytest.fail("in 200 times nobody read it")


# ------------------------------------------------------------------------------ the file itself


def rewritten(file: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(file)
    with database:
        assert database.execute(statement, values).rowcount
    database.close()


def forged(scene: Founded) -> bytes:
    """A register that nobody signed: the body is another one's, the rest its own."""
    objects = scene.stores["a"].objects
    one, other = sorted(k for k in objects if k.startswith(layout.SNAPSHOTS_PREFIX))[:2]
    return objects[one].replace(one[-25:].encode(), other[-25:].encode())


@pytest.mark.parametrize("column", ["data", "mac"])
def test_bytes_without_a_mac_are_not_believed(scene: Founded, cache: Path, column: str) -> None:
    reads(scene, cache)
    value = {"data": forged(scene), "mac": bytes(16)}[column]
    rewritten(file_of(scene, cache), f"update control set {column} = ?", value)
    assert reads(scene, cache)["snapshots"] == POINTS
    assert reads(scene, cache)["snapshots"] == 1


def test_bytes_under_another_name_are_not_believed(scene: Founded, cache: Path) -> None:
    reads(scene, cache)
    rewritten(
        file_of(scene, cache),
        "update control set name = name || 'x' where name like 'snapshots/%'",
    )
    rewritten(
        file_of(scene, cache),
        "update control set name = (select max(substr(name, 1, length(name) - 1)) from control "
        "where name like 'snapshots/%') where name = (select min(name) from control "
        "where name like 'snapshots/%')",
    )
    assert reads(scene, cache)["snapshots"] == POINTS


def test_who_may_sign_is_judged_anew(
    scene: Founded, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(scene, cache).commits()
    vault = opened(scene, cache)
    vault.configuration = replace(vault.configuration, writers={"w-00000000": "00" * 32})
    with pytest.raises(DamagedData, match="this vault does not know"):
        vault.commits()


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough" * 99])
def test_a_broken_file_is_replaced(scene: Founded, cache: Path, content: bytes) -> None:
    reads(scene, cache)
    file_of(scene, cache).write_bytes(content)
    assert reads(scene, cache)["snapshots"] == POINTS
    reads(scene, cache)
    assert reads(scene, cache)["snapshots"] == 1


def test_a_file_damaged_anywhere_is_no_harm(scene: Founded, cache: Path) -> None:
    reads(scene, cache)
    whole = file_of(scene, cache).read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        file_of(scene, cache).write_bytes(flip(at * 8)(whole))
        reads(scene, cache)
    for length in range(0, len(whole), max(1, len(whole) // 20)):
        file_of(scene, cache).write_bytes(whole[:length])
        reads(scene, cache)


@pytest.mark.parametrize("value", [b"\xff\xfe", 7, None, "text"])
@pytest.mark.parametrize("column", ["data", "mac"])
def test_rows_of_other_types_are_replaced(
    scene: Founded, cache: Path, column: str, value: object
) -> None:
    reads(scene, cache)
    rewritten(file_of(scene, cache), f"update control set {column} = ?", value)
    reads(scene, cache)
    reads(scene, cache)
    assert reads(scene, cache)["snapshots"] == 1


def test_names_that_are_no_text_are_replaced(scene: Founded, cache: Path) -> None:
    reads(scene, cache)
    rewritten(
        file_of(scene, cache),
        "update control set name = cast(x'736eff' as text) "
        "where name = (select min(name) from control where name like 'snapshots/%')",
    )
    reads(scene, cache)
    assert reads(scene, cache)["snapshots"] in (1, 2)


def test_a_place_that_cannot_be_written_costs_only_time(scene: Founded, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    assert reads(scene, blocked)["snapshots"] == POINTS
    assert reads(scene, Path("/proc/nowhere"))["snapshots"] == POINTS


def _keep(cache: Path, start: int) -> None:
    one = ControlCache(cache, "00" * 16, bytes(32))
    for n in range(start, start + 100):
        one.keep({f"snapshots/{n}": b"content %d" % n})


def test_processes_share_it_and_may_be_killed(cache: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_keep, args=(cache, n * 100)) for n in range(3)]
    for process in processes:
        process.start()
    file = cache / ("00" * 16) / "control.sqlite"
    one = ControlCache(cache, "00" * 16, bytes(32))
    while not one.load("snapshots/2"):
        assert any(p.is_alive() for p in processes)
    processes[2].kill()
    for process in processes:
        process.join()
    held = one.load("snapshots/")
    assert all(
        data == b"content " + name.split("/")[1].encode() for (name, _), data in held.items()
    )
    assert {f"snapshots/{n}" for n in range(200)} <= {name for name, _ in held}
    one.keep({"snapshots/after": b"x"})
    assert len(one.load("snapshots/after")) == 1
    assert file.exists()
