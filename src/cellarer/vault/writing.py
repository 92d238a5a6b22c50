"""Putting the objects of a session on several replicas, each at its own pace.

    session ── put ──┬── queue of a ── 4 threads ── store
                     └── queue of b ── 4 threads ── store

The session goes on when `write_quorum` replicas keep up. The others may hold it up for
`PATIENCE_SECONDS` altogether; then it goes on without them, and they are debts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cellarer.errors import CellarerError, StoreError
from cellarer.vault.replicas import Replica, ReplicaSet, unreachable

UPLOADS_PER_REPLICA = 4

BACKLOG_BYTES = 48 << 20
"""What may wait for one replica or be on its way there: three packs, whatever the rest does."""

PATIENCE_SECONDS = 30.0
"""How long replicas that the quorum does not need may hold one session up, all waits together."""

SILENT_SECONDS = 30.0
"""A replica that takes nothing for so long is not asked again by this process."""

CLOSING_SECONDS = 5.0
"""How long a session that ends waits for uploads that are on their way."""


class TooSlow(StoreError):
    """A replica did not keep up with the others; what it lacks is a debt."""


class _Upload(NamedTuple):
    key: str
    data: bytes
    phase: int


class _Lane:
    """The way to one replica. The lock of its `Writing` is held wherever it is touched."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.waiting: deque[_Upload] = deque()
        self.on_their_way: list[_Upload] = []
        self.moved_at = 0.0

    @property
    def backlog_bytes(self) -> int:
        """What is held in memory for this replica."""
        return sum(len(u.data) for u in (*self.waiting, *self.on_their_way))

    @property
    def idle(self) -> bool:
        """Whether the replica has all that it was given."""
        return not self.waiting and not self.on_their_way

    @property
    def ready(self) -> bool:
        """Whether another upload may begin."""
        if not self.waiting:
            return False
        return all(upload.phase == self.waiting[0].phase for upload in self.on_their_way)


class Writing:
    """Puts the objects of one session on the replicas that take part in it.

    A replica that fails, or holds the session up for too long, drops out and is a debt; fewer than
    the quorum left ends the session. On each replica what comes after a `barrier` is begun when
    everything before it is there.
    """

    def __init__(
        self,
        replica_set: ReplicaSet,
        replicas: Iterable[Replica],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica_set, self._clock = replica_set, clock
        self._quorum = replica_set.write_quorum
        self._lanes = {replica.name: _Lane(replica) for replica in replicas}
        self._changed = threading.Condition()
        self._patience_seconds = PATIENCE_SECONDS
        self._phase = 0
        self._closed = False
        self._broken: BaseException | None = None
        self.failed: dict[str, CellarerError] = {}
        self._threads = {
            name: [
                threading.Thread(target=self._work, args=(lane,), name=f"upload-{name}")
                for _ in range(UPLOADS_PER_REPLICA)
            ]
            for name, lane in self._lanes.items()
        }
        for threads in self._threads.values():
            for thread in threads:
                # The program ends also where a store never answers.
                thread.daemon = True
                thread.start()

    @property
    def alive(self) -> list[str]:
        """The replicas that took everything so far, or are about to."""
        return [name for name in self._lanes if name not in self.failed]

    @property
    def replicas(self) -> list[Replica]:
        """The same, as replicas."""
        return [self._lanes[name].replica for name in self.alive]

    def barrier(self) -> None:
        """What was put before is stored, on each replica, before what is put from now on."""
        self._phase += 1

    def put(self, key: str, data: bytes) -> None:
        """Hand an object over to every replica that is alive; waits while too much is waiting.

        Raises `VaultUnreachable` when too few replicas are left.
        """
        with self._changed:
            self._wait(lambda lane: lane.backlog_bytes < BACKLOG_BYTES)
            for name in self.alive:
                lane = self._lanes[name]
                if lane.idle:
                    lane.moved_at = self._clock()
                lane.waiting.append(_Upload(key, data, self._phase))
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until the replicas have all that was put. Raises as `put`."""
        with self._changed:
            self._wait(lambda lane: lane.idle)

    def drop(self, name: str, error: CellarerError) -> None:
        """Go on without a replica. Raises `VaultUnreachable` when too few are left."""
        with self._changed:
            self._drop(self._lanes[name], error)
            self._refuse_too_few()

    def close(self, key: str = "", last: bytes = b"") -> None:
        """Stop: what waits is dropped. A `last` object is still put where that is done soon."""
        with self._changed:
            if self._closed:
                return
            for name in self.alive:
                lane = self._lanes[name]
                lane.waiting.clear()
                if key and self._broken is None:
                    lane.waiting.append(_Upload(key, last, self._phase))
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + CLOSING_SECONDS
        for name in self.alive:
            for thread in self._threads[name]:
                thread.join(max(0.0, until - time.monotonic()))

    def _wait(self, keeps_up: Callable[[_Lane], bool]) -> None:
        while True:
            self._refuse_too_few()
            late = [lane for name in self.alive if not keeps_up(lane := self._lanes[name])]
            if not late:
                return
            if len(self.alive) - len(late) < self._quorum:
                self._changed.wait()
            elif self._patience_seconds > 0:
                began = self._clock()
                self._changed.wait(self._patience_seconds)
                self._patience_seconds -= self._clock() - began
            else:
                for lane in late:
                    self._give_up(lane)

    def _give_up(self, lane: _Lane) -> None:
        """Go on without a replica that is late; one that does not move is not asked again."""
        if self._clock() - lane.moved_at >= SILENT_SECONDS:
            self._drop(lane, self._replica_set.give_up(lane.replica))
            return
        error = TooSlow(
            f"replica {lane.replica.name} was too slow for this backup",
            detail=f"{lane.backlog_bytes} bytes were still on their way; {lane.replica.store.url}",
            hint="`cellarer sync` brings it up to date",
        )
        self._drop(lane, error)

    def _drop(self, lane: _Lane, error: CellarerError) -> None:
        self.failed.setdefault(lane.replica.name, error)
        lane.waiting.clear()
        self._changed.notify_all()

    def _refuse_too_few(self) -> None:
        if self._broken is not None:
            raise self._broken
        if len(self.alive) < self._quorum:
            raise unreachable(
                f"{len(self.alive)} of {self._quorum} needed replicas take what is written",
                self.failed,
            )

    def _work(self, lane: _Lane) -> None:
        """What each thread of a replica does."""
        while (upload := self._next(lane)) is not None:
            error: BaseException | None = None
            try:
                lane.replica.store.create(upload.key, upload.data)
            except BaseException as caught:  # noqa: BLE001 - the session's own thread raises it
                error = caught
            with self._changed:
                lane.on_their_way.remove(upload)
                lane.moved_at = self._clock()
                if isinstance(error, CellarerError):
                    self._drop(lane, error)
                elif error is not None:
                    self._broken = self._broken or error
                self._changed.notify_all()
            del upload  # its bytes must not stay while this thread waits for the next

    def _next(self, lane: _Lane) -> _Upload | None:
        """The next upload of a replica; None when there will be no more."""
        with self._changed:
            while not lane.ready:
                if (self._closed and not lane.waiting) or lane.replica.name in self.failed:
                    return None
                self._changed.wait()
            upload = lane.waiting.popleft()
            lane.on_their_way.append(upload)
            return upload
