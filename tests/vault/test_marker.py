"""What `format.json` says is looked at before anything else."""

from __future__ import annotations

import json

import pytest

from cellarer.errors import DamagedData
from cellarer.vault import format as layout
from hostile import put
from stand_ins import found


def test_a_vault_of_a_later_format_asks_for_a_newer_program() -> None:
    scene = found(replicas=2)
    marker = json.loads(scene.stores["a"].objects[layout.FORMAT_KEY])
    put(scene, layout.FORMAT_KEY, json.dumps({**marker, "version": 2}).encode())
    with pytest.raises(DamagedData, match="has format 2") as caught:
        scene.open()
    assert "newer Cellarer" in caught.value.hint
