"""Whether a store keeps what the vault stands on: found out by trying, not by asking its name.

Creating only where nothing is there is what the vault's safety rests on. Stores that ignore the
condition exist, and take the second write as gladly as the first.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import Barrier
from typing import Literal, Protocol, runtime_checkable

from cellarer.domain.finding import Finding
from cellarer.errors import DamagedData, ObjectExists, ObjectLocked, ObjectMissing, StoreError
from cellarer.ports import Store, layers

PREFIX = "probe/"
RACERS = 8
CLOCK_TOLERANCE_SECONDS = 60.0
"""S3 refuses requests that are off by 15 minutes; a minute is early enough to say so."""

GROW_ONLY_HINT = (
    "use a store that honours If-None-Match, or switch that on; or set grow_only = true for this "
    "replica, which then is written to and read, and never collected"
)

Verdict = Literal["full", "grow-only", "unusable"]


@runtime_checkable
class Clocked(Protocol):
    """A store that says when an object came, by a clock of its own."""

    def modified(self, key: str) -> datetime:
        """When the object was stored."""


@runtime_checkable
class Tidying(Protocol):
    """A store of directories, which stay when what was in them is deleted."""

    def remove_empty(self, prefix: str) -> None:
        """Remove the directory of a prefix unless something is in it."""


@dataclass(frozen=True)
class Probe:
    """What a store showed.

    `faults` are broken promises without which nothing can be kept there. `clock_skew_seconds` is
    how far the store's clock is ahead, None where it has none of its own. `latency_seconds` is the
    median over the single requests. `locked` says that deleting was refused for a retention.
    """

    url: str
    faults: tuple[str, ...]
    create_if_absent: bool
    deletes: bool
    latency_seconds: float
    clock_skew_seconds: float | None
    locked: bool = False

    @property
    def verdict(self) -> Verdict:
        """`full`, `grow-only` where creating overwrites, or `unusable`."""
        if self.faults:
            return "unusable"
        return "full" if self.create_if_absent else "grow-only"

    @property
    def text(self) -> str:
        """The verdict in a sentence."""
        if self.faults:
            return "cannot hold a vault: " + "; ".join(self.faults)
        if not self.create_if_absent:
            return "grow-only: it overwrites what should only be created where nothing is"
        milliseconds = f"{self.latency_seconds * 1000:.0f} ms for a small request"
        if not self.deletes:
            return f"works, and these credentials cannot delete; {milliseconds}"
        return f"works; {milliseconds}"

    def findings(self, subject: str, *, grow_only: bool = False) -> list[Finding]:
        """What `doctor` should say; `subject` names the replica.

        `grow_only` says that the config knows that the store overwrites.
        """
        found = [self._verdict(subject, grow_only)]
        skew = self.clock_skew_seconds
        if skew is not None and abs(skew) > CLOCK_TOLERANCE_SECONDS:
            side = "ahead of" if skew > 0 else "behind"
            found.append(
                Finding(
                    "store-clock", "warning", subject,
                    f"its clock is {abs(skew):.0f} seconds {side} this machine's",
                    "set this machine's clock by NTP: stores refuse requests far off in time",
                )
            )  # fmt: skip
        return found

    def _verdict(self, subject: str, grow_only: bool) -> Finding:
        name, text = f"store-{self.verdict}", self.text
        if self.verdict == "unusable":
            return Finding(name, "error", subject, text, "use another store for this replica")
        if self.verdict == "grow-only" and grow_only:
            return Finding(name, "info", subject, f"{text}; used as such")
        if self.verdict == "grow-only":
            return Finding(name, "error", subject, text, GROW_ONLY_HINT)
        if grow_only:
            text += "; it does not overwrite, so grow_only can be taken out of the config"
        return Finding(name, "info", subject, text)


def probe(store: Store, now: Callable[[], datetime]) -> Probe:
    """Try the store out under `probe/`, and remove what was written where that is allowed.

    Some twenty small requests. Raises `StoreError` where it does not answer or refuses to be
    written, read or listed.
    """
    trial = _Trial(store, f"{PREFIX}{secrets.token_hex(8)}")
    try:
        skew = trial.basics(now)
        create_if_absent = trial.creates_once() and trial.has_one_winner()
        deletes = trial.deletes()
    except BaseException:
        # What went wrong is worth more than what stays behind.
        with suppress(StoreError):
            trial.deletes()
        raise
    return Probe(
        url=store.url,
        faults=tuple(trial.faults),
        create_if_absent=create_if_absent,
        deletes=deletes,
        latency_seconds=statistics.median(trial.seconds),
        clock_skew_seconds=skew,
        locked=trial.locked,
    )


@dataclass
class _Trial:
    """The requests of one probe, and what they showed."""

    store: Store
    base: str
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    locked: bool = False

    def basics(self, now: Callable[[], datetime]) -> float | None:
        """Write, read, read in part, list. Returns the clock's skew where it can be known."""
        store, key, content = self.store, f"{self.base}-object", secrets.token_bytes(1000)
        before = now()
        with self._timed():
            store.create(key, content)
        after = now()
        with self._timed():
            self._expect(store.read(key) == content, "it reads back other bytes than were written")
        with self._timed():
            part = store.read_range(key, 100, 50)
        self._expect(part == content[100:150], "a read of a range brings other bytes")
        with self._timed():
            listed = {info.key: info.size_bytes for info in store.list(PREFIX)}
        self._expect(listed.get(key) == len(content), "a new object is not listed")
        try:
            store.read_range(key, 990, 50)
            self.faults.append("a read beyond the end does not fail")
        except DamagedData:
            pass
        clocked = next((layer for layer in layers(store) if isinstance(layer, Clocked)), None)
        if clocked is None:
            return None
        # The store's time is whole seconds; half of one is the error that this leaves at most.
        middle = before + (after - before) / 2
        return (clocked.modified(key) - middle).total_seconds() + 0.5

    def creates_once(self) -> bool:
        """Whether a second object of the same name is refused, and the first one stays."""
        key = f"{self.base}-twice"
        self.store.create(key, b"the first")
        try:
            self.store.create(key, b"the second")
        except ObjectExists:
            return self.store.read(key) == b"the first"
        return False

    def has_one_winner(self) -> bool:
        """Whether of several that create at once one wins, and the object is the winner's."""
        key, barrier = f"{self.base}-race", Barrier(RACERS)

        def race(number: int) -> bytes | StoreError | None:
            content = bytes([number]) * 1000
            barrier.wait()
            try:
                self.store.create(key, content)
            except ObjectExists:
                return None
            except StoreError as error:
                return error
            return content

        with ThreadPoolExecutor(RACERS) as pool:
            outcomes = list(pool.map(race, range(RACERS)))
        winners = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        if not winners:
            raise next(
                (outcome for outcome in outcomes if isinstance(outcome, StoreError)),
                StoreError(
                    "nobody could create an object that several created at once",
                    detail=self.store.url,
                ),
            )
        return len(winners) == 1 and self.store.read(key) == winners[0]

    def deletes(self) -> bool:
        """Remove all that was written. False where the store or the credentials forbid it."""
        keys = [f"{self.base}-{name}" for name in ("object", "twice", "race")]
        try:
            for key in keys:
                self.store.delete(key)
                self.store.delete(key)  # absent now, which is no error
        except StoreError as error:
            if error.retryable:
                raise
            self.locked = isinstance(error, ObjectLocked)
            return False
        for key in keys:
            try:
                self.store.read(key)
            except ObjectMissing:
                continue
            self.faults.append("a deleted object can still be read")
        listed = {info.key for info in self.store.list(PREFIX)}
        self._expect(listed.isdisjoint(keys), "a deleted object is still listed")
        for layer in layers(self.store):
            if isinstance(layer, Tidying):
                layer.remove_empty(PREFIX)
        return True

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds.append(time.monotonic() - began)
