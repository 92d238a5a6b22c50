"""Rows are written while base backups are taken and log is streamed: any moment comes back."""

from __future__ import annotations

import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from cellarer import bootstrap
from cellarer.bootstrap import recoveries
from cellarer.config import load
from cellarer.domain.recovery_target import recovery_target
from cellarer.errors import WalAbsent
from cellarer.flows.restore import open_point
from cellarer.postgres.basebackup import read_facts
from cellarer.targets.pgdata import account_for
from cellarer.targets.recovery import Course, recover_here
from cellarer.vault.log import LogReader
from recovery.life import Life, restored, rows_of, served, state_of
from targets.recorded_points import Listener

INSTANTS, MANY, AT_ONCE = 3, 150, 2


def test_the_rows_are_those_that_were_committed_by_then(life: Life, tmp_path: Path) -> None:
    for number, instant in enumerate(life.instants(random.Random(7), INSTANTS)):
        out = tmp_path / str(number)
        done = restored(life.place, out, "--at", instant.isoformat())
        expected = life.by(instant)
        with served(life, out) as dsn:
            assert rows_of(dsn) == (expected, expected[-1]), instant
        last = next(each for each in life.committed if each.number == expected[-1])
        assert datetime.fromisoformat(done["recovered_to"]) == last.time
        shutil.rmtree(out)


def test_both_ways_of_reading_come_to_the_same(life: Life, tmp_path: Path) -> None:
    states = []
    for way, point in life.points.items():
        out = tmp_path / way
        restored(life.place, out, "--point", point, "--lsn", life.lsn)
        states.append(state_of(life, out))
        shutil.rmtree(out)
    assert states[0] == states[1]
    assert states[0].keys() >= {"public.rows", "public.still", "public.state"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_hundreds_of_moments(life: Life, tmp_path: Path) -> None:
    """One restored base, copied for each moment, and recovered there from the vault."""
    base = tmp_path / "base"
    restored(life.place, base, "--point", life.points["direct"], "--no-recover")
    account = account_for(base)
    vault = bootstrap.open_vault(load(life.place.config), reading=True)
    facts = read_facts(open_point(vault, life.points["direct"]))

    def read(log: LogReader | None, name: str) -> bytes | None:
        assert log is not None
        try:
            return log.read(name)
        except WalAbsent:
            return None

    def recovered(number: int, instant: datetime) -> None:
        target = recovery_target(at=instant)
        plan = recoveries.plan(vault, "cluster", life.points["direct"], target, datetime.now(UTC))
        out = tmp_path / str(number)
        subprocess.run(["cp", "-a", base, out], check=True)
        course = Course(target, "1", partial(read, plan.log), "", plan.reach.last)
        installation = life.installation
        recover_here(out, installation, account, course, facts, {"fsync": "off"}, Listener())
        expected = life.by(instant)
        with served(life, out) as dsn:
            assert rows_of(dsn) == (expected, expected[-1]), instant
        shutil.rmtree(out)

    instants = life.instants(random.Random(), MANY)
    with ThreadPoolExecutor(AT_ONCE) as workers:
        list(workers.map(recovered, range(MANY), instants))
