"""Asking replicas: who is likely to answer first, and what to do while one does not.

Every answer is waited for in a thread of its own, which can be left to itself: a store that hangs
cannot be made to stop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from math import log2
from queue import Empty, SimpleQueue
from statistics import median
from typing import Generic, TypeVar

from cellarer.errors import CellarerError, DamagedData, KeyUnusable, StoreError

T = TypeVar("T")

ALIKE_SECONDS = 0.010
"""Replicas that answer faster than this are equally near; beyond it each doubling counts."""

LATE_AT_LEAST_SECONDS = 1.0
LATE_AT_FIRST_SECONDS = 5.0
"""How long the first answers may take, before it is known what is usual."""

LEFT_ALONE = 4
"""Answers that a replica may owe while others are asked instead; then it comes last."""

BAD_ANSWERS = (StoreError, DamagedData, KeyUnusable)
"""What sends one on to the next replica; any other error ends the asking."""

_REMEMBERED = 32
_USUAL_AFTER = 8
_NEAR_AFTER = 3
_IDLE_THREADS = 16


class Pace:
    """How fast one replica has answered in this process; large and small answers apart."""

    def __init__(self) -> None:
        self._seconds: dict[bool, deque[float]] = {
            large: deque(maxlen=_REMEMBERED) for large in (False, True)
        }
        self._lock = threading.Lock()
        self.owed = 0

    def took(self, seconds: float, *, large: bool) -> None:
        """An answer came after so long, or is not there after so long."""
        with self._lock:
            self._seconds[large].append(seconds)

    def owes(self, change: int) -> None:
        """An answer is late, and another replica is asked (1); or it came after all (-1)."""
        with self._lock:
            self.owed += change

    def distance(self, *, large: bool) -> int:
        """How far the replica is: 0, and 1 more for each doubling of what its answers take.

        The median of what was measured, so that one stumble says nothing; of small answers where
        there were no large ones, and 0 where there were none: it is tried.
        """
        with self._lock:
            measured = next(
                (s for s in (self._seconds[large], self._seconds[False]) if len(s) >= _NEAR_AFTER),
                (0.0,),
            )
            return int(max(0.0, log2(max(median(measured), ALIKE_SECONDS) / ALIKE_SECONDS)))

    def late_after(self, *, large: bool) -> float:
        """Seconds after which an answer is late: nineteen of twenty came sooner."""
        with self._lock:
            measured = sorted(self._seconds[large])
        if len(measured) < _USUAL_AFTER:
            return LATE_AT_FIRST_SECONDS
        return max(LATE_AT_LEAST_SECONDS, measured[len(measured) * 19 // 20])


class _Threads:
    """Threads that do one thing after another; as many as there are things at once.

    Daemons: the program ends even where one never does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = 0

    def begin(self, task: Callable[[], None]) -> None:
        """Do this now, in a thread that is idle or in a new one."""
        with self._lock:
            new = self._idle == 0
            self._idle -= not new
        if new:
            threading.Thread(target=self._work, args=(task,), name="ask", daemon=True).start()
        else:
            self._tasks.put(task)

    def _work(self, task: Callable[[], None]) -> None:
        while True:
            task()
            del task
            with self._lock:
                if self._idle >= _IDLE_THREADS:
                    return
                self._idle += 1
            task = self._tasks.get()


_THREADS = _Threads()


class Answers(Generic[T]):
    """What several replicas answer, in the order in which the answers come."""

    def __init__(self) -> None:
        self._came: SimpleQueue[tuple[str, T | BaseException]] = SimpleQueue()

    def ask(self, name: str, act: Callable[[], T]) -> None:
        """Begin to ask one; it may take for ever."""

        def work() -> None:
            try:
                answer: T | BaseException = act()
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                answer = error
            self._came.put((name, answer))

        _THREADS.begin(work)

    def next(self, seconds: float | None) -> tuple[str, T | CellarerError] | None:
        """Who answered and what, or None after so many seconds.

        Raises what is no `CellarerError` and so no answer.
        """
        try:
            name, answer = self._came.get(timeout=None if seconds is None else max(seconds, 0.0))
        except Empty:
            return None
        if isinstance(answer, BaseException) and not isinstance(answer, CellarerError):
            raise answer
        return name, answer


class Race(Generic[T]):
    """One question to one replica after another: the next where an answer is bad, or late.

    `tell` hears of every bad answer once it is known that another was good, also of one that comes
    when the race is over.
    """

    def __init__(
        self, paces: Mapping[str, Pace], tell: Callable[[str, CellarerError], None], *, large: bool
    ) -> None:
        self._paces, self._tell, self._large = paces, tell, large
        self._lock = threading.Lock()
        self._won = False
        self._answered: set[str] = set()
        self._late: set[str] = set()
        self.problems: dict[str, CellarerError] = {}

    def run(self, names: Iterable[str], attempt: Callable[[str], T]) -> list[T]:
        """The first good answer; none where there is none, for which `problems` has the reasons."""
        answers: Answers[T] = Answers()
        names = [*names]
        if len(names) == 1:
            with suppress(*BAD_ANSWERS):
                return [self._attempted(names[0], attempt)]
            return []
        to_ask, waiting, late_after = deque(names), 0, 0.0
        while to_ask or waiting:
            if to_ask:
                name = to_ask.popleft()
                late_after, waiting = self._paces[name].late_after(large=self._large), waiting + 1
                answers.ask(name, partial(self._attempted, name, attempt))
            # Who owes answers itself is no help against one that is late.
            helped = bool(to_ask) and self._paces[to_ask[0]].owed < LEFT_ALONE
            came = answers.next(late_after if helped else None)
            if came is None:
                self._overtake(name, late_after)
                continue
            waiting -= 1
            if not isinstance(came[1], CellarerError):
                return [came[1]]
            if not isinstance(came[1], BAD_ANSWERS):
                raise came[1]
        return []

    def _attempted(self, name: str, attempt: Callable[[str], T]) -> T:
        try:
            answer = attempt(name)
        except BaseException as error:
            self._note(name, error)
            raise
        self._note(name, None)
        return answer

    def _note(self, name: str, error: BaseException | None) -> None:
        with self._lock:
            self._answered.add(name)
            if name in self._late:
                self._paces[name].owes(-1)
            self._won = self._won or error is None
            if isinstance(error, BAD_ANSWERS):
                self.problems[name] = error
            if self._won:
                # When the race is won, of all that lost it; later, of this one.
                for each in self.problems if error is None else {name} & self.problems.keys():
                    self._tell(each, self.problems[each])

    def _overtake(self, name: str, seconds: float) -> None:
        with self._lock:
            if name not in self._answered:
                self._late.add(name)
                self._paces[name].owes(1)
                self._paces[name].took(seconds, large=self._large)
