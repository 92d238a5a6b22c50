"""What a collection round consists of, and the table that says what comes next.

The one-shot session fence. A round on one replica is four objects, written in this order: `begin`,
`mark` (what shall go), `sweep` (what does go), `done`. After the mark, and only then, the collector
looks for sessions that are announced and not closed, and waits for each. One that announced itself
later sees the mark and builds on nothing that it names; one that announced itself earlier is closed
when the collector looks again at what is needed. So nothing that a committed snapshot needs is ever
swept, whatever clocks say, and however often collectors and writers die or meet.

Pure functions: the executor in `collect.py` and the explicit-state model in the tests use the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto


class Step(Enum):
    """What a collector does next on a replica."""

    BEGIN = auto()
    MARK = auto()
    WAIT = auto()
    SWEEP = auto()
    DELETE = auto()
    FINISH = auto()


@dataclass(frozen=True)
class Round:
    """One round, as its objects tell it; None where an object is not there yet."""

    number: int
    mark: frozenset[str] | None = None
    sweep: frozenset[str] | None = None
    done: bool = False

    @property
    def condemned(self) -> frozenset[str]:
        """What nobody may build upon while the round lasts."""
        if self.done:
            return frozenset()
        return (self.mark or frozenset()) if self.sweep is None else self.sweep


def current(rounds: Iterable[Round]) -> Round | None:
    """The round that is under way: every later collector joins it."""
    return min((r for r in rounds if not r.done), key=lambda r: r.number, default=None)


def condemned(rounds: Iterable[Round]) -> frozenset[str]:
    """Everything that some unfinished round names: no new snapshot may point there."""
    return frozenset().union(*(r.condemned for r in rounds))


def next_step(
    rounds: Sequence[Round], open_sessions: AbstractSet[str], stored: AbstractSet[str]
) -> Step:
    """What to do next.

    `open_sessions` must have been listed, and `stored` too, after the rounds were read.
    """
    running = current(rounds)
    if running is None:
        return Step.BEGIN
    if running.mark is None:
        return Step.MARK
    if running.sweep is None:
        return Step.WAIT if open_sessions else Step.SWEEP
    return Step.DELETE if running.sweep & stored else Step.FINISH


def follows(registered: bool, table: str, stored: AbstractSet[str]) -> bool:
    """Whether what a repack says of where records lie counts on a replica.

    Only once its register is there, which the first create decides for good; and only while its
    table is: a replica that is left alone must be readable by what lies on it.
    """
    return registered and table in stored


def home(
    places: Sequence[str], stored: AbstractSet[str], avoided: AbstractSet[str] = frozenset()
) -> str | None:
    """The pack that has to stay for a record: the first of its places that is stored.

    Places come with the latest first, so that what was repacked is let go. One in `avoided` only
    where no other is. None where the record is on no stored pack: then it is lost here, and nothing
    that a collector does changes that.
    """
    there = [place for place in places if place in stored]
    return next((place for place in there if place not in avoided), there[0] if there else None)


def to_mark(stored: AbstractSet[str], needed: AbstractSet[str]) -> frozenset[str]:
    """What a round names first. `stored` must have been listed before the needs were read."""
    return frozenset(stored - needed)


def to_sweep(mark: AbstractSet[str], needed: AbstractSet[str]) -> frozenset[str]:
    """What of the mark goes. The needs must have been read after every open session was closed."""
    return frozenset(mark - needed)
