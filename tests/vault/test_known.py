"""What a writer knows of what is stored: all that the newest snapshot needs, of the rest a part."""

from __future__ import annotations

from functools import partial

import pytest

from cellarer.vault import writer
from cellarer.vault.known import Known, load_known
from stand_ins import Founded, all_restored, found, noise
from vault.collecting import collect, drop, repack
from vault.wasteful import KEPT, WHOLE, wasteful

OLD, BOTH, NEW = noise(1, 60_000), noise(2, 60_000), noise(3, 60_000)


def known(scene: Founded, most_chunks: int) -> Known:
    vault = scene.open()
    return load_known(vault, vault.commits(), list(scene.stores), most_chunks=most_chunks)


def only_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "load_known", partial(load_known, most_chunks=0))


def three_points() -> Founded:
    scene = found(replicas=2)
    for content in ({"o": OLD, "b": BOTH}, {"b": BOTH}, {"b": BOTH, "n": NEW}):
        scene.backup(content)
    return scene


def test_what_the_newest_snapshot_needs_is_known_whatever_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = three_points()
    only_the_newest(monkeypatch)
    again = scene.backup({"b": BOTH, "n": NEW})
    assert again.body["added_bytes"] < 1000


@pytest.mark.usefixtures("small_packs")
def test_what_only_older_ones_have_is_known_up_to_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = three_points()
    everything, newest = known(scene, 1 << 20), known(scene, 0)
    assert len(known(scene, len(everything.index) + 1).index) == len(everything.index)
    assert 0 < len(newest.index) < len(everything.index)
    assert newest.cuts == everything.cuts
    only_the_newest(monkeypatch)
    anew = scene.backup({"o": OLD})
    assert anew.body["added_bytes"] > len(OLD) * 0.8  # a pack of the newest has some of it
    assert all_restored(scene.open())[anew.session] == {"o": OLD}


@pytest.mark.usefixtures("small_packs")
def test_what_was_repacked_is_known_where_it_lies_now(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, _ = wasteful(replicas=2)
    repack(scene)
    collect(scene)
    only_the_newest(monkeypatch)
    again = scene.backup(KEPT)
    assert again.body["added_bytes"] < 1000
    assert all_restored(scene.open())[again.session] == KEPT


@pytest.mark.usefixtures("small_packs")
def test_a_newest_snapshot_that_was_given_up_is_not_what_is_built_upon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = found()
    scene.backup(KEPT)
    drop(scene, scene.backup(WHOLE).session)
    only_the_newest(monkeypatch)
    assert scene.backup(KEPT).body["added_bytes"] < 1000
