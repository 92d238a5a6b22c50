"""What `ports.Store` promises, of every store."""

from __future__ import annotations

import hashlib
import random
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import pytest

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError
from cellarer.ports import Store

Opener: TypeAlias = Callable[[], Store]

RACERS = 8
# In the order of their bytes, which is not that of a walk through directories.
NAMES = [
    "a-b/c", "a.b", "a/b-c", "a/b.c", "a/b/c", "a/b0", "a0", "ab/c", "b/1", "b/10", "b/2",
]  # fmt: skip


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 20, (6 << 20) + 1])
def test_an_object_reads_back(any_store: Store, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    any_store.create("packs/00/one", data)
    assert any_store.read("packs/00/one") == data
    assert [(o.key, o.size_bytes) for o in any_store.list("")] == [("packs/00/one", size_bytes)]


@pytest.mark.parametrize("size_bytes", [3, (6 << 20) + 1])
def test_what_is_there_stays(store: Store, size_bytes: int) -> None:
    """Also above the sizes at which libraries upload in parts, where the condition is lost."""
    first, second = secrets.token_bytes(size_bytes), secrets.token_bytes(size_bytes)
    store.create("one", first)
    with pytest.raises(ObjectExists):
        store.create("one", second)
    with pytest.raises(ObjectExists):
        store.create("one", first[:-1])
    with pytest.raises(ObjectExists):
        store.create("one", first + b"x")
    assert store.read("one") == first


def test_the_same_bytes_again_are_no_error(any_store: Store) -> None:
    any_store.create("one", b"content")
    any_store.create("one", b"content")
    any_store.create("empty", b"")
    any_store.create("empty", b"")
    assert any_store.read("one") == b"content"


def test_of_many_that_create_at_once_one_wins(opener: Opener) -> None:
    """Through two clients, as two hosts have them."""
    clients = [opener(), opener()]
    for round_number in range(5):
        key, barrier = f"race/{round_number}", threading.Barrier(RACERS)

        def race(number: int, key: str = key, barrier: threading.Barrier = barrier) -> bytes | None:
            data = bytes([number]) * 100_000
            barrier.wait()
            try:
                clients[number % 2].create(key, data)
            except ObjectExists:
                return None
            return data

        with ThreadPoolExecutor(RACERS) as pool:
            winners = [data for data in pool.map(race, range(RACERS)) if data is not None]
        assert [client.read(key) for client in clients] == winners * 2


def test_a_large_object_goes_in_one_piece(store: Store) -> None:
    """Above every size at which libraries begin to upload in parts."""
    data = random.Random(100).randbytes(1 << 20) * 100
    store.create("large", data)
    with pytest.raises(ObjectExists):
        store.create("large", data[:-1])
    assert store.read_range("large", len(data) - 1000, 1000) == data[-1000:]
    assert hashlib.sha256(store.read("large")).digest() == hashlib.sha256(data).digest()


def test_what_is_not_there_is_missing(any_store: Store) -> None:
    any_store.create("there/one", b"content")
    for key in ("none", "there", "there/one/below", "there/two"):
        with pytest.raises(ObjectMissing):
            any_store.read(key)
        with pytest.raises(ObjectMissing):
            any_store.read_range(key, 0, 1)
        with pytest.raises(ObjectMissing):
            any_store.read_range(key, 0, 0)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, 1000), (1, 998), (500, 0), (999, 1), (1000, 0), (0, 0)]
)
def test_a_range_is_exact(any_store: Store, offset: int, length: int) -> None:
    data = random.Random(7).randbytes(1000)
    any_store.create("one", data)
    assert any_store.read_range("one", offset, length) == data[offset : offset + length]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1001), (999, 2), (1000, 1), (5000, 1), (1001, 0)]
)
def test_a_range_beyond_the_end_is_damage(any_store: Store, offset: int, length: int) -> None:
    any_store.create("one", bytes(1000))
    with pytest.raises(DamagedData):
        any_store.read_range("one", offset, length)


def test_a_range_of_nothing_from_an_empty_object(any_store: Store) -> None:
    any_store.create("empty", b"")
    assert any_store.read_range("empty", 0, 0) == b""
    with pytest.raises(DamagedData):
        any_store.read_range("empty", 0, 1)


def test_a_listing_is_sorted_by_key(store: Store) -> None:
    for name in random.Random(1).sample(NAMES, len(NAMES)):
        store.create(name, name.encode())
    assert [info.key for info in store.list("")] == NAMES
    assert [info.size_bytes for info in store.list("")] == [len(name) for name in NAMES]


def test_every_name_that_is_one_is_kept(any_store: Store) -> None:
    """Signs that servers and signatures escape, case, and the longest there are."""
    names = [
        "0", "A/b/C", "a--b__c", "a..b", "a.b.c-d_e", "a/0.tmp", "a/B", "a_", "a-", "z" * 200,
        "/".join(["x" * 100] * 5),
    ]  # fmt: skip
    for name in names:
        any_store.create(name, name.encode())
    assert {info.key for info in any_store.list("")} == set(names)
    for name in names:
        assert any_store.read(name) == name.encode()
        any_store.delete(name)
    assert list(any_store.list("")) == []


def test_a_listing_ends_where_its_prefix_ends(any_store: Store) -> None:
    for name in ("a/b/c", "a/b/d", "a/bb", "ab/c"):
        any_store.create(name, b"")
    assert [info.key for info in any_store.list("a/")] == ["a/b/c", "a/b/d", "a/bb"]
    assert [info.key for info in any_store.list("a/b/")] == ["a/b/c", "a/b/d"]
    assert list(any_store.list("b/")) == []
    assert list(any_store.list("a/bb/")) == []


def test_an_empty_store_lists_nothing(any_store: Store) -> None:
    assert list(any_store.list("")) == []
    assert list(any_store.list("packs/")) == []


def test_a_long_listing_comes_whole(store: Store) -> None:
    """Longer than a page of S3."""
    names = [f"many/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.create(name, b""), names))
    assert [info.key for info in store.list("many/")] == names


def test_a_deleted_object_is_gone(any_store: Store) -> None:
    any_store.create("a/one", b"first")
    any_store.create("a/two", b"other")
    any_store.delete("a/one")
    with pytest.raises(ObjectMissing):
        any_store.read("a/one")
    assert [info.key for info in any_store.list("")] == ["a/two"]
    any_store.create("a/one", b"second")
    assert any_store.read("a/one") == b"second"


def test_deleting_what_is_not_there_is_no_error(any_store: Store) -> None:
    any_store.create("a/one", b"")
    for key in ("none", "a/two", "b/one"):
        any_store.delete(key)
    assert [info.key for info in any_store.list("")] == ["a/one"]


def test_deleting_above_or_below_an_object_leaves_it(store: Store) -> None:
    store.create("a/one", b"")
    store.delete("a")
    store.delete("a/one/below")
    assert [info.key for info in store.list("")] == ["a/one"]


@pytest.mark.parametrize(
    "key",
    [
        "", ".", "..", "/", "/etc/passwd", "a/", "a//b", "../a", "a/../b", "a/..", "a/./b",
        ".hidden", "a/.hidden", "a\\b", "a b", "a\x00", "a\n", "a%2fb", "ü", "a?b", "a*", "-a",
        "a.", "a/" * 300 + "a", "a" * 201,
    ],
)  # fmt: skip
def test_names_that_could_lead_elsewhere_are_refused(any_store: Store, key: str) -> None:
    acts: list[Callable[[], object]] = [
        lambda: any_store.create(key, b""),
        lambda: any_store.read(key),
        lambda: any_store.read_range(key, 0, 1),
        lambda: any_store.delete(key),
    ]
    for act in acts:
        with pytest.raises(StoreError) as caught:
            act()
        assert type(caught.value) is StoreError


@pytest.mark.parametrize("prefix", ["a", "/", "../", "a//", ".incoming/", "a/../"])
def test_prefixes_that_are_none_are_refused(any_store: Store, prefix: str) -> None:
    with pytest.raises(StoreError):
        list(any_store.list(prefix))


def test_threads_do_not_disturb_each_other(store: Store) -> None:
    def work(number: int) -> bool:
        data = random.Random(number).randbytes(10_000)
        key = f"thread/{number}"
        store.create(key, data)
        whole = store.read(key) == data and store.read_range(key, 5000, 10) == data[5000:5010]
        listed = any(info.key == key for info in store.list("thread/"))
        if number % 2:
            store.delete(key)
        return whole and listed

    with ThreadPoolExecutor(RACERS) as pool:
        assert all(pool.map(work, range(40)))
    left = sorted(f"thread/{number}" for number in range(0, 40, 2))
    assert [info.key for info in store.list("")] == left


def test_the_store_that_lies_does_overwrite(lying: Store) -> None:
    """What the probe must notice is really there to be noticed."""
    lying.create("one", b"first")
    lying.create("one", b"second")
    assert lying.read("one") == b"second"
