"""A change of keys that ends anywhere leaves all readable, and is finished by asking again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cellarer.errors import KeyUnusable, StoreError, UsageError
from cellarer.flows.keys import (
    add_recipient,
    remove_recipient,
    rotate,
    rotate_write_key,
)
from cellarer.ports import Store
from cellarer.vault.keys import Identity
from cellarer.vault.vault import Vault
from key_changes import FIRST, NOW, read_by
from stand_ins import (
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    PowerCut,
    found,
)


@dataclass
class Change:
    """A change of keys that can be asked for again, and who reads afterwards."""

    act: Callable[[Founded, Vault], object]
    reader: Callable[[Founded], Identity]
    loses: Callable[[Founded], Identity | None] = lambda scene: None


def changes(directory: Path) -> dict[str, Change]:
    new = Identity.generate()
    return {
        "add": Change(
            lambda scene, vault: add_recipient(vault, new.recipients[0], NOW),
            lambda scene: new,
        ),
        "remove": Change(
            lambda scene, vault: remove_recipient(vault, OTHER.recipients[0], NOW),
            lambda scene: scene.identity,
            lambda scene: OTHER,
        ),
        "rotate": Change(
            lambda scene, vault: rotate(vault, new, NOW),
            lambda scene: new,
            lambda scene: scene.identity,
        ),
        "write-key": Change(
            lambda scene, vault: rotate_write_key(vault, directory / "w.key", NOW),
            lambda scene: scene.identity,
        ),
    }


OTHER = Identity.generate()


def faulty(faults: Faults, name: str, store: Objects) -> Store:
    return FaultyStore(store, faults)


def without_leftovers(scene: Founded, replica: str) -> set[str]:
    """What a replica holds, without sealed signing keys that were never certified."""
    admins = {f"keys/admin-{admin.public[:16]}" for admin in scene.open().configuration.admins}
    objects = scene.stores[replica].objects
    return {k for k in objects if not k.startswith("keys/admin-") or k[:27] in admins}


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOSE_REPLY])
@pytest.mark.parametrize("name", ["add", "remove", "rotate", "write-key"])
def test_a_change_that_ends_anywhere_is_finished_by_asking_again(
    tmp_path: Path, name: str, fault: Fault
) -> None:
    original = found(replicas=2)
    original.backup(FIRST)
    if name == "remove":
        add_recipient(original.open(), OTHER.recipients[0], NOW)
    for number in itertools.count():
        scene, directory = original.copy(), tmp_path / str(number)
        change = changes(directory)[name]
        faults = Faults(
            lambda n, number=number: fault if n == number else None,  # type: ignore[misc]
            lambda method: method in ("create", "delete"),
        )
        replicas = scene.replicas(partial(faulty, faults))
        with contextlib.suppress(PowerCut, StoreError):
            change.act(scene, scene.open(replicas))
        readers = [scene.identity | change.reader(scene)]
        assert list(read_by(scene, readers[0]).values()) == [FIRST]
        resumed = Vault.open(scene.replicas(), scene.write_key, readers[0])
        with contextlib.suppress(UsageError if name == "remove" else PowerCut):
            change.act(scene, resumed)  # "no recipient" where all is done already
        for replica in scene.stores:
            alone = scene.alone(replica)
            assert list(read_by(alone, change.reader(scene)).values()) == [FIRST]
            if gone := change.loses(scene):
                with pytest.raises(KeyUnusable):
                    read_by(alone, gone)
        assert without_leftovers(scene, "a") == without_leftovers(scene, "b")
        if faults.operations <= number:
            break
    assert number >= 4
