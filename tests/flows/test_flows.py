"""The flows over a vault in memory and a source that does as it is told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest

from cellarer.cli.progress import LineProgress
from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Check, Proof
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, SourceFailed, UsageError
from cellarer.flows import restore as restoring
from cellarer.flows.backup import back_up
from cellarer.flows.doctor import examine, look_for_room
from cellarer.flows.points import list_points
from cellarer.flows.status import status
from cellarer.flows.sync import synchronise
from cellarer.flows.verify import choose, damaged, verify
from cellarer.ports import Capture, Judgement, Outlook, PointReader, Progress, Restored, Stream
from cellarer.vault.founding import make, prepare
from cellarer.vault.keys import Identity
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Vault
from stand_ins import Objects

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


class Clock:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.moment = NOW

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


class Silent:
    """Progress that nobody watches."""

    def begin(self, title: str, total_bytes: int | None) -> None: ...
    def advance(self, read_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


class Shelf:
    """A source that yields these streams, then fails if it is told to."""

    kind = "shelf"

    def __init__(
        self, content: dict[str, bytes], failure: Exception | None = None, name: str = "shelf"
    ) -> None:
        self.name = name
        self.content = content
        self.failure = failure
        self.expected_bytes: int | None = None

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        streams = (Stream(path, "file", iter([data])) for path, data in self.content.items())
        yield Capture(streams, self.expected_bytes)
        if self.failure is not None:
            raise self.failure

    def examine(self) -> list[Finding]:
        return []


class Table:
    """A target that keeps what it was given."""

    def __init__(self, occupied: bool = False) -> None:
        self.occupied = occupied
        self.content: dict[str, bytes] = {}

    def prepare(self, overwrite: bool) -> None:
        if self.occupied and not overwrite:
            raise CellarerError("something is there")

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        size_bytes = sum(e.size_bytes for e in reader.entries() if not only or e.path in only)
        return Outlook(size_bytes, ("table",) if self.occupied else (), as_verified=not only)

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        for entry in reader.entries():
            if not only or entry.path in only:
                self.content[entry.path] = b"".join(reader.read(entry.path))
        return Restored(sum(map(len, self.content.values())), 0.1, "the table")


class Judge:
    """A prover whose verdict is given; it reads one stream as a real one reads many."""

    def __init__(self, *checks: Check) -> None:
        self.checks = checks

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        b"".join(reader.read(reader.entries()[0].path))
        return Judgement(self.checks)


RESTORED = Check("restore", True, "restored", "restored")
EQUAL = Check("content a", True, "x", "x")
DIFFERENT = Check("content a", False, "x", "y")


@pytest.fixture
def stores() -> list[Objects]:
    return [Objects("one"), Objects("two")]


@pytest.fixture
def vault(stores: list[Objects]) -> Vault:
    names = ("one", "two")
    replicas = ReplicaSet([Replica(n, s) for n, s in zip(names, stores, strict=True)], 1)
    identity = Identity.generate()
    made = prepare(identity, NOW)
    make(replicas, made)
    return Vault.open(replicas, made.write_key, identity)


def test_what_is_backed_up_comes_back(vault: Vault) -> None:
    clock = Clock()
    content = {"a": b"red" * 1000, "ä/ö": b"", "c": b"white"}
    point = back_up(vault, Shelf(content), Silent(), clock)
    assert point.replicas == {"one": "stored", "two": "stored"}
    assert (point.streams, point.read_bytes) == (3, 3005)
    plan = restoring.plan(vault, "shelf", "latest", None, clock())
    table = Table()
    reader = restoring.open_point(vault, plan.point.id)
    restoring.restore(reader, plan, table, (), False, Silent())
    assert table.content == content


def test_a_source_that_fails_leaves_no_point(vault: Vault) -> None:
    clock = Clock()
    kept = back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    with pytest.raises(SourceFailed):
        back_up(vault, Shelf({"a": b"2"}, SourceFailed("it broke")), Silent(), clock)
    with pytest.raises(SourceFailed, match="yielded nothing"):
        back_up(vault, Shelf({}), Silent(), clock)
    assert [point.id for point in list_points(vault)] == [kept.id]


def told(vault: Vault, shelf: Shelf) -> list[str]:
    """What a backup says of its progress on paper."""
    stream = io.StringIO()
    with suppress(SourceFailed):
        back_up(vault, shelf, LineProgress(stream, lambda: 0.0), Clock())
    return stream.getvalue().splitlines()


def test_a_backup_tells_how_much_it_expects_and_is_done_only_when_it_is(vault: Vault) -> None:
    shelf = Shelf({"a": b"12345"})
    assert told(vault, shelf) == ["backing up shelf: started", "backing up shelf: 5 B in 0.0 s"]
    shelf.expected_bytes = 6_000
    assert told(vault, shelf)[0] == "backing up shelf: started, 6.00 kB"
    shelf.failure = SourceFailed("it broke")
    assert told(vault, shelf) == ["backing up shelf: started, 6.00 kB"]


def test_a_target_that_refuses_is_not_touched(vault: Vault) -> None:
    clock = Clock()
    back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    plan = restoring.plan(vault, "shelf", "latest", None, clock())
    table = Table(occupied=True)
    reader = restoring.open_point(vault, plan.point.id)
    with pytest.raises(CellarerError, match="something is there"):
        restoring.restore(reader, plan, table, (), False, Silent())
    assert table.content == {}


def test_points_are_chosen_by_id_its_end_and_time(vault: Vault) -> None:
    clock = Clock()
    old = back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    between = clock()
    new = back_up(vault, Shelf({"a": b"2"}), Silent(), clock)

    def chosen(wanted: str, at: datetime | None = None) -> str:
        return restoring.plan(vault, "shelf", wanted, at, clock()).point.id

    assert chosen("latest") == new.id
    assert chosen(old.id) == chosen(old.id.rpartition("-")[2]) == old.id
    assert chosen("latest", between) == old.id
    assert restoring.plan(vault, "shelf", "latest", between, clock()).loss_seconds >= 1
    with pytest.raises(UsageError, match="as old as"):
        chosen("latest", NOW)
    with pytest.raises(UsageError, match="no restore point of barrel"):
        restoring.plan(vault, "barrel", "latest", None, clock())
    with pytest.raises(UsageError, match="is no restore point"):
        restoring.open_named(vault, "nonsense")


@pytest.mark.parametrize(
    ("level", "checks", "proof", "passed"),
    [
        (Proof.SCRUBBED, (), Proof.SCRUBBED, True),
        (Proof.PROVEN, (RESTORED, EQUAL), Proof.PROVEN, True),
        (Proof.PROVEN, (RESTORED, DIFFERENT), Proof.RESTORED, False),
        (Proof.PROVEN, (Check("restore", False, "", "no"),), Proof.SCRUBBED, False),
        (Proof.RESTORED, (RESTORED,), Proof.RESTORED, True),
        (Proof.RESTORED, (RESTORED, DIFFERENT), Proof.RESTORED, False),
    ],
)
def test_the_ladder(
    vault: Vault, level: Proof, checks: tuple[Check, ...], proof: Proof, passed: bool
) -> None:
    clock = Clock()
    point = back_up(vault, Shelf({"a": b"1", "b": b"2"}), Silent(), clock)
    prover = Judge(*checks) if level > Proof.SCRUBBED else None
    record = verify(vault, point, level, prover, Silent(), clock)
    assert (record.proof, record.passed) == (proof, passed)
    assert not damaged(record)
    (listed,) = list_points(vault)
    assert (listed.proof, listed.proof_time) == (proof, record.time)


def test_damage_is_found_in_streams_that_the_prover_does_not_read(
    vault: Vault, stores: list[Objects]
) -> None:
    clock = Clock()
    point = back_up(vault, Shelf({"a": b"1", "b": b"2" * 50}), Silent(), clock)
    for store in stores:
        for key in [key for key in store.objects if key.startswith("packs/")]:
            store.damage(key, lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:])
    record = verify(vault, point, Proof.PROVEN, Judge(RESTORED, EQUAL), Silent(), clock)
    assert (record.proof, record.passed, damaged(record)) == (Proof.STORED, False, True)
    with pytest.raises(DamagedData):
        b"".join(restoring.open_named(vault, point.id).read("b"))


def test_a_newer_failure_replaces_an_older_proof(vault: Vault) -> None:
    clock = Clock()
    point = back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    verify(vault, point, Proof.PROVEN, Judge(RESTORED, EQUAL), Silent(), clock)
    verify(vault, point, Proof.PROVEN, Judge(RESTORED, DIFFERENT), Silent(), clock)
    assert list_points(vault)[0].proof == Proof.RESTORED


def test_a_scrub_does_not_undo_a_proof(vault: Vault) -> None:
    clock = Clock()
    point = back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    proven = verify(vault, point, Proof.PROVEN, Judge(RESTORED, EQUAL), Silent(), clock)
    verify(vault, point, Proof.SCRUBBED, None, Silent(), clock)
    assert list_points(vault)[0].proof_time == proven.time
    assert list_points(vault)[0].proof == Proof.PROVEN


def test_verify_takes_the_newest_of_each_source(vault: Vault) -> None:
    clock = Clock()
    back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    new = back_up(vault, Shelf({"a": b"2"}), Silent(), clock)
    other = back_up(vault, Shelf({"a": b"2"}, name="barrel"), Silent(), clock)
    points = list_points(vault)
    assert {point.id for point in choose(points, (), None)} == {new.id, other.id}
    assert [point.id for point in choose(points, ("barrel",), None)] == [other.id]
    assert [point.id for point in choose(points, (), "latest")] == [other.id]
    assert [point.id for point in choose(points, ("shelf",), "latest")] == [new.id]
    with pytest.raises(UsageError, match="no restore point"):
        choose([], (), "latest")
    with pytest.raises(UsageError, match="no restore point of cask"):
        choose(points, ("cask",), None)


def test_without_the_identity_points_are_listed_and_not_read(vault: Vault) -> None:
    clock = Clock()
    assert vault.write_key is not None
    writer = Vault.open(vault.replicas, vault.write_key, None)
    point = back_up(writer, Shelf({"a": b"1"}), Silent(), clock)
    assert list_points(writer)[0].id == point.id
    with pytest.raises(KeyUnusable):
        restoring.open_named(writer, point.id)


def test_status_alarms(vault: Vault, stores: list[Objects]) -> None:
    clock = Clock()
    every = {"shelf": timedelta(hours=6)}

    def alarms(now: datetime) -> list[str]:
        found = status(vault, list_points(vault), every, None, now)
        return [f"{alarm.subject}: {alarm.message}" for alarm in found.alarms]

    assert alarms(NOW) == ["sources.shelf: has no restore point"]
    point = back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    assert alarms(clock()) == ["sources.shelf: no point of it is proven"]
    verify(vault, point, Proof.PROVEN, Judge(RESTORED, EQUAL), Silent(), clock)
    assert alarms(clock()) == []
    late = alarms(NOW + timedelta(days=3))
    assert ["the newest point is" in late[0], "its newest proof is" in late[1]] == [True, True]
    for key in [key for key in stores[1].objects if key.startswith("snapshots/")]:
        stores[1].damage(key, lambda data: None)
    (alarm,) = alarms(clock())
    assert alarm.startswith("vault.replicas.two: lacks 1 restore point of 1.4")
    (_, owing) = status(vault, list_points(vault), every, None, clock()).replicas
    assert (owing.behind_points, owing.behind_bytes) == (1, point.stored_bytes)
    assert owing.oldest_debt_seconds == (clock() - point.time).total_seconds() - 1
    for marker, message in (
        (b'{"vault": "x"}', "its format.json is damaged: it names vault x"),
        (None, "holds no vault"),
        (b"", "format.json is not readable"),
    ):
        stores[1].objects["format.json"] = b""
        stores[1].damage("format.json", lambda _: marker)  # noqa: B023
        (alarm,) = alarms(clock())
        assert alarm.startswith(f"vault.replicas.two: {message}")


def test_a_register_of_another_length_is_not_one_that_is_there(
    vault: Vault, stores: list[Objects]
) -> None:
    clock = Clock()
    back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    for key in list(stores[1].objects):
        stores[1].damage(key, lambda _: b"")
    assert list_points(vault)[0].replicas == {"one": "stored", "two": "behind"}


def test_sync_heals_what_was_cut_short(vault: Vault, stores: list[Objects]) -> None:
    clock = Clock()
    back_up(vault, Shelf({"a": b"1" * 5000}), Silent(), clock)
    good = dict(stores[1].objects)
    for key in list(stores[1].objects):
        if key != "rescue.py":
            stores[1].damage(key, lambda data: data[:9])
    outcomes = synchronise(vault.replicas, vault, Silent(), clock)
    assert all(outcome.problem is None for outcome in outcomes.values())
    assert {key: stores[1].objects[key] for key in good} == good


def test_a_replica_that_was_away_catches_up_with_the_next_backup(
    vault: Vault, stores: list[Objects]
) -> None:
    clock = Clock()
    back_up(vault, Shelf({"a": b"1"}), Silent(), clock)
    lost = [key for key in stores[1].objects if not key.startswith(("format", "config"))]
    for key in lost:
        stores[1].damage(key, lambda data: None)
    point = back_up(vault, Shelf({"a": b"2"}), Silent(), clock)
    assert point.replicas == {"one": "stored", "two": "stored"}
    assert stores[0].objects == stores[1].objects


def test_doctor_reports_what_it_cannot_look_at() -> None:
    def broken() -> list[Finding]:
        raise KeyUnusable("the key is gone", hint="bring it back")

    good = Finding("fine", "info", "vault", "all is well")
    findings = examine([("vault", lambda: [good]), ("vault.write_key", broken)])
    assert [(f.level, f.subject, f.hint) for f in findings] == [
        ("error", "vault.write_key", "bring it back"),
        ("info", "vault", ""),
    ]


def test_damage_on_one_replica_is_told_and_does_no_harm(
    vault: Vault, stores: list[Objects]
) -> None:
    clock = Clock()
    point = back_up(vault, Shelf({"a": b"1" * 50}), Silent(), clock)
    for key in [key for key in stores[0].objects if key.startswith("packs/")]:
        stores[0].damage(key, lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:])
    notes: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    record = verify(vault, point, Proof.SCRUBBED, None, Listening(), clock)
    assert record.passed
    assert [note.partition(":")[0] for note in notes] == ["replica one"]


def test_a_replica_without_room_is_found(vault: Vault, stores: list[Objects]) -> None:
    class Small(Objects):
        def free_bytes(self) -> int | None:
            return 3

    back_up(vault, Shelf({"a": b"1" * 5000}), Silent(), Clock())
    replicas = [Replica("one", stores[0]), Replica("two", Small("two", stores[1].objects))]
    vault.replicas = ReplicaSet(replicas, 1)
    (finding,) = look_for_room(vault, list_points(vault))
    assert (finding.subject, finding.level) == ("vault.replicas.two", "error")
