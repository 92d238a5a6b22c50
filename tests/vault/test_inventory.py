"""The names that a replica must hold, and when its last reading is too old."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import DamagedData
from cellarer.flows.points import survey
from cellarer.flows.scrub import Wanted, scrub
from cellarer.flows.status import Scrubs, status
from cellarer.vault.inventory import NameSet, by_prefix, sessions_of
from cellarer.vault.scrub import last_whole
from scrubbing import Silent, scene_of

DIGESTS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=1, max_size=1).map(lambda first: first + bytes(31)),
)


@given(st.lists(st.lists(DIGESTS, max_size=20), max_size=6))
def test_a_set_of_names_holds_what_was_entered(batches: list[list[bytes]]) -> None:
    names, entered = NameSet(), set()
    for batch in batches:
        names.add(np.array(batch, "S32"))
        entered |= set(batch)
        assert set().union(*map(names.shard, range(256))) == {name.hex() for name in entered}
    assert all(name.startswith("00") for name in names.shard(0))


@pytest.mark.parametrize("name", ["packs/../../etc", "packs/aa/" + "ab" * 32, "index/aa/0", ""])
def test_references_that_name_no_pack_are_refused(name: str) -> None:
    with pytest.raises(DamagedData):
        by_prefix([name])
    digest = hashlib.sha256(b"").hexdigest()
    assert list(by_prefix([f"meta/{digest[:2]}/{digest}"])) == ["meta/"]


def test_a_replica_must_hold_what_came_before_what_it_holds() -> None:
    scene = scene_of(2)
    first, second = scene.open().commits()
    scene.stores["b"].damage(f"snapshots/{first.session}", lambda _: None)
    assert sessions_of(scene.open().commits(), "b") == {first.session, second.session}
    scene.stores["b"].damage(f"snapshots/{second.session}", lambda _: None)
    assert sessions_of(scene.open().commits(), "b") == set()


def test_a_reading_that_is_too_old_is_an_alarm() -> None:
    scene = scene_of(2)

    def alarms(days: float, every: timedelta | None) -> list[str]:
        vault = scene.open()
        found, now = survey(vault), scene.now() + timedelta(days=days)
        last = {name: last_whole(found.entries, name, now) for name in "ab"}
        told = status(vault, found.points, {}, None, now, (), Scrubs(last, every))
        return [f"{alarm.subject}: {alarm.message}" for alarm in told.alarms]

    week = timedelta(days=7)
    assert alarms(1, week) == []
    assert [alarm.split(": ")[1] for alarm in alarms(11, week)] == ["was never scrubbed wholly"] * 2
    later = timedelta(days=5)
    scrub(scene.open(), Wanted(replicas=["a"]), Silent(), lambda: scene.now() + later)
    (alarm,) = alarms(10.6, week)
    assert alarm.startswith("vault.replicas.b: was never")
    scrub(scene.open(), Wanted(deep=True), Silent(), lambda: scene.now() + later)
    assert alarms(15, week) == []
    assert len(late := alarms(16, week)) == 2
    assert all("was last scrubbed wholly" in alarm for alarm in late)
    assert alarms(16, None) == []
