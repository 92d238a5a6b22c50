"""A vault that lost a part of its history, or shows an older one, is found out."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.flows.history import look_back
from cellarer.flows.points import list_points, survey
from cellarer.flows.restore import plan
from cellarer.flows.status import Status, status
from cellarer.vault.catchup import catch_up
from cellarer.vault.heads import SeenHeads
from cellarer.vault.ledger import proofs, record_proof
from cellarer.vault.vault import Commit
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Fault, Faults, FaultyStore, Founded, Objects, found

DAY = timedelta(days=1)


def prove(scene: Founded, commit: Commit, *, passed: bool = True) -> ProofRecord:
    check = Check("c", passed, "", "")
    record = ProofRecord(
        commit.session, commit.source, Proof.PROVEN, passed, scene.now(), 1.0, (check,)
    )
    record_proof(scene.open(), record)
    return record


def look(scene: Founded, seen: SeenHeads | None = None) -> list[str]:
    vault = scene.open()
    return [finding.id for finding in look_back(vault, survey(vault), seen)]


def remove(scene: Founded, key: str) -> None:
    for store in scene.stores.values():
        store.delete(key)


def at(scene: Founded, offset: timedelta) -> Founded:
    """The same vault, written by a host whose clock is off."""

    def now() -> datetime:
        return scene.now() + offset

    return Founded(scene.stores, scene.write_quorum, scene.write_key, scene.identity, now)


@pytest.fixture
def scene() -> Founded:
    return found(replicas=2)


@pytest.fixture
def seen(scene: Founded, tmp_path: Path) -> SeenHeads:
    return SeenHeads(tmp_path / "state" / "heads", scene.write_key.vault)


def test_whole_histories_raise_nothing(scene: Founded, seen: SeenHeads) -> None:
    assert look(scene, seen) == []
    for content in (b"1", b"2", b"3"):
        commit = scene.backup({"a": content})
        prove(scene, commit)
        assert look(scene, seen) == []
    assert seen.file.stat().st_mode & 0o777 == 0o600


def test_two_writers_at_once_raise_nothing(scene: Founded, seen: SeenHeads) -> None:
    scene.backup({"a": b"0"})
    writers = [SnapshotWriter(scene.open(), name, "test", scene.now) for name in ("red", "white")]
    commits = [writer.commit() for writer in writers]
    assert commits[0].previous == commits[1].previous
    prove(scene, scene.backup({"a": b"1"}))
    assert look(scene, seen) == []
    remove(scene, f"snapshots/{commits[0].session}")
    assert "rolled-back" in look(scene, seen)


@pytest.mark.parametrize("number", range(3))
def test_a_deleted_snapshot_is_missed(scene: Founded, seen: SeenHeads, number: int) -> None:
    commits = [scene.backup({"a": str(n).encode()}) for n in range(3)]
    assert look(scene, seen) == []
    remove(scene, f"snapshots/{commits[number].session}")
    assert look(scene) == ([] if number == 2 else ["history-gap"])
    assert look(scene, seen) == (["rolled-back"] if number == 2 else ["history-gap"])


def test_a_deleted_snapshot_is_missed_by_its_proof(scene: Founded) -> None:
    commit = scene.backup({"a": b"1"})
    other = scene.backup({"a": b"2"})
    prove(scene, other)
    remove(scene, f"snapshots/{other.session}")
    assert look(scene) == ["point-gone"]
    assert commit.session in [point.id for point in list_points(scene.open())]


@pytest.mark.parametrize("number", range(3))
def test_a_deleted_ledger_entry_is_missed(scene: Founded, seen: SeenHeads, number: int) -> None:
    commit = scene.backup({"a": b"1"})
    for _ in range(3):
        prove(scene, commit)
    assert look(scene, seen) == []
    remove(scene, sorted(k for k in scene.stores["a"].objects if k.startswith("ledger/"))[number])
    assert look(scene) == ([] if number == 2 else ["history-gap"])
    assert look(scene, seen) == (["rolled-back"] if number == 2 else ["history-gap"])


def test_yesterdays_vault_is_found_out_until_todays_is_back(
    scene: Founded, seen: SeenHeads
) -> None:
    prove(scene, scene.backup({"a": b"1"}))
    assert look(scene, seen) == []
    yesterday = scene.copy()
    prove(scene, scene.backup({"a": b"2"}))
    assert look(scene, seen) == []
    for _ in range(2):
        assert look(yesterday, seen) == ["rolled-back", "rolled-back"]
    # What is written onto the old state does not make it whole.
    yesterday.backup({"a": b"3"})
    assert "rolled-back" in look(yesterday, seen)
    yesterday.stores["c"] = scene.stores["a"]
    catch_up(yesterday.replicas(), lambda _: None)
    assert look(yesterday, seen) == []
    seen.file.unlink()
    assert look(yesterday, seen) == []


def test_one_replica_rolled_back_is_only_behind(scene: Founded, seen: SeenHeads) -> None:
    prove(scene, scene.backup({"a": b"1"}))
    scene.stores["b"] = Objects("b", scene.stores["b"].objects)
    yesterday = dict(scene.stores["b"].objects)
    prove(scene, scene.backup({"a": b"2"}))
    scene.stores["b"] = Objects("b", yesterday)
    assert look(scene, seen) == []
    assert list_points(scene.open())[0].replicas == {"a": "stored", "b": "behind"}


def test_what_may_be_on_a_replica_that_is_away_is_said(scene: Founded, seen: SeenHeads) -> None:
    alone = scene.alone("a")
    alone.backup({"a": b"1"})
    assert look(scene, seen) == []
    gone = Faults(lambda _: Fault.REFUSE)
    vault = scene.open(scene.replicas(lambda n, s: FaultyStore(s, gone) if n == "a" else s))
    (finding,) = look_back(vault, survey(vault), seen)
    assert finding.hint.startswith("a does not answer and may have it")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"heads": 3}', "\x00"])
def test_a_broken_state_file_is_one_that_was_lost(
    scene: Founded, seen: SeenHeads, content: str
) -> None:
    scene.backup({"a": b"1"})
    seen.file.parent.mkdir(parents=True)
    seen.file.write_text(content)
    assert look(scene, seen) == []
    assert seen.load()


def test_a_state_that_cannot_be_kept_is_a_warning(scene: Founded, tmp_path: Path) -> None:
    scene.backup({"a": b"1"})
    (tmp_path / "file").touch()
    vault = scene.open()
    seen = SeenHeads(tmp_path / "file" / "heads", vault.id)
    (finding,) = look_back(vault, survey(vault), seen)
    assert (finding.id, finding.level) == ("heads-not-kept", "warning")


def judged(scene: Founded, now: datetime, findings: tuple[Finding, ...] = ()) -> Status:
    vault = scene.open()
    every: dict[str, timedelta | None] = {"db": timedelta(hours=6)}
    return status(vault, list_points(vault), every, None, now, findings)


def test_errors_of_the_history_are_alarms(scene: Founded) -> None:
    error = Finding("rolled-back", "error", "vault", "was rolled back", "bring it back")
    warning = Finding("heads-not-kept", "warning", "vault", "cannot be kept")
    alarms = judged(scene, scene.now(), (error, warning)).alarms
    assert ("vault", "was rolled back") in [(alarm.subject, alarm.message) for alarm in alarms]
    assert "cannot be kept" not in [alarm.message for alarm in alarms]


def test_a_clock_that_ran_ahead_is_told_and_silences_nothing(scene: Founded) -> None:
    right = scene.backup({"a": b"1"})
    prove(scene, right)
    wrong = at(scene, 30 * DAY).backup({"a": b"2"})
    late = scene.now() + 2 * DAY
    source = judged(scene, late).sources[0]
    assert source.point == wrong.session
    assert 1.9 * 86400 < (source.age_seconds or 0) < 2.1 * 86400
    messages = [alarm.message for alarm in judged(scene, late).alarms]
    assert any(m.startswith(f"{wrong.session} is dated") for m in messages)
    assert any("the newest point is" in m for m in messages)


def test_latest_follows_the_chain_where_a_clock_ran_ahead(scene: Founded) -> None:
    scene.backup({"a": b"1"})
    wrong = at(scene, 30 * DAY).backup({"a": b"2"})
    chosen = plan(scene.open(), "db", "latest", None, scene.now())
    assert chosen.point.id == wrong.session
    assert "the clock of its writer was wrong" in "\n".join(chosen.reasons)
    for content in (b"3", b"4"):
        newest = scene.backup({"a": content})
    chosen = plan(scene.open(), "db", "latest", None, scene.now())
    assert chosen.point.id == newest.session
    assert f"{wrong.session} is dated later" in "\n".join(chosen.reasons)
    remove(scene, f"snapshots/{list_points(scene.open())[1].id}")
    assert look(scene) == ["history-gap"]


@pytest.mark.parametrize("offset", [30 * DAY, -30 * DAY], ids=["ahead", "behind"])
def test_a_failure_counts_after_a_proof_by_a_wrong_clock(scene: Founded, offset: timedelta) -> None:
    commit = scene.backup({"a": b"1"})
    first, second = (at(scene, offset), scene) if offset > 0 * DAY else (scene, at(scene, offset))
    prove(first, commit)
    prove(second, commit, passed=False)
    assert list_points(scene.open())[0].failed == "c"
    prove(second, commit)
    assert [record.passed for record in proofs(scene.open())] == [True, False, True]
    assert look(scene) == []


def test_a_proof_dated_in_the_future_does_not_hide_that_none_is_new(scene: Founded) -> None:
    commit = scene.backup({"a": b"1"})
    prove(at(scene, 30 * DAY), commit)
    messages = [alarm.message for alarm in judged(scene, scene.now()).alarms]
    assert any(m.startswith(f"the proof of {commit.session} is dated") for m in messages)
    assert "no point of it is proven" in messages
