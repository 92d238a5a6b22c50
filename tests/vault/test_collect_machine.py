"""Writers, collectors and somebody who forgets, in any order, against a dict.

Collectors run in threads that stop before every listing, create and delete until they are told to
go on: so they are overtaken, left standing for weeks and killed at any point, always in the same
way for the same choices.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cellarer.errors import CellarerError, StoreError
from cellarer.ports import Store, Stream
from cellarer.vault.catchup import catch_up
from cellarer.vault.collect import Collector
from cellarer.vault.genuine import Trust
from cellarer.vault.repack import Repacker
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import Founded, Objects, all_restored, blocks, found, noise, restored
from vault.pacing import AwayStore, Pace, PacedStore

PARTS = [noise(number, 9_000) for number in range(7)]
contents = st.lists(st.integers(0, 6), min_size=1, max_size=5)


@dataclass
class Interrupted:
    """A round in which something else happens after so many operations of its collector."""

    scene: Founded
    pace: Pace
    kept: dict[str, dict[str, bytes]]

    def finish(self, commit: Commit | None, content: dict[str, bytes]) -> None:
        """Let the collector end, and look at what is there, and again after another round."""
        expected = self.kept | ({commit.session: content} if commit else {})
        self.pace.go(10_000)
        assert all_restored(self.scene.open()) == expected
        _whole_round(self.scene).go(10_000)
        assert all_restored(self.scene.open()) == expected


def _whole_round(scene: Founded) -> Pace:
    """A collector on all replicas, which stands still until it is told to go."""

    def act(pace: Pace) -> None:
        def wrap(name: str, store: Objects) -> Store:
            return PacedStore(store, pace)

        vault = Vault.open(scene.replicas(wrap), None, None, scene.collect_key)
        collector = Collector(vault, lambda: scene.now() + timedelta(days=3))
        for replica in vault.replicas.replicas:
            collector.collect(replica)

    return Pace(act)


OLD = {"t": PARTS[0] + PARTS[1] + PARTS[2] + PARTS[3] + PARTS[4], "s": b"old"}
HALF = {"t": PARTS[0] + PARTS[1], "s": b"half"}


def _interrupted(original: tuple[Founded, dict[str, dict[str, bytes]]], after: int) -> Interrupted:
    scene = original[0].copy()
    pace = _whole_round(scene)
    pace.go(after)
    return Interrupted(scene, pace, original[1])


@pytest.fixture(scope="module")
def half_forgotten(small_packs: None) -> tuple[Founded, dict[str, dict[str, bytes]]]:
    """A vault whose first point is forgotten; the second needs part of what that one stored."""
    scene = found()
    first = scene.backup(OLD).session
    kept = {scene.backup(HALF).session: HALF}
    forget(Vault.open(scene.replicas(), None, scene.identity), first, "", scene.now())
    return scene, kept


def test_a_backup_at_any_moment_of_a_round(
    half_forgotten: tuple[Founded, dict[str, dict[str, bytes]]],
) -> None:
    """It wants all that the round is about to delete; the round knows of no time to wait."""
    for moment in itertools.count():
        round_ = _interrupted(half_forgotten, moment)
        ended = round_.pace.ended
        round_.finish(round_.scene.backup(OLD), OLD)
        if ended:
            break
    assert moment > 30


@pytest.mark.long
@pytest.mark.parametrize("lasting", [1, 2, 4, 9, 16])
def test_a_backup_that_begins_at_any_moment_of_a_round_and_ends_at_another(
    half_forgotten: tuple[Founded, dict[str, dict[str, bytes]]], lasting: int
) -> None:
    """Also one that loses: the collector here closes every open session at once."""
    for moment in itertools.count():
        round_ = _interrupted(half_forgotten, moment)
        ended = round_.pace.ended
        writer = SnapshotWriter(round_.scene.open(), "db", "test", round_.scene.now)
        for path, data in OLD.items():
            writer.add(Stream(path, "test", blocks(data), len(data)))
        round_.pace.go(lasting)
        commit = None
        with contextlib.suppress(StoreError):  # closed by the collector
            commit = writer.commit()
        round_.finish(commit, OLD)
        if ended:
            break


@pytest.mark.long
@pytest.mark.parametrize("lasting", [1, 3, 8])
def test_two_collectors_that_overtake_each_other(
    half_forgotten: tuple[Founded, dict[str, dict[str, bytes]]], lasting: int
) -> None:
    """One stands still at any moment while the other goes on, and a backup comes in between."""
    for moment in itertools.count():
        round_ = _interrupted(half_forgotten, moment)
        ended = round_.pace.ended
        other = _whole_round(round_.scene)
        other.go(lasting * 5)
        commit = round_.scene.backup(OLD)
        other.go(10_000)
        round_.finish(commit, OLD)
        if ended:
            break


class Keeping(RuleBasedStateMachine):
    """`expected` is what every restore point must yield; forgotten ones are not in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scene: Founded = found(replicas=2)
        self.expected: dict[str, dict[str, bytes]] = {}
        self.writers: list[tuple[SnapshotWriter, dict[str, bytes]]] = []
        self.collectors: list[Pace] = []
        self.ahead = timedelta(0)
        self.away = False

    def now(self) -> datetime:
        return self.scene.now() + self.ahead

    def _vault(self) -> Vault:
        def wrap(name: str, store: Objects) -> Store:
            return AwayStore(store, lambda: self.away and name == "b")

        return self.scene.open(self.scene.replicas(wrap))

    # --- writers ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.writers) < 3)
    @rule(parts=contents, source=st.just("db"))
    def begin(self, parts: list[int], source: str) -> None:
        content = {"t": b"".join(PARTS[part] for part in parts), "s": bytes(parts)}
        with contextlib.suppress(CellarerError):
            writer = SnapshotWriter(self._vault(), source, "test", self.scene.now)
            for path, data in content.items():
                writer.add(Stream(path, "test", blocks(data), len(data)))
            self.writers.append((writer, content))

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        writer, content = self.writers.pop(data.draw(st.integers(0, len(self.writers) - 1)))
        try:
            self.expected[writer.commit().session] = content
        except CellarerError:
            # The quorum may be lost after one replica took the commit: then it counts, or may go.
            if writer.session in {c.session for c in self.scene.open().commits()}:
                self.expected[writer.session] = content
        finally:
            writer.abandon()

    @precondition(lambda self: self.writers)
    @rule(tidily=st.booleans())
    def give_up(self, tidily: bool) -> None:
        """The source failed and the session is closed; or the power did, and it stays open."""
        writer, _ = self.writers.pop(0)
        writer._undecided &= tidily
        writer.abandon()

    # --- those who delete -------------------------------------------------------------------

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.expected)))
        del self.expected[session]
        forget(self._keeper(self.scene.replicas()), session, "by lot", self.scene.now())

    @precondition(lambda self: len(self.collectors) < 2)
    @rule(operations=st.integers(0, 30))
    def repack_begins(self, operations: int) -> None:
        pace = Pace(self._repacking)
        pace.go(operations)
        self.collectors.append(pace)

    @rule()
    def repack_at_once(self) -> None:
        pace = Pace(self._repacking)
        pace.go(10_000)
        assert pace.ended

    def _repacking(self, pace: Pace) -> None:
        def wrap(name: str, store: Objects) -> Store:
            return PacedStore(store, pace)

        vault = self._keeper(self.scene.replicas(wrap))
        Repacker(vault, self.now, 1 << 30).run(lambda copied_bytes: None)

    def _keeper(self, replicas: object) -> Vault:
        return Vault.open(replicas, None, None, self.scene.collect_key)  # type: ignore[arg-type]

    def _collecting(self, pace: Pace) -> None:
        def wrap(name: str, store: Objects) -> Store:
            return PacedStore(store, pace)

        vault = self._keeper(self.scene.replicas(wrap))
        collector = Collector(vault, self.now)
        for replica in vault.replicas.replicas:
            collector.collect(replica)

    @precondition(lambda self: len(self.collectors) < 2)
    @rule(operations=st.integers(0, 60))
    def collector_begins(self, operations: int) -> None:
        pace = Pace(self._collecting)
        pace.go(operations)
        self.collectors.append(pace)

    @precondition(lambda self: self.collectors)
    @rule(data=st.data(), operations=st.integers(1, 40))
    def collector_goes_on(self, data: st.DataObject, operations: int) -> None:
        pace = data.draw(st.sampled_from(self.collectors))
        pace.go(operations)
        self.collectors = [each for each in self.collectors if not each.ended]

    @precondition(lambda self: self.collectors)
    @rule()
    def collector_dies(self) -> None:
        self.collectors.pop(0).kill()

    @rule()
    def collect_at_once(self) -> None:
        pace = Pace(self._collecting)
        pace.go(10_000)
        assert pace.ended

    # --- the world --------------------------------------------------------------------------

    @rule(days=st.sampled_from([-30, -3, 0, 0, 3, 30]))
    def collectors_clocks_jump(self, days: int) -> None:
        self.ahead = timedelta(days=days)

    @rule(with_keys=st.booleans())
    def catch_up(self, with_keys: bool) -> None:
        vault = self._vault()
        trust = Trust.of(vault) if with_keys else None
        with contextlib.suppress(CellarerError):
            catch_up(vault.replicas, lambda copied_bytes: None, trust)

    @rule()
    def a_replica_comes_or_goes(self) -> None:
        self.away = not self.away

    @invariant()
    def every_point_is_whole_wherever_it_is_said_to_be(self) -> None:
        commits = {commit.session: commit for commit in self.scene.open().commits()}
        assert set(self.expected) == set(commits)
        for session, content in self.expected.items():
            self._check(commits[session], content)

    def _check(self, commit: Commit, content: dict[str, bytes]) -> None:
        for name in commit.replicas:
            assert restored(self.scene.alone(name).open(), commit) == content

    def teardown(self) -> None:
        for pace in self.collectors:
            pace.kill()
        for writer, _ in self.writers:
            writer.abandon()


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Keeping,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.usefixtures("small_packs")
def test_nothing_that_is_kept_is_ever_lost() -> None:
    _run(40, 40)


@pytest.mark.long
@pytest.mark.usefixtures("small_packs")
def test_nothing_that_is_kept_is_ever_lost_however_long_it_goes_on() -> None:
    _run(300, 60)
