"""The probe tells stores that keep their promises from those that do not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cellarer.errors import ObjectExists, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo, Store
from cellarer.stores.memory import MemoryStore
from cellarer.stores.probe import PREFIX, RACERS, Probe, probe

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def now() -> datetime:
    return datetime.now(UTC)


def levels(found: Probe) -> list[tuple[str, str]]:
    return [(finding.id, finding.level) for finding in found.findings("vault.replicas.one")]


def test_a_good_store_is_found_good(store: Store) -> None:
    found = probe(store, now)
    assert found.faults == ()
    assert (found.verdict, found.create_if_absent, found.deletes) == ("full", True, True)
    assert found.latency_seconds > 0
    assert levels(found) == [("store-full", "info")]
    assert found.url == store.url


def test_nothing_stays_behind(any_store: Store) -> None:
    any_store.create("packs/one", b"content")
    probe(any_store, now)
    assert [info.key for info in any_store.list("")] == ["packs/one"]


def test_a_store_that_overwrites_is_found_out(lying: Store) -> None:
    found = probe(lying, now)
    assert found.verdict == "grow-only"
    assert not found.create_if_absent
    assert found.faults == ()
    assert "grow-only" in found.text
    assert levels(found) == [("store-grow-only", "error")]


def test_the_clock_of_a_store_over_the_wire_is_known(s3: Store, lying: Store) -> None:
    for store in (s3, lying):
        skew = probe(store, now).clock_skew_seconds
        assert skew is not None
        behind = probe(store, lambda: now() - timedelta(hours=1)).clock_skew_seconds
        assert behind is not None
        assert 3500 < behind - skew < 3700


def test_a_clock_that_is_off_is_a_warning(s3: Store, memory: Store) -> None:
    found = probe(s3, lambda: now() + timedelta(hours=1))
    assert levels(found) == [("store-full", "info"), ("store-clock", "warning")]
    assert "behind" in found.findings("one")[1].message
    assert probe(memory, now).clock_skew_seconds is None


class Broken(MemoryStore):
    """A store with one fault, which a subclass adds."""


class Overwriting(Broken):
    """Replaces what is there, for keys of one ending."""

    def __init__(self, ending: str, *, silently: bool) -> None:
        super().__init__()
        self.ending, self.silently = ending, silently

    def create(self, key: str, data: bytes) -> None:
        try:
            super().create(key, data)
        except ObjectExists:
            if not key.endswith(self.ending):
                raise
            self.delete(key)
            super().create(key, data)
            if not self.silently:
                raise


class LookingFirst(Broken):
    """Looks, and then writes: the one who comes in between is overwritten.

    All racers look before the first one writes, so that it does not take luck to see it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.all_have_looked = threading.Barrier(RACERS)

    def create(self, key: str, data: bytes) -> None:
        try:
            self.read(key)
        except ObjectMissing:
            if key.endswith("race"):
                self.all_have_looked.wait()
            self.delete(key)
        super().create(key, data)


class ManyWinners(Broken):
    """Tells every racer that it won, and keeps what the first of them wrote."""

    def create(self, key: str, data: bytes) -> None:
        if not key.endswith("race") or data[0] == 0:
            super().create(key, data)


@pytest.mark.parametrize(
    "store",
    [
        Overwriting("twice", silently=True),
        Overwriting("twice", silently=False),
        Overwriting("race", silently=False),
        LookingFirst(),
        ManyWinners(),
    ],
    ids=lambda store: type(store).__name__,
)
def test_creating_that_is_not_exclusive(store: Store) -> None:
    found = probe(store, now)
    assert found.verdict == "grow-only"


class ReadingOld(Broken):
    def read(self, key: str) -> bytes:
        return super().read(key)[:-1]


class ReadingRangesWrong(Broken):
    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return super().read_range(key, 0, length)


class ReadingShort(Broken):
    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self.read(key)[offset : offset + length]


class ListingLate(Broken):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())


class ListingWrongSizes(Broken):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return (ObjectInfo(info.key, 0) for info in super().list(prefix))


class KeepingDeleted(Broken):
    def delete(self, key: str) -> None:
        return


class ListingDeleted(Broken):
    """Its listings remember what is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[ObjectInfo] = []

    def delete(self, key: str) -> None:
        self.gone += [info for info in super().list("") if info.key == key]
        super().delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(sorted([*super().list(prefix), *self.gone], key=lambda info: info.key))


@pytest.mark.parametrize(
    "fault",
    [
        ReadingOld, ReadingRangesWrong, ReadingShort, ListingLate, ListingWrongSizes,
        KeepingDeleted, ListingDeleted,
    ],
)  # fmt: skip
def test_a_store_that_cannot_hold_a_vault(fault: type[Broken]) -> None:
    found = probe(fault(), now)
    assert found.verdict == "unusable"
    assert len(found.faults) >= 1
    assert levels(found)[0] == ("store-unusable", "error")
    assert found.findings("one")[0].hint


class Undeletable(Broken):
    def delete(self, key: str) -> None:
        raise StoreError("no right to delete")


def test_credentials_that_cannot_delete_are_no_fault() -> None:
    """It is how a host that only backs up should be set up."""
    store = Undeletable()
    found = probe(store, now)
    assert (found.verdict, found.deletes) == ("full", False)
    assert "cannot delete" in found.text
    assert all(info.key.startswith(PREFIX) for info in store.list(""))


class NotAnsweringAnyMore(Broken):
    def delete(self, key: str) -> None:
        raise StoreError("no answer", retryable=True)


def test_a_store_that_falls_silent_is_not_taken_for_one_that_forbids() -> None:
    with pytest.raises(StoreError, match="no answer"):
        probe(NotAnsweringAnyMore(), now)


class Unlisted(Broken):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise StoreError("no right to list", hint="ask for it")


def test_a_store_that_refuses_is_an_error_and_is_left_clean() -> None:
    store = Unlisted()
    with pytest.raises(StoreError, match="no right to list"):
        probe(store, now)
    assert list(MemoryStore.list(store, "")) == []


class Silent(Broken):
    def create(self, key: str, data: bytes) -> None:
        raise StoreError("no answer", retryable=True)


def test_a_store_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(StoreError, match="no answer"):
        probe(Silent(), now)


def test_two_probes_at_once_do_not_meet(s3: Store) -> None:
    found: list[Probe] = []
    threads = [threading.Thread(target=lambda: found.append(probe(s3, now))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.verdict for one in found] == ["full"] * 4
    assert list(s3.list("")) == []


def test_a_probe_leaves_alone_what_another_left(store: Store) -> None:
    store.create(f"{PREFIX}another", b"content")
    probe(store, lambda: NOON)
    assert [info.key for info in store.list("")] == [f"{PREFIX}another"]


def test_no_empty_directory_stays_behind(local: Store, tmp_path: Path) -> None:
    probe(local, now)
    assert not list(tmp_path.rglob("probe"))


def test_probes_of_one_directory_at_once_do_not_meet(open_local: Callable[[], Store]) -> None:
    """Each by an object of its own, as by programs of their own."""
    found: list[Probe] = []

    def several() -> None:
        mine = open_local()
        found.extend(probe(mine, now) for _ in range(20))

    threads = [threading.Thread(target=several) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.verdict for one in found] == ["full"] * 80
