"""What a second snapshot costs, on rows like those of a table."""

from __future__ import annotations

import random

import pytest

from cellarer.vault.vault import Commit
from stand_ins import Founded, found, noise, restored

LETTERS = b"abcdefghijklmnoprstuvwz"
WORDS = [bytes(random.Random(n).choices(LETTERS, k=n % 7 + 3)) for n in range(900)]


def rows(seed: int, count: int) -> list[bytes]:
    """Rows of about 250 bytes, as COPY writes them."""
    chance = random.Random(seed)

    def row(number: int) -> bytes:
        words = b" ".join(chance.choices(WORDS, k=32))
        return b"%d\t%s\t%s\n" % (number, chance.randbytes(8).hex().encode(), words)

    return [row(number) for number in range(count)]


FIRST = rows(1, 12_000)


@pytest.fixture
def stored() -> tuple[Founded, Commit]:
    """A vault with one snapshot of 3 MB of rows."""
    scene = found()
    return scene, scene.backup({"table": b"".join(FIRST)})


def stored_share(stored: tuple[Founded, Commit], table: list[bytes]) -> float:
    """What a snapshot of these rows adds to the vault, as a share of what the first one took."""
    scene, first = stored
    data = b"".join(table)
    second = scene.backup({"table": data})
    assert restored(scene.open(), second) == {"table": data}
    return float(second.body["stored_bytes"]) / float(first.body["stored_bytes"])


def test_the_first_snapshot_is_compressed(stored: tuple[Founded, Commit]) -> None:
    scene, first = stored
    packs = sum(len(v) for k, v in scene.stores["a"].objects.items() if k.startswith("packs/"))
    assert packs < first.body["stored_bytes"] < 0.6 * first.body["read_bytes"]


def test_the_same_again_adds_nearly_nothing(stored: tuple[Founded, Commit]) -> None:
    assert stored_share(stored, FIRST) < 0.02


def changed(row: bytes) -> bytes:
    """The row with another value in its second column."""
    number, _, words = row.split(b"\t")
    return b"\t".join((number, noise(int(number), 8).hex().encode(), words))


def test_one_row_in_a_hundred_changed(stored: tuple[Founded, Commit]) -> None:
    """A changed row every 25 kB makes every fourth byte new: it lies in a chunk of 5 kB or more."""
    hit = set(random.Random(5).sample(range(len(FIRST)), len(FIRST) // 100))
    table = [changed(row) if n in hit else row for n, row in enumerate(FIRST)]
    assert stored_share(stored, table) < 0.25


def test_one_row_in_a_hundred_updated(stored: tuple[Founded, Commit]) -> None:
    """As PostgreSQL does it: the old row goes, the new one comes at the end of the table."""
    hit = set(random.Random(5).sample(range(len(FIRST)), len(FIRST) // 100))
    kept = [row for n, row in enumerate(FIRST) if n not in hit]
    assert stored_share(stored, kept + [changed(FIRST[n]) for n in sorted(hit)]) < 0.28


def test_rows_appended(stored: tuple[Founded, Commit]) -> None:
    assert stored_share(stored, FIRST + rows(2, 120)) < 0.03


def test_rows_deleted_at_the_front(stored: tuple[Founded, Commit]) -> None:
    assert stored_share(stored, FIRST[120:]) < 0.03


def test_a_stream_that_moves_to_another_name_is_stored_once(
    stored: tuple[Founded, Commit],
) -> None:
    scene, _ = stored
    second = scene.backup({"renamed": b"".join(FIRST)})
    assert second.body["added_bytes"] < 1000


def test_repeats_within_a_snapshot_are_stored_once() -> None:
    data = noise(1, 1_500_000)
    commit = found().backup({"one": data, "two": data, "three": b"front" + data})
    assert commit.body["read_bytes"] == 3 * len(data) + 5
    assert commit.body["added_bytes"] < len(data) + 40_000


def test_the_oldest_snapshot_still_saves_after_many() -> None:
    scene = found()
    data = noise(1, 300_000)
    scene.backup({"table": data})
    for n in range(4):
        scene.backup({"table": noise(10 + n, 300_000)})
    assert scene.backup({"table": data}).body["added_bytes"] < 2000
