"""Retention on a vault in memory: plan, forget, collect, hold; and when it keeps its hands off."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, timedelta
from typing import Any

import pytest

from cellarer.domain.retention import Policy
from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.errors import (
    CellarerError,
    DamagedData,
    KeyUnusable,
    UsageError,
    VaultUnreachable,
)
from cellarer.flows.history import look_back, missed
from cellarer.flows.points import list_points, survey
from cellarer.flows.retain import (
    GIVING_UP_TAKES,
    Retained,
    Rules,
    decide,
    hold,
    holds,
    release,
    retain,
    worst,
)
from cellarer.flows.status import status
from cellarer.ports import Store
from cellarer.vault.collect import SILENCE
from cellarer.vault.format import session_start
from cellarer.vault.ledger import entries, facts, record_fact, record_proof
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import (
    Days,
    Fault,
    Faults,
    FaultyStore,
    Founded,
    Objects,
    all_restored,
    flip,
    found,
    noise,
)


class Silent:
    """Progress that nobody watches."""

    def begin(self, title: str, total_bytes: int | None) -> None: ...
    def advance(self, read_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
    def abandon(self) -> None: ...


def scene_of_days(count: int, replicas: int = 1) -> tuple[Founded, list[str]]:
    """A vault with a point of each of some days, the oldest first."""
    scene = found(replicas=replicas)
    clock = scene.now = Days()
    points = []
    for day in range(count):
        points.append(scene.backup({"t": noise(day, 9000), "same": noise(99, 9000)}).session)
        clock.next()
    return scene, points


def rules(**counts: Any) -> Rules:
    return Rules(Policy(**counts), {}, UTC)


def keeper(scene: Founded, replicas: object = None) -> Vault:
    return Vault.open(replicas or scene.replicas(), None, None, scene.collect_key)  # type: ignore[arg-type]


def run(scene: Founded, dry_run: bool = False, **counts: int) -> Retained:
    return retain(keeper(scene), rules(**counts), scene.now, Silent(), dry_run=dry_run)


def ids(decisions: Sequence[object]) -> list[str]:
    return [decision.point.id for decision in decisions]  # type: ignore[attr-defined]


def test_what_no_rule_wants_is_given_up_and_collected() -> None:
    scene, points = scene_of_days(6, replicas=2)
    expected = all_restored(scene.open())
    done = run(scene, daily=2)
    assert ids(done.keep) == points[:3:-1]
    assert ids(done.remove) == points[3::-1]
    assert done.swept_bytes == done.condemned_bytes > 60_000
    assert [p.id for p in list_points(scene.open())] == points[:3:-1]
    for name in scene.stores:
        left = all_restored(scene.alone(name).open())
        assert left == {point: expected[point] for point in points[4:]}
    told = facts(scene.open(), "giving-up", "retention", "collection")
    types = ["giving-up", "retention", "collection", "collection"]
    assert [fact["type"] for fact in told] == types
    assert told[0]["points"] == told[1]["removed"] == points[3::-1]
    assert sum(fact["swept_bytes"] for fact in told[2:]) == done.swept_bytes
    again = run(scene, daily=2)
    assert (list(again.remove), again.condemned_bytes) == ([], 0)
    assert worst(done) == 0


def test_a_dry_run_says_the_same_and_changes_nothing() -> None:
    scene, _ = scene_of_days(5)
    before = dict(scene.stores["a"].objects)
    planned = run(scene, dry_run=True, daily=2)
    assert scene.stores["a"].objects == before
    done = run(scene, daily=2)
    assert (ids(planned.keep), ids(planned.remove)) == (ids(done.keep), ids(done.remove))
    assert planned.condemned_bytes == done.condemned_bytes > 0
    assert planned.swept_bytes == 0


def test_a_dry_run_needs_no_right_to_delete() -> None:
    scene, points = scene_of_days(3)
    writing = Vault.open(scene.replicas(), scene.write_key, None)
    planned = retain(writing, rules(daily=1), scene.now, Silent(), dry_run=True)
    assert ids(planned.remove) == points[1::-1]
    with pytest.raises(KeyUnusable) as caught:
        retain(writing, rules(daily=1), scene.now, Silent())
    assert "collect_key" in caught.value.hint
    assert len(list_points(scene.open())) == 3


def test_a_point_on_hold_stays_until_it_is_released() -> None:
    scene, points = scene_of_days(4)
    held = hold(keeper(scene), points[0][-8:], "case 17", scene.now())
    assert held.id == points[0]
    assert holds(entries(scene.open())) == {points[0]: "case 17"}
    done = run(scene, daily=1)
    assert ids(done.keep) == [points[3], points[0]]
    assert "on hold: case 17" in done.keep[1].reasons
    release(keeper(scene), points[0], scene.now())
    assert holds(entries(scene.open())) == {}
    assert ids(run(scene, daily=1).remove) == [points[0]]


def test_who_releases_a_point_gives_it_not_up() -> None:
    scene, points = scene_of_days(3)
    hold(keeper(scene), points[1], "why", scene.now())
    release(keeper(scene), points[1], scene.now())
    hold(keeper(scene), points[1], "why", scene.now())
    proof = ProofRecord(points[1], "db", Proof.PROVEN, True, scene.now(), 1.0, ())
    record_proof(scene.open(), proof)

    def gone() -> list[str]:
        vault = scene.open()
        return [finding.id for finding in look_back(vault, survey(vault), None)]

    assert gone() == []
    del scene.stores["a"].objects[f"snapshots/{points[1]}"]
    assert gone() == ["history-gap", "point-gone"]
    assert release(keeper(scene), points[1], scene.now()) == (points[1], True)
    assert gone() == ["history-gap"]
    (hash_,) = missed(survey(scene.open()), None)
    assert release(keeper(scene), hash_[:16], scene.now()) == (hash_, True)
    assert gone() == []
    with pytest.raises(UsageError, match="missed by nobody"):
        release(keeper(scene), hash_[:16], scene.now())
    # Of another one that goes later it says nothing.
    del scene.stores["a"].objects[f"snapshots/{points[0]}"]
    scene.backup({"t": b"x"})
    del scene.stores["a"].objects[f"snapshots/{points[2]}"]
    assert gone() == ["history-gap"]


def test_what_was_committed_last_stays_whatever_its_date() -> None:
    """The clock of the host was a month behind: nothing but the chain says which is the newest."""
    scene, points = scene_of_days(3)
    right = scene.now
    scene.now = lambda: right() - timedelta(days=30)
    late = [scene.backup({"t": noise(number, 9000)}).session for number in (7, 8)]
    scene.now = right
    done = run(scene, last=1)
    assert {*late, points[-1]} <= {*ids(done.keep)}
    now = scene.now()
    found = status(scene.open(), list_points(scene.open()), {"db": None}, None, now)
    assert any("committed after a point that is dated" in alarm.message for alarm in found.alarms)
    newest = scene.backup({"t": b"x"}).session
    assert ids(run(scene, last=1).keep) == [newest]


def test_a_wrong_date_takes_the_place_of_no_right_one() -> None:
    scene, points = scene_of_days(40)
    right = scene.now
    rightly = {*ids(run(scene, dry_run=True, monthly=3, daily=2).keep)}
    scene.now = lambda: right() - timedelta(days=31)
    wrong = scene.backup({"t": noise(7, 9000)}).session
    scene.now = right
    later = [scene.backup({"t": noise(number, 9000)}).session for number in (8, 9)]
    kept = {*ids(run(scene, monthly=3, daily=2).keep)}
    assert {wrong, later[-1]} <= kept
    month = f"{points[0][:6]}"
    assert {point for point in rightly if point.startswith(month)} <= kept


def at_operation(scene: Founded, number: int, act: Callable[[], None]) -> Vault:
    """The vault of a retention, beside whose operation of that number something else happens."""

    def plan(operation: int) -> None:
        if operation == number:
            act()

    faults = Faults(plan)
    return keeper(scene, scene.replicas(lambda name, store: FaultyStore(store, faults)))


def held_beside(scene: Founded, point: str, outcomes: list[str]) -> None:
    try:
        hold(keeper(scene), point, "", scene.now())
    except UsageError:
        outcomes.append("gone")
    except CellarerError as error:
        outcomes.append("gone" if "was given up" in error.message else "in doubt")
    else:
        outcomes.append("held")


def test_a_hold_at_any_moment_of_a_retention_is_heeded_or_refused() -> None:
    original, points = scene_of_days(2)
    seen = set()
    for number in itertools.count():
        scene, outcomes = original.copy(), list[str]()
        vault = at_operation(
            scene,
            number,
            lambda: held_beside(scene, points[0], outcomes),  # noqa: B023
        )
        retain(vault, rules(daily=1), scene.now, Silent())
        if not outcomes:
            break
        listed = points[0] in [p.id for p in list_points(scene.open())]
        assert outcomes[0] == "in doubt" or listed == (outcomes[0] == "held"), number
        seen |= {outcomes[0], f"{outcomes[0]}, {'kept' if listed else 'given up'}"}
        run(scene, daily=1)
        assert listed == (points[0] in [p.id for p in list_points(scene.open())])
    assert {"held", "gone", "in doubt, kept", "in doubt, given up"} <= seen


def test_a_retention_at_any_moment_of_a_hold_heeds_it_or_is_told_of() -> None:
    original, points = scene_of_days(2)
    for number in itertools.count():
        scene, ran = original.copy(), list[bool]()

        def beside(scene: Founded = scene, ran: list[bool] = ran) -> None:
            run(scene, daily=1)
            ran.append(True)

        try:
            hold(at_operation(scene, number, beside), points[0], "", scene.now())
            outcome = "held"
        except CellarerError:
            outcome = "refused"
        if not ran:
            break
        listed = points[0] in [p.id for p in list_points(scene.open())]
        assert listed == (outcome == "held"), number


def test_a_retention_that_was_killed_leaves_no_doubt_behind_the_next_one() -> None:
    scene, points = scene_of_days(3)
    fact = {"type": "giving-up", "points": points[:1], "run": "that was killed"}
    record_fact(keeper(scene), fact, scene.now())
    for _ in range(2):  # another retention says nothing of the one that may be at work
        with pytest.raises(CellarerError, match="may be giving") as caught:
            hold(keeper(scene), points[0], "", scene.now())
        assert "cellarer points" in caught.value.hint
        run(scene, daily=1)
    assert [p.id for p in list_points(scene.open())] == [points[2], points[0]]
    later = scene.now() + 2 * GIVING_UP_TAKES + timedelta(seconds=1)
    assert hold(keeper(scene), points[0], "", later).id == points[0]


@pytest.mark.parametrize("method", ["create", "list"])
def test_a_retention_that_does_not_reach_every_replica_gives_nothing_up(method: str) -> None:
    original, points = scene_of_days(2, replicas=2)
    for number in itertools.count():
        scene = original.copy()
        faults = Faults(
            lambda n: Fault.REFUSE if n == number else None,  # noqa: B023
            lambda called: called == method,
        )

        def wrap(name: str, store: Store, faults: Faults = faults) -> Store:
            return FaultyStore(store, faults) if name == "b" else store

        with contextlib.suppress(CellarerError):
            retain(keeper(scene, scene.replicas(wrap)), rules(daily=1), scene.now, Silent())
        if points[0] not in [p.id for p in list_points(scene.open())]:
            # Whoever holds it may reach one replica alone, and has to read there what is going on.
            for name in scene.stores:
                assert facts(scene.alone(name).open(), "giving-up"), number
        if faults.operations <= number:
            break


def test_a_dry_run_shows_which_backups_it_would_wait_for() -> None:
    scene, _ = scene_of_days(3)
    writer = SnapshotWriter(scene.open(), "db", "test", scene.now)
    planned = run(scene, dry_run=True, daily=1).replicas["a"]
    assert planned.waiting == (writer.session,)
    assert planned.waiting_until == session_start(writer.session) + SILENCE
    writer.abandon()
    assert run(scene, dry_run=True, daily=1).replicas["a"].waiting == ()


def test_holding_needs_a_point_and_a_right() -> None:
    scene, points = scene_of_days(2)
    with pytest.raises(UsageError, match="is no restore point"):
        hold(keeper(scene), "ffffffff", "", scene.now())
    with pytest.raises(UsageError, match="is not on hold"):
        release(keeper(scene), points[0], scene.now())
    writing = Vault.open(scene.replicas(), scene.write_key, None)
    with pytest.raises(KeyUnusable):
        hold(writing, points[0], "", scene.now())
    run(scene, daily=1)
    with pytest.raises(UsageError, match="is no restore point"):
        hold(keeper(scene), points[0], "", scene.now())


def test_the_last_proven_point_stays_and_a_failed_one_does_not_count() -> None:
    scene, points = scene_of_days(5)
    check = Check("rows", True, "1", "1")
    failed = Check("rows", False, "1", "0")

    def proof(point: str, rung: Proof, check: Check) -> None:
        passed = check.passed
        record = ProofRecord(point, "db", rung, passed, scene.now(), 1.0, (check,))
        record_proof(scene.open(), record)

    proof(points[1], Proof.PROVEN, check)
    proof(points[3], Proof.STORED, failed)
    done = run(scene, daily=2)
    assert ids(done.keep) == [points[4], points[2], points[1]]
    assert "the last proven of its source" in done.keep[2].reasons
    assert "its verification failed: rows" in done.remove[0].reasons[0]


def test_without_rules_nothing_is_given_up() -> None:
    scene, _ = scene_of_days(3)
    done = run(scene)
    assert len(done.keep) == 3
    assert decide(survey(scene.open()), rules(), scene.now()).remove == ()


def test_nothing_is_forgotten_while_a_replica_is_away() -> None:
    scene, _ = scene_of_days(3, replicas=2)

    def wrap(name: str, store: Objects) -> Store:
        return FaultyStore(store, Faults(lambda _: Fault.REFUSE if name == "b" else None))

    before = {name: dict(store.objects) for name, store in scene.stores.items()}
    vault = keeper(scene, scene.replicas(wrap))
    with pytest.raises(VaultUnreachable, match="nothing is forgotten") as caught:
        retain(vault, rules(daily=1), scene.now, Silent())
    assert "sync" in caught.value.hint
    assert before == {name: store.objects for name, store in scene.stores.items()}


def test_nothing_is_forgotten_on_a_replica_that_is_not_mounted() -> None:
    scene, _ = scene_of_days(3)
    scene.stores["b"] = Objects("b")
    with pytest.raises(VaultUnreachable, match="not every replica"):
        run(scene, daily=1)


@pytest.mark.parametrize("prefix", ["snapshots/", "ledger/"])
def test_nothing_is_forgotten_while_something_cannot_be_read(prefix: str) -> None:
    """An unreadable register may be a newer point, an unreadable entry a hold."""
    scene, points = scene_of_days(3)
    hold(keeper(scene), points[0], "", scene.now())
    store = scene.stores["a"]
    store.damage(min(key for key in store.objects if key.startswith(prefix)), flip(300))
    before = dict(store.objects)
    with pytest.raises(DamagedData, match="nothing is forgotten"):
        run(scene, daily=1)
    assert store.objects == before


def test_trouble_on_one_replica_leaves_the_other_its_turn() -> None:
    scene, _ = scene_of_days(4, replicas=2)
    for step in ("begin", "mark"):
        scene.stores["a"].objects[f"collections/00000000/{step}"] = b"junk"
    done = run(scene, daily=1)
    assert isinstance(done.replicas["a"].problem, DamagedData)
    assert done.replicas["a"].swept_bytes == 0
    assert done.replicas["b"].swept_bytes > 0
    assert worst(done) == 6
