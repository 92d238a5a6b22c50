"""WAL put into the vault: stored once, never overwritten, whatever fails on the way."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.domain.wal import FIRST_PAGE_BYTES
from cellarer.errors import (
    CellarerError,
    KeyUnusable,
    SourceFailed,
    StoreError,
    UsageError,
    VaultUnreachable,
    WalConflict,
)
from cellarer.flows.keys import add_recipient, remove_recipient
from cellarer.flows.sync import synchronise
from cellarer.vault import format as layout
from cellarer.vault import promptly
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import facts
from cellarer.vault.log import LogReader, LogWriter, systems
from cellarer.vault.log_object import open_header, parse_header
from cellarer.vault.replicas import Replica
from cellarer.vault.vault import Vault
from faulty import Gate
from key_changes import NOW, founder_of
from scrubbing import Silent
from stand_ins import Fault, Faults, FaultyStore, Objects, PowerCut, flip, found
from wal_files import (
    SEGMENT_BYTES,
    SYSTEM,
    away,
    history,
    keys_of,
    reader,
    segment,
    sessions_of,
    writer,
)


def test_what_was_put_is_read(tmp_path: Path) -> None:
    made = found(replicas=2)
    files = [segment(1), segment(2), history(2, (1, "0/280000")), segment(2, timeline=2)]
    files += [(f"{segment(2)[0]}.partial", segment(2)[1])]
    files += [(f"{segment(1)[0]}.00000028.backup", b"START WAL LOCATION: 0/100028\n")]
    putting = writer(made, tmp_path)
    for name, data in files:
        stored = putting.put(name, data)
        assert stored.new
        assert not stored.behind
        assert stored.untold is None
    for alone in (made, made.alone("a"), made.alone("b")):
        reading = reader(alone)
        assert reading.names() == {name for name, _ in files}
        assert [reading.read(name) for name, _ in files] == [data for _, data in files]
    assert systems(made.open()) == [SYSTEM]


def test_putting_it_again_changes_nothing(tmp_path: Path) -> None:
    made = found(replicas=2)
    name, data = segment(1)
    assert writer(made, tmp_path).put(name, data).new
    before = made.copy()
    # Another host, with a log key of its own, stores the same.
    assert not writer(made, tmp_path / "other").put(name, data).new
    for replica in "ab":
        assert keys_of(made.stores[replica]) == keys_of(before.stores[replica])


def test_other_wal_of_the_same_name_is_refused(tmp_path: Path) -> None:
    made = found(replicas=2)
    name, data = segment(1)
    writer(made, tmp_path).put(name, data)
    before = made.copy()
    with pytest.raises(WalConflict) as refused:
        writer(made, tmp_path).put(name, segment(1, seed=1)[1])
    assert refused.value.exit_code == 1
    assert refused.value.hint
    assert all(made.stores[r].objects == before.stores[r].objects for r in "ab")
    assert reader(made).read(name) == data


def test_a_conflict_is_found_on_any_replica(tmp_path: Path) -> None:
    made = found(replicas=2)
    name, data = segment(1)
    writer(made, tmp_path, away(made, "a")).put(name, data)
    with pytest.raises(WalConflict):
        writer(made, tmp_path).put(name, segment(1, seed=1)[1])
    assert not keys_of(made.stores["a"])


def test_a_replica_that_was_away_gets_the_very_bytes(tmp_path: Path) -> None:
    made = found(replicas=2)
    name, data = segment(1)
    stored = writer(made, tmp_path, away(made, "b")).put(name, data)
    assert set(stored.behind) == {"b"}
    again = writer(made, tmp_path).put(name, data)
    assert not again.new
    assert not again.behind
    key = layout.wal_key(SYSTEM, name)
    assert made.stores["a"].objects[key] == made.stores["b"].objects[key]
    assert reader(made.alone("b")).read(name) == data


def test_putting_it_again_helps_a_replica_that_lacks_what_is_damaged(tmp_path: Path) -> None:
    made = found(replicas=2)
    name, data = segment(1)
    writer(made, tmp_path, away(made, "b")).put(name, data)
    made.stores["a"].damage(layout.wal_key(SYSTEM, name), flip(90_000))
    assert not writer(made, tmp_path).put(name, data).behind
    assert reader(made).read(name) == data


def test_fewer_than_the_quorum_is_no_success(tmp_path: Path) -> None:
    made = found(replicas=3, write_quorum=2)
    name, data = segment(1)
    with pytest.raises(VaultUnreachable):
        writer(made, tmp_path, away(made, "a", "b")).put(name, data)
    assert not writer(made, tmp_path).put(name, data).behind


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY])
def test_whatever_operation_fails_putting_again_ends_well(tmp_path: Path, fault: Fault) -> None:
    name, data = segment(1)
    number, crashed = 0, 0
    while True:
        made = found(replicas=2, write_quorum=2)
        faults = Faults(lambda n, number=number: fault if n == number else None)  # type: ignore[misc]
        vault = Vault.open(made.replicas(), made.write_key, None)
        vault.replicas.replicas = tuple(
            Replica(r.name, FaultyStore(r.store, faults)) for r in vault.replicas.replicas
        )
        state = tmp_path / f"{fault.name}{number}"
        try:
            LogWriter(vault, SYSTEM, state, made.now).put(name, data)
        except (PowerCut, CellarerError):
            crashed += 1
        if faults.operations <= number:
            break
        assert not writer(made, state).put(name, data).behind
        for replica in "ab":
            assert reader(made.alone(replica)).read(name) == data
            with pytest.raises(WalConflict):
                writer(made.alone(replica), state).put(name, segment(1, seed=1)[1])
        number += 1
    assert crashed > 8


def test_two_that_put_the_same_at_once_both_succeed(tmp_path: Path) -> None:
    made = found(replicas=2, write_quorum=2)
    putting = [writer(made, tmp_path / str(n)) for n in range(4)]
    for number in range(1, 6):
        name, data = segment(number)
        start = threading.Barrier(4)

        def put(each: LogWriter, name: str = name, data: bytes = data, start=start) -> None:  # type: ignore[no-untyped-def]
            start.wait()
            each.put(name, data)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, putting))
        for replica in "ab":
            assert reader(made.alone(replica)).read(name) == data


def test_of_two_that_put_different_wal_at_once_one_at_most_succeeds(tmp_path: Path) -> None:
    for number in range(1, 6):
        made = found(replicas=2, write_quorum=2)
        putting = [writer(made, tmp_path / f"{number}-{n}") for n in range(2)]
        contents = [segment(number, seed=n) for n in range(2)]
        start = threading.Barrier(2)

        def put(n: int, putting=putting, contents=contents, start=start) -> bool:  # type: ignore[no-untyped-def]
            start.wait()
            try:
                putting[n].put(*contents[n])
            except WalConflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(put, range(2)))
        assert sum(won) <= 1
        if any(won):
            assert reader(made).read(contents[0][0]) == contents[won.index(True)][1]


def test_a_log_key_is_no_point_and_nobody_waits_for_it(tmp_path: Path) -> None:
    made = found()
    writer(made, tmp_path).put(*segment(1))
    assert layout.snapshot_key(sessions_of(made)[0]) in made.stores["a"].objects
    assert made.open().commits() == []
    made.backup({"x": b"y"})
    assert len(made.open().commits()) == 1


def test_a_log_key_is_used_again_by_the_next_process(tmp_path: Path) -> None:
    made = found()
    for number in range(1, 4):
        writer(made, tmp_path).put(*segment(number))
    assert len(sessions_of(made)) == 1
    assert all(f.stat().st_mode & 0o777 == 0o600 for f in tmp_path.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("../x", b"", UsageError),
        ("00000001000000000000000", b"", UsageError),
        (segment(1)[0], segment(2)[1], SourceFailed),
        (segment(1)[0], segment(1)[1][:-1], SourceFailed),
        (segment(1)[0], bytes(SEGMENT_BYTES), SourceFailed),
        ("00000002.history", b"nonsense\n", SourceFailed),
    ],
)
def test_what_is_no_such_file_is_refused(
    tmp_path: Path, name: str, data: bytes, error: type[CellarerError]
) -> None:
    with pytest.raises(error):
        writer(found(), tmp_path).put(name, data)


def test_wal_of_another_cluster_is_refused(tmp_path: Path) -> None:
    made = found()
    vault = Vault.open(made.replicas(), made.write_key, None)
    with pytest.raises(UsageError, match="another cluster"):
        LogWriter(vault, "7000000000000000001", tmp_path, made.now).put(*segment(1))


def test_a_collect_key_alone_stores_nothing(tmp_path: Path) -> None:
    made = found()
    with pytest.raises(UsageError):
        LogWriter(Vault.open(made.replicas(), None, made.identity), SYSTEM, tmp_path, made.now)


def test_other_recipients_mean_another_log_key(tmp_path: Path) -> None:
    made, other = found(replicas=2), Identity.generate()
    putting = writer(made, tmp_path)
    putting.put(*segment(1))
    add_recipient(made.open(), other.recipients[0], NOW)
    later = NOW + timedelta(days=1)
    writer(replace(made, now=lambda: later), tmp_path).put(*segment(2))
    assert len(sessions_of(made)) == 2
    alone = Vault.open(made.replicas(), None, other, founder=founder_of(made))
    reading = LogReader(alone, SYSTEM)
    for number in (1, 2):
        assert reading.read(segment(number)[0]) == segment(number)[1]
    # The third is sealed to a key that the removed one does not open.
    remove_recipient(made.open(), other.recipients[0], NOW)
    writer(replace(made, now=lambda: later), tmp_path).put(*segment(3))
    third = layout.wal_key(SYSTEM, segment(3)[0])
    session = open_header(made.open(), third, made.stores["a"].objects[third]).session
    envelopes = [k for k in made.stores["a"].objects if session in k and k.startswith("keys/")]
    assert envelopes == [f"keys/{session}.2.age"]
    with pytest.raises(KeyUnusable):
        other.open(made.stores["a"].objects[envelopes[0]], envelopes[0])
    assert reader(made).read(segment(1)[0]) == segment(1)[1]
    assert reader(made).read(segment(3)[0]) == segment(3)[1]


def test_the_ledger_hears_at_once_of_a_timeline_and_else_by_the_hour(tmp_path: Path) -> None:
    made, moment = found(), NOW
    putting = writer(replace(made, now=lambda: moment), tmp_path)

    def told() -> list[list[list[str]]]:
        return [fact["runs"] for fact in facts(made.open(), "wal")]

    putting.put(*segment(1))
    assert told() == [[[segment(1)[0]] * 2]]
    moment += timedelta(minutes=30)
    putting.put(*segment(3))
    assert len(told()) == 1
    putting.put(*segment(1, timeline=2))
    assert len(told()) == 2
    moment += timedelta(minutes=59)
    putting.put(*segment(2))
    assert len(told()) == 2
    moment += timedelta(minutes=1)
    # Out of their order: what is there in a row is told as that.
    putting.put(*segment(4))
    assert len(told()) == 3
    assert told()[-1][0] == [segment(1)[0], segment(4)[0]]
    putting.told(force=True)
    assert len(told()) == 3  # nothing new


def test_what_the_ledger_could_not_be_told_is_said_and_told_later(tmp_path: Path) -> None:
    made = found()
    writer(made, tmp_path).put(*segment(1))
    later = NOW + timedelta(days=1)
    made = replace(made, now=lambda: later)
    full = made.replicas(lambda name, store: NoLedger(name, store.objects))
    stored = writer(made, tmp_path, full).put(*segment(2))
    assert stored.new
    assert stored.untold is not None
    made.stores["a"].objects |= full.replicas[0].store.objects  # type: ignore[attr-defined]
    assert writer(made, tmp_path).put(*segment(2)).untold is None
    assert len(facts(made.open(), "wal")) == 2


class NoLedger(Objects):
    """A store that takes no entry of the ledger."""

    def create(self, key: str, data: bytes) -> None:
        if key.startswith(layout.LEDGER_PREFIX):
            raise StoreError("no room", hint="make some")
        super().create(key, data)


def test_a_replica_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promptly, "GRACE_SECONDS", 0.05)
    made, gate = found(replicas=2), Gate()
    hanging = False
    faults = Faults(lambda number: gate if hanging else None)
    vault = Vault.open(
        made.replicas(lambda name, store: FaultyStore(store, faults) if name == "b" else store),
        made.write_key,
        None,
    )
    putting = LogWriter(vault, SYSTEM, tmp_path, made.now)
    assert not putting.put(*segment(1)).behind
    hanging = True
    for number in range(2, 9):
        assert set(putting.put(*segment(number)).behind) == {"b"}
    waiting = [t for t in threading.enumerate() if t.name == "ask" and t.is_alive()]
    assert waiting
    hanging = False
    gate.opened.set()
    assert reader(made.alone("a")).read(segment(8)[0]) == segment(8)[1]
    synchronise(made.replicas(), None, Silent(), made.now)
    for number in range(1, 9):
        assert reader(made.alone("b")).read(segment(number)[0]) == segment(number)[1]


@given(length=st.integers(1, 40_000))
@settings(max_examples=30, deadline=None)
def test_sizes_are_padded_and_any_length_is_read(length: int) -> None:
    made, content = found(), segment(1)[1][:length]
    with tempfile.TemporaryDirectory() as state:
        writer(made, Path(state)).put_piece(segment(1)[0], 0, content)
    (key,) = keys_of(made.stores["a"])
    data = made.stores["a"].objects[key]
    body = len(data) - parse_header(key, data).offset
    assert layout.padded_length(body) == body
    if length >= FIRST_PAGE_BYTES:
        read = reader(made).read(segment(1)[0])
        assert read == content + bytes(SEGMENT_BYTES - length)
