"""Collecting in damaged vaults: what may be needed stays, and what is no use does not stop it."""

from __future__ import annotations

import pytest

from cellarer.errors import DamagedData
from cellarer.vault.closing import abort
from stand_ins import all_restored, flip, found, truncate
from vault.collecting import FIRST, SECOND, THIRD, begin, collect, drop, keeper, names

pytestmark = pytest.mark.usefixtures("small_packs")


def test_a_commit_that_is_damaged_beside_the_abort_of_another_replica_may_be_needed() -> None:
    """Only its own replica can tell that there is a restore point."""
    scene = found(replicas=2)
    kept = scene.backup(SECOND).session
    writer = begin(scene, THIRD)
    abort(keeper(scene.alone("a")), writer.session)
    writer.commit()
    key = f"snapshots/{writer.session}"
    scene.stores["b"].damage(key, flip(400))
    before = names(scene.stores["b"], "packs/")
    vault = scene.open()
    assert [commit.session for commit in vault.commits()] == [kept]
    assert key in vault.unreadable
    with pytest.raises(DamagedData, match="nothing is forgotten or deleted") as caught:
        collect(scene)
    assert "may be the only COMMIT" in caught.value.detail
    assert names(scene.stores["b"], "packs/") == before


def test_a_damaged_index_segment_that_no_point_needs_is_collected() -> None:
    """No sync brings back what nobody needs, so it must not stop collecting either."""
    scene = found(replicas=2)
    first = scene.backup(FIRST).session
    second = scene.backup(SECOND).session
    drop(scene, first)
    segment = f"index/{first}/000000"
    scene.stores["a"].damage(segment, truncate(100))
    done = collect(scene)
    assert done["a"].swept_objects > 0
    assert segment not in scene.stores["a"].objects
    assert all_restored(scene.alone("a").open()) == {second: SECOND}
