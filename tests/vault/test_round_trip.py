"""What goes into the vault comes out of it, whatever it is and whatever comes after."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellarer.errors import SourceFailed, UsageError
from cellarer.ports import Stream
from cellarer.vault import fetcher
from cellarer.vault.format import ID_BYTES
from cellarer.vault.index import open_segment
from cellarer.vault.known import load_references
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.vault import Commit
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, all_restored, blocks, found, noise, restored

pytestmark = pytest.mark.usefixtures("small_packs")

PATHS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
) | st.sampled_from(["contents", "db/data/öffentlich/täble", "a/b", "a/../b", "line\nbreak\r"])
PIECES = (
    st.binary(max_size=300)
    | st.builds(noise, st.integers(0, 9), st.integers(0, 60_000))
    | st.builds(lambda part, times: part * times, st.binary(max_size=40), st.integers(0, 2000))
)
CONTENTS = st.lists(PIECES, max_size=4).map(b"".join)
SNAPSHOT = st.dictionaries(PATHS, CONTENTS, max_size=5)

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@given(SNAPSHOT)
@quick
def test_one_snapshot_reads_back(contents: dict[str, bytes]) -> None:
    scene = found()
    commit = scene.backup(contents)
    vault = scene.open()
    assert restored(vault, commit) == contents
    assert [c.session for c in vault.commits()] == [commit.session]
    assert commit.body["read_bytes"] == sum(map(len, contents.values()))


@given(st.lists(SNAPSHOT, min_size=2, max_size=3), st.data())
@quick
def test_every_earlier_point_stays_as_it_was(
    snapshots: list[dict[str, bytes]], data: st.DataObject
) -> None:
    scene = found()
    expected: dict[str, dict[str, bytes]] = {}
    before: dict[str, bytes] = {}
    for fresh in snapshots:
        kept = data.draw(st.sets(st.sampled_from(sorted(before)))) if before else set()
        contents = {**{path: before[path] + b"an edit" for path in kept}, **fresh}
        expected[scene.backup(contents).session] = contents
        assert all_restored(scene.open()) == expected
        before = contents


ROWS = noise(3, 1_500_000)


@given(
    st.lists(
        st.tuples(st.integers(0, len(ROWS)), st.integers(0, 200_000), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, len(ROWS)),
    st.none() | st.integers(0, 3_000_000),
)
@settings(quick, max_examples=15)
def test_a_stream_that_grows_at_its_end_reads_back(
    edits: list[tuple[int, int, int]], length: int, size_hint_bytes: int | None
) -> None:
    """Cut more finely from some place on, whatever its length was thought to be."""
    scene, data = found(), ROWS[:length]
    expected: dict[str, dict[str, bytes]] = {}
    for at, removed, repeats in [(0, 0, 0), *edits]:
        data = data[:at] + ROWS[:50_000] * repeats + data[at + removed :]
        writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
        writer.add(Stream("rows", "table", blocks(data), size_hint_bytes, grows_at_end=True))
        expected[writer.commit().session] = {"rows": data}
        writer.abandon()
    assert all_restored(scene.open()) == expected


@pytest.mark.parametrize("whole_pack_bytes", [1, 1 << 40], ids=["whole-packs", "ranges"])
def test_both_ways_of_fetching_read_the_same(
    whole_pack_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "WHOLE_PACK_BYTES", whole_pack_bytes)
    scene = found()
    contents = {"a": noise(1, 200_000), "b": noise(1, 100_000) + b"x" * 100_000, "c": b""}
    scene.backup(contents)
    changed = {**contents, "a": noise(2, 50_000) + contents["a"]}
    newer = scene.backup(changed)
    assert restored(scene.open(), newer) == changed


def test_caches_smaller_than_a_pack_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "PACK_CACHE_BYTES", 1)
    monkeypatch.setattr(fetcher, "RECORD_CACHE_BYTES", 1)
    monkeypatch.setattr(fetcher, "WHOLE_PACK_BYTES", 1)
    scene = found()
    contents = {"a": noise(1, 100_000), "b": noise(1, 100_000)}
    assert restored(scene.open(), scene.backup(contents)) == contents


def chunk_ids(scene: Founded, commit: Commit) -> set[bytes]:
    """The names of all chunks that a session stored, as a holder of the write key sees them."""
    ids = b"".join(
        toc.chunk_ids
        for key, data in scene.stores["a"].objects.items()
        if key.startswith(f"index/{commit.session}/")
        for _, toc in open_segment(scene.write_key.index, data)
    )
    return {ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)}


def test_two_sources_share_a_vault_and_no_chunk() -> None:
    scene = found()
    contents = {"same": noise(1, 50_000)}
    first, second = scene.backup(contents, source="one"), scene.backup(contents, source="two")
    assert second.body["added_bytes"] >= 50_000
    assert not chunk_ids(scene, first) & chunk_ids(scene, second)
    assert all_restored(scene.open()) == {first.session: contents, second.session: contents}


def test_entries_keep_order_mode_and_time() -> None:
    scene = found()
    vault = scene.open()
    writer = SnapshotWriter(vault, "files", "files", scene.now)
    moment = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    for path, mode, mtime in (("z", 0o640, moment), ("a", None, None)):
        writer.add(Stream(path, "file", blocks(b"text"), None, mode, mtime))
    reader = SnapshotReader(vault, writer.commit())
    assert [(e.path, e.kind, e.mode, e.mtime) for e in reader.entries()] == [
        ("z", "file", 0o640, moment),
        ("a", "file", None, None),
    ]


def test_a_path_that_is_not_there_is_the_users_mistake() -> None:
    scene = found()
    reader = SnapshotReader(scene.open(), scene.backup({"a": b"text"}))
    with pytest.raises(UsageError, match="holds no b"):
        next(reader.read("b"))


def test_two_streams_of_one_name_are_refused() -> None:
    scene = found()
    writer = SnapshotWriter(scene.open(), "files", "files", scene.now)
    try:
        writer.add(Stream("same", "file", blocks(b"one")))
        with pytest.raises(SourceFailed, match="same"):
            writer.add(Stream("same", "file", blocks(b"two")))
    finally:
        writer.abandon()


def _grown(data: bytes) -> bytes:
    return data + b"0123456789" * 30


def _edited(data: bytes) -> bytes:
    return data[:9000] + b"edit" + data[9004:]


@pytest.mark.parametrize("edit", [_grown, _edited, bytes], ids=["grown", "edited", "same"])
def test_a_stream_changes_between_snapshots(edit: Callable[[bytes], bytes]) -> None:
    scene = found()
    expected = {}
    data = noise(3, 120_000)
    for _ in range(4):
        expected[scene.backup({"table": data}).session] = {"table": data}
        data = edit(data)
    assert all_restored(scene.open()) == expected


def test_a_chunk_larger_than_a_record_does_not_keep_the_record_open() -> None:
    """A record that never closed would grow until readers refuse it as a bomb."""
    scene = found()
    commit = scene.backup({"t": noise(4, 300_000)})
    records = load_references(scene.open(), commit).records
    # Chunks here are at most 16 KiB, records hold 8 KiB: one such chunk, or what fits.
    assert max(record.length for record in records) < (16 << 10) + 200
    assert len(records) > 20


@pytest.mark.parametrize(
    ("paths", "told"),
    [(["a", "a"], "two streams named a"), (["a", "caf\udce9"], "not UTF-8: 'caf\\udce9'")],
)
def test_a_source_with_streams_that_could_not_be_read_back_makes_no_point(
    paths: list[str], told: str
) -> None:
    scene = found()
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    writer.add(Stream(paths[0], "test", iter([b"x"])))
    with pytest.raises(SourceFailed, match=re.escape(told)):
        writer.add(Stream(paths[1], "test", iter([b"y"])))
    writer.abandon()
    assert scene.open().commits() == []
