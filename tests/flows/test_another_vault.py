"""A replica whose url leads to another vault: told once, and nothing of it is taken for ours."""

from __future__ import annotations

import pytest

from cellarer.domain.snapshot import Proof
from cellarer.flows.backup import back_up
from cellarer.flows.points import list_points
from cellarer.flows.sync import synchronise
from cellarer.flows.verify import verify
from cellarer.vault.vault import Vault
from flows.test_flows import Shelf, Silent
from flows.test_replicas_come_and_go import RED, WHITE, alarms, sync, write
from stand_ins import Founded, Objects, all_restored, found


@pytest.fixture(params=["marked", "without a marker"])
def scene(request: pytest.FixtureRequest) -> Founded:
    made, other = found(1), found(1)
    for each in (made, other):
        write(each, RED)
    made.stores["b"] = Objects("b", other.stores["a"].objects)
    if request.param != "marked":
        del made.stores["b"].objects["format.json"]
    return made


def test_a_backup_goes_on_without_it(scene: Founded) -> None:
    before = dict(scene.stores["b"].objects)
    point = back_up(
        Vault.open(scene.replicas(), scene.write_key, None), Shelf(WHITE), Silent(), scene.now
    )
    assert point.replicas == {"a": "stored", "b": "behind"}
    assert "it holds another vault" in point.behind["b"]
    assert scene.stores["b"].objects == before
    assert len(all_restored(scene.open())) == 2


@pytest.mark.parametrize("identity", [True, False])
def test_listings_show_nothing_of_it(scene: Founded, identity: bool) -> None:
    vault = Vault.open(scene.replicas(), scene.write_key, scene.identity if identity else None)
    assert len(list_points(vault)) == 1
    assert vault.unreadable == {}
    assert vault.replicas.damaged == {}
    (alarm,) = alarms(scene)
    assert alarm.startswith("vault.replicas.b: holds another vault")


def test_it_is_left_as_it_is(scene: Founded) -> None:
    before = dict(scene.stores["b"].objects)
    assert "holds another vault" in sync(scene)["b"]
    vault = Vault.open(scene.replicas(), None, scene.identity)
    assert verify(vault, list_points(vault)[0], Proof.SCRUBBED, None, Silent(), scene.now).passed
    assert scene.stores["b"].objects == before


def test_a_damaged_marker_does_not_make_another_vault_of_it(scene: Founded) -> None:
    scene.stores["b"] = Objects("b", scene.stores["a"].objects)
    changed = b'{"format":"cellarer-vault","vault":"' + b"0" * 32 + b'","version":1}'
    scene.stores["b"].damage("format.json", lambda _: changed)
    assert scene.open().replicas.aside == []
    (alarm,) = alarms(scene)
    assert alarm == f"vault.replicas.b: its format.json is damaged: it names vault {'0' * 32}"
    keyless = synchronise(scene.replicas(), None, Silent(), scene.now)
    assert keyless["a"].problem is None
    assert str(keyless["b"].problem) == "format.json is damaged on replica b"
    # Who has a key puts it in order.
    assert sync(scene) == {"a": "", "b": ""}
    assert alarms(scene) == []
