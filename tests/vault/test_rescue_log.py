"""`rescue.py` writes the write-ahead log of a vault, alone and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bare_machine import Machine, files
from cellarer.flows.keys import rotate_write_key
from cellarer.vault import format as layout
from key_changes import NOW
from stand_ins import flip, found, truncate
from wal_files import SYSTEM, history, segment, writer

FILES = [segment(1), segment(2), history(2, (1, "0/280000")), segment(2, timeline=2)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = found()
    putting = writer(made, tmp_path / "state")
    for name, data in FILES:
        putting.put(name, data)
    putting.put_piece(segment(3, timeline=2)[0], 0, segment(3, timeline=2)[1][:8192])
    found_machine = Machine(tmp_path, made)
    found_machine.download()
    return found_machine


def test_writes_all_wal_of_a_cluster(machine: Machine) -> None:
    done = machine.run(f"wal/{SYSTEM}", str(machine.out))
    assert (done.returncode, done.stderr) == (0, "")
    name, data = segment(3, timeline=2)
    assert files(machine.out) == {**dict(FILES), f"{name}.00000000-00002000": data[:8192]}


def test_reads_what_a_retired_key_stored_and_nothing_it_stores_later(machine: Machine) -> None:
    rotate_write_key(machine.founded.open(), machine.directory / "new.key", NOW)
    machine.download()
    done = machine.run(f"wal/{SYSTEM}", str(machine.out))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(files(machine.out)) == 5


@pytest.mark.parametrize("change", [flip(800), flip(60_000), truncate(900), truncate(5)])
def test_writes_no_damaged_wal(machine: Machine, change: object) -> None:
    assert callable(change)
    key = layout.wal_key(SYSTEM, FILES[0][0])
    machine.founded.stores["a"].damage(key, change)
    machine.download()
    done = machine.run(f"wal/{SYSTEM}", str(machine.out))
    assert done.returncode == 1
    assert FILES[0][0] in done.stderr
    assert FILES[0][0] not in files(machine.out)
    assert len(files(machine.out)) == 4


def test_takes_no_wal_for_another(machine: Machine) -> None:
    objects = machine.founded.stores["a"].objects
    objects[layout.wal_key(SYSTEM, FILES[0][0])] = objects[layout.wal_key(SYSTEM, FILES[1][0])]
    machine.download()
    done = machine.run(f"wal/{SYSTEM}", str(machine.out))
    assert done.returncode == 1
    assert FILES[0][0] not in files(machine.out)
