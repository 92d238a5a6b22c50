"""A write key that was stolen is replaced: what it signed stays, what it signs does not count."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cellarer.domain.retention import Policy
from cellarer.errors import DamagedData, KeyUnusable, UsageError
from cellarer.flows.backup import back_up
from cellarer.flows.keys import add_recipient, rotate_write_key
from cellarer.flows.retain import Rules, retain
from cellarer.flows.scrub import Wanted, scrub
from cellarer.ports import Capture, Stream
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.catchup import catch_up
from cellarer.vault.genuine import Trust
from cellarer.vault.keys import Identity, WriteKey
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from flows.test_flows import Shelf, Silent
from key_changes import FIRST, NOW, SECOND
from stand_ins import (
    Founded,
    Objects,
    all_restored,
    found,
)
from vault.collecting import keeper


@pytest.fixture
def scene() -> Founded:
    made = found(replicas=2)
    made.backup(FIRST)
    return made


def rotated(scene: Founded, directory: Path) -> Founded:
    """The same vault after its write key was replaced."""
    return replace(scene, write_key=rotate_write_key(scene.open(), directory / "w.key", NOW))


def test_old_commits_stay_and_the_new_key_goes_on(scene: Founded, tmp_path: Path) -> None:
    after = rotated(scene, tmp_path)
    assert WriteKey.from_text((tmp_path / "w.key").read_text()) == after.write_key
    assert (tmp_path / "w.key").stat().st_mode & 0o777 == 0o600
    second = after.backup(FIRST)
    assert second.body["added_bytes"] == 0, "what is stored is still known"
    for vault in (after.open(), Vault.open(after.replicas(), None, after.identity)):
        assert list(all_restored(vault).values()) == [FIRST, FIRST]
        assert vault.unreadable == {}
    with pytest.raises(KeyUnusable, match="does not trust"):
        scene.backup(SECOND)


def forge(scene: Founded, stolen: WriteKey) -> str:
    """A whole session, back-dated, by whoever holds a stolen key and no honest program."""
    vault = scene.open()
    vault.signer_for = lambda matter: stolen.signer  # type: ignore[method-assign]
    vault.write_key = stolen
    clock = (datetime(2026, 2, 1, tzinfo=UTC) for _ in itertools.count())
    writer = SnapshotWriter(vault, "db", "test", lambda: next(clock))
    return writer.commit().session


def test_a_commit_forged_with_the_stolen_key_is_refused(scene: Founded, tmp_path: Path) -> None:
    stolen = scene.write_key
    after = rotated(scene, tmp_path)
    forged = forge(after, stolen)
    for reader in (after, after.alone("a"), after.alone("b")):
        vault = reader.open()
        assert list(all_restored(vault).values()) == [FIRST]
        assert vault.too_late == {layout.snapshot_key(forged)}
        assert vault.unreadable == {}


def test_a_session_that_was_open_when_its_key_was_retired_is_no_point(
    scene: Founded, tmp_path: Path
) -> None:
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    after = rotated(scene, tmp_path)
    writer.commit()
    vault = after.open()
    assert list(all_restored(vault).values()) == [FIRST]
    with pytest.raises(DamagedData):
        vault.root_check(writer.session)


def test_an_old_register_cannot_be_replaced_with_the_stolen_key(
    scene: Founded, tmp_path: Path
) -> None:
    stolen = scene.write_key
    after = rotated(scene, tmp_path)
    (commit,) = after.open().commits()
    key = layout.snapshot_key(commit.session)
    for store in after.stores.values():
        body = json.loads(store.objects[key])["body"]
        inner = crypto.sealed_text(stolen.index, {**commit.body, "source": "x"}, "snapshot")
        store.objects[key] = stolen.signer.sign("snapshot", {**body, "sealed": inner})
    with pytest.raises(DamagedData):
        after.open().commits()


def test_a_replica_that_serves_what_was_before(scene: Founded, tmp_path: Path) -> None:
    """The store itself sides with the thief: it serves its state of before, and the forgery."""
    stolen, before = scene.write_key, scene.copy()
    after = rotated(scene, tmp_path)
    forge(before, stolen)
    both = replace(after, stores={"a": before.stores["a"], "b": after.stores["b"]})
    assert list(all_restored(both.open()).values()) == [FIRST]
    # Where nothing else answers, the new write key itself says that this is not the newest state.
    with pytest.raises(DamagedData):
        replace(after, stores=before.stores).open()


def test_a_file_of_an_interrupted_run_that_others_have_overtaken(
    scene: Founded, tmp_path: Path
) -> None:
    """It names an epoch that somebody else signed since: nobody could open the vault with it."""
    file, second = tmp_path / "w.key", Identity.generate()
    behind = scene.copy()
    rotate_write_key(behind.open(), file, NOW)
    add_recipient(scene.open(), second.recipients[0], NOW)
    with pytest.raises(UsageError, match="exists already"):
        rotate_write_key(scene.open(), file, NOW)
    after = replace(scene, write_key=rotate_write_key(scene.open(), tmp_path / "2.key", NOW))
    assert Vault.open(after.replicas(), after.write_key, None).configuration.epoch == 2


def test_a_file_of_something_else_is_not_overwritten(scene: Founded, tmp_path: Path) -> None:
    file = tmp_path / "w.key"
    file.write_text(found().write_key.to_text())
    with pytest.raises(UsageError, match="exists already"):
        rotate_write_key(scene.open(), file, NOW)
    rotate_write_key(scene.open(), tmp_path / "1.key", NOW)
    after = replace(scene, write_key=rotate_write_key(scene.open(), tmp_path / "2.key", NOW))
    with pytest.raises(UsageError, match="exists already"):
        rotate_write_key(after.open(), tmp_path / "1.key", NOW)
    assert list(all_restored(after.open()).values()) == [FIRST]


def test_the_key_in_use_is_no_new_one(scene: Founded, tmp_path: Path) -> None:
    file = tmp_path / "w.key"
    file.write_text(scene.write_key.to_text())
    with pytest.raises(UsageError, match="the one that writes now"):
        rotate_write_key(scene.open(), file, NOW)
    assert not scene.open().configuration.retired


def test_a_key_under_another_name_stores_nothing(scene: Founded) -> None:
    """Its points would be signed by nobody that the vault knows."""
    edited = replace(scene, write_key=replace(scene.write_key, writer="w-00000000"))
    before = dict(scene.stores["a"].objects)
    with pytest.raises(KeyUnusable, match="calls itself w-00000000"):
        edited.backup(FIRST)
    assert scene.stores["a"].objects == before


def test_who_has_the_new_key_alone_finds_a_sound_vault_sound(
    scene: Founded, tmp_path: Path
) -> None:
    """It trusts the vault from a later epoch on, and cannot tell what the first one says."""
    after = rotated(scene, tmp_path)
    vault = Vault.open(after.replicas(), after.write_key, None)
    found = scrub(vault, Wanted(repair=True), Silent(), after.now)
    assert (found.damaged, found.missing) == ([], [])
    caught_up = catch_up(vault.replicas, lambda copied: None, Trust.of(vault))
    assert [outcome.problem for outcome in caught_up.values()] == [None, None]
    # Of another vault it is told all the same.
    with pytest.raises(DamagedData, match="marks another vault"):
        Trust.of(vault).check(layout.FORMAT_KEY, found_elsewhere())


def found_elsewhere() -> bytes:
    marker: bytes = found().stores["a"].objects[layout.FORMAT_KEY]
    return marker


def late(scene: Founded, directory: Path, ending: str) -> Founded:
    """A vault whose write key was replaced while a backup ran, which ended in some way."""
    vault = scene.open()
    writer = SnapshotWriter(vault, "db", "test", scene.now)
    writer.add(Stream("t", "test", iter([b"late" * 3000])))
    after = rotated(scene, directory)
    if ending == "commits":
        writer.commit()
    elif ending == "forged":
        forge(after, scene.write_key)
    return after


@pytest.mark.parametrize("ending", ["commits", "is killed", "forged"])
def test_what_a_retired_key_signs_holds_nothing_up(
    scene: Founded, tmp_path: Path, ending: str
) -> None:
    after = late(scene, tmp_path, ending)
    after.stores["c"] = Objects("c")
    for keys in ((after.write_key, None, None), (after.write_key, after.identity, None)):
        vault = Vault.open(after.replicas(), *keys)
        caught_up = catch_up(vault.replicas, lambda copied: None, Trust.of(vault))
        assert {outcome.problem for outcome in caught_up.values()} == {None}
        found = scrub(vault, Wanted(repair=True), Silent(), after.now)
        assert (found.damaged, found.missing, found.lost) == ([], [], [])
    assert len(after.backup(SECOND).session) > 0
    done = retain(keeper(after), Rules(Policy(last=9), {}, UTC), after.now, Silent())
    assert len(done.keep) == 2
    assert list(all_restored(after.alone("c").open()).values()) == [FIRST, SECOND]


def test_a_backup_whose_key_was_replaced_meanwhile_fails(scene: Founded, tmp_path: Path) -> None:
    after: list[Founded] = []

    class Rotating(Shelf):
        @contextmanager
        def capture(self) -> Iterator[Capture]:
            with super().capture() as capture:
                yield capture
            after.append(rotated(scene, tmp_path))

    vault = Vault.open(scene.replicas(), scene.write_key, None)
    with pytest.raises(KeyUnusable, match="no restore point"):
        back_up(vault, Rotating({"t": b"late"}), Silent(), scene.now)
    assert list(all_restored(after[0].open()).values()) == [FIRST]
