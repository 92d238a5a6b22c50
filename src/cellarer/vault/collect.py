"""Collecting: what no restore point needs is deleted from a replica, in rounds that any host ends.

`rounds.py` decides, this carries it out: each step looks at the replica, then does one thing. A run
that was interrupted anywhere, or that has to wait for a backup, is taken up by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cellarer.errors import CellarerError, DamagedData, KeyUnusable, StoreError
from cellarer.ports import Store, grows_only, retaining
from cellarer.vault import format as layout
from cellarer.vault.closing import abort, own_repacks
from cellarer.vault.index import open_segment
from cellarer.vault.needs import Needs
from cellarer.vault.replicas import Replica
from cellarer.vault.roundlog import read_rounds, write_step
from cellarer.vault.rounds import Step, current, next_step, to_mark, to_sweep
from cellarer.vault.tombstones import entomb
from cellarer.vault.vault import Vault

SILENCE = timedelta(hours=48)
"""A session that is open so long after it began is closed. Too short a time costs a backup that is
tried again, never data."""


_ASKING = 16


@dataclass(frozen=True)
class PrunePlan:
    """What a replica holds and no restore point needs: object name -> size in bytes."""

    condemned: Mapping[str, int]

    @property
    def condemned_bytes(self) -> int:
        """The sum of the sizes."""
        return sum(self.condemned.values())


@dataclass(frozen=True)
class Collected:
    """What a run did on one replica.

    `waiting` are sessions that are open: the round goes on when they have ended, at the latest
    when the last is taken for dead, at `waiting_until`. What the store itself keeps for a time is
    left alone: `locked_bytes`, the last of it until `locked_until`. A replica that `grows_only` is
    never collected. `problem` says why nothing (more) was deleted.
    """

    condemned_bytes: int = 0
    swept_bytes: int = 0
    swept_objects: int = 0
    waiting: tuple[str, ...] = ()
    locked_bytes: int = 0
    locked_until: datetime | None = None
    grows_only: bool = False
    problem: CellarerError | None = None

    @property
    def waiting_until(self) -> datetime | None:
        """When the youngest of the open sessions is closed, if it does not end before."""
        return max((layout.session_start(each) + SILENCE for each in self.waiting), default=None)


class Collector:
    """Carries out the rounds of a vault's replicas. Needs the right to collect."""

    def __init__(
        self,
        vault: Vault,
        now: Callable[[], datetime],
        *,
        without: Collection[str] = (),
        silence: timedelta = SILENCE,
    ) -> None:
        self._vault, self._now, self._silence = vault, now, silence
        self._needs = Needs(vault, without)

    def plan(self, replica: Replica) -> PrunePlan:
        """What a round would mark now. Changes nothing."""
        if grows_only(replica.store):
            return PrunePlan({})
        stored = self._stored(replica)
        self._needs.refresh()
        condemned = self._condemned(replica, stored, stored.keys(), to_mark)
        free = condemned - self._locked(replica, condemned).keys()
        return PrunePlan({key: stored[key] for key in sorted(free)})

    def planned(self, replica: Replica) -> Collected:
        """The same, with the sessions that it would have to wait for."""
        condemned_bytes = self.plan(replica).condemned_bytes
        waiting = self._alive(self._open_sessions()) if condemned_bytes else set()
        return Collected(condemned_bytes, waiting=tuple(sorted(waiting)))

    def collect(self, replica: Replica) -> Collected:
        """Go as far as is possible now. Raises `VaultUnreachable` or `DamagedData` where what is
        needed is not known for certain; then nothing is deleted."""
        if grows_only(replica.store):
            return Collected(grows_only=True)
        done = _Done()
        while self._advance(replica, done):
            pass
        return Collected(
            done.condemned_bytes,
            done.swept_bytes,
            len(done.swept),
            done.waiting,
            done.locked_bytes,
            done.locked_until,
        )

    def _advance(self, replica: Replica, done: _Done) -> bool:
        """One step; whether there is another one."""
        rounds = read_rounds(self._vault, replica)
        running = current(rounds)
        open_sessions: set[str] = set()
        if running is not None and running.mark is not None and running.sweep is None:
            open_sessions = self._open_sessions()
        stored = self._stored(replica)
        step = next_step(rounds, open_sessions, stored.keys())
        if step is Step.BEGIN:
            self._needs.refresh()
            mark = self._condemned(replica, stored, stored.keys(), to_mark)
            if not self._free(replica, mark, stored, done) or done.rounds:
                return False
            done.rounds += 1
            number = rounds[-1].number + 1 if rounds else 0
            self._write(replica, number, "begin", ())
            return True
        assert running is not None
        match step:
            case Step.MARK:
                self._needs.refresh()
                entomb(self._vault, replica, self._needs.forgotten)
                mark = self._condemned(replica, stored, stored.keys(), to_mark)
                mark = self._free(replica, mark, stored, done)
                self._write(replica, running.number, "mark", mark)
            case Step.WAIT:
                done.condemned_bytes = sum(stored.get(key, 0) for key in running.mark or ())
                return self._close_silent(open_sessions, done)
            case Step.SWEEP:
                self._needs.refresh()
                mark = running.mark or frozenset()
                sweep = done.decided = self._condemned(replica, stored, mark, to_sweep)
                self._write(replica, running.number, "sweep", sweep)
            case Step.DELETE:
                assert running.sweep is not None
                if running.sweep != done.decided:
                    self._refuse_robbing(replica, running.sweep, stored.keys())
                    done.decided = running.sweep
                left = sum(stored.get(key, 0) for key in running.sweep)
                done.condemned_bytes = done.swept_bytes + left
                self._delete(replica, running.sweep, stored, done)
            case _:
                self._write(replica, running.number, "done", ())
        return True

    def _stored(self, replica: Replica) -> dict[str, int]:
        """Everything on a replica that a round may name, with sizes in bytes."""
        stored: dict[str, int] = {}
        for prefix in (layout.PACKS_PREFIX, layout.META_PREFIX, layout.INDEX_PREFIX):
            stored |= listed(self._vault, replica, prefix)
        return stored

    def _condemned(
        self,
        replica: Replica,
        stored: Mapping[str, int],
        among: AbstractSet[str],
        choose: Callable[[AbstractSet[str], AbstractSet[str]], frozenset[str]],
    ) -> frozenset[str]:
        """What may go: packs that nobody needs, then segments that speak of nothing that stays."""
        avoided = frozenset() if choose is to_mark else among
        needed = self._needs.on(replica.name, stored.keys(), avoided).objects
        packs = {key for key in among if not key.startswith(layout.INDEX_PREFIX)}
        condemned = choose(packs, needed)
        segments = among - packs
        return condemned | choose(segments, self._speaking(replica, segments, stored, condemned))

    def _free(
        self, replica: Replica, condemned: frozenset[str], stored: Mapping[str, int], done: _Done
    ) -> frozenset[str]:
        """What of it the store lets go now; a round that named more could not end."""
        locked = self._locked(replica, condemned)
        done.locked_bytes = sum(stored[key] for key in locked)
        done.locked_until = max(locked.values(), default=None)
        return condemned - locked.keys()

    def _locked(self, replica: Replica, keys: Iterable[str]) -> dict[str, datetime]:
        """The objects that the store keeps whoever asks, and until when."""
        lock = retaining(replica.store)
        if lock is None or not lock.locks():
            return {}
        ordered = sorted(keys)
        with ThreadPoolExecutor(_ASKING) as pool:
            until = dict(zip(ordered, pool.map(lock.locked_until, ordered), strict=True))
        return {key: time for key, time in until.items() if time and time > self._now()}

    def _speaking(
        self,
        replica: Replica,
        segments: Iterable[str],
        stored: Mapping[str, int],
        condemned: AbstractSet[str],
    ) -> set[str]:
        """The segments that a writer may still want: of restore points, and of what is left of
        forgotten ones and of repacks. Those of aborted sessions count for nobody, nor does one
        that is damaged: no restore needs it, and nobody else would ever take it away."""
        staying = stored.keys() - condemned

        def speaks(key: str) -> bool:
            session = key.split("/")[1]
            if session not in self._needs.forgotten | self._needs.repacks.keys():
                return session in self._needs.points
            sealed = self._vault.replicas.ask(replica, reading(key))
            try:
                packs = {pack for pack, _ in open_segment(self._vault.index_key, sealed)}
            except DamagedData:
                return False
            return not packs.isdisjoint(staying)

        ordered = sorted(segments)
        with ThreadPoolExecutor(_ASKING) as pool:
            return {
                key for key, kept in zip(ordered, pool.map(speaks, ordered), strict=True) if kept
            }

    def _open_sessions(self) -> set[str]:
        """Sessions that some replica knows as announced and that are not closed.

        One that is committed, or has repacked, anywhere is closed: what it points to will not
        change any more, and is among the needs. All replicas are asked, as the snapshot may have to
        come here later.
        """
        announced = self._listed(layout.SESSIONS_PREFIX)
        closed = self._listed(layout.SNAPSHOTS_PREFIX)
        self._needs.refresh()
        committed = self._needs.points | self._needs.forgotten | self._needs.repacks.keys()
        return {
            session
            for name, sessions in announced.items()
            for session in sessions - closed[name] - committed
            if layout.is_session(session)
        }

    def _listed(self, prefix: str) -> dict[str, set[str]]:
        """Replica -> sessions that have an object below the prefix; every replica must answer."""
        return {
            replica.name: {key.removeprefix(prefix) for key in listed(self._vault, replica, prefix)}
            for replica in self._vault.replicas.replicas
        }

    def _close_silent(self, sessions: AbstractSet[str], done: _Done) -> bool:
        """Abort the sessions that began too long ago, and repacks of this very key, which died.

        Whether every one of them is closed now.
        """
        silent = sessions - self._alive(sessions) - done.aborted
        for session in sorted(silent):
            abort(self._vault, session)
        done.aborted |= silent
        done.waiting = tuple(sorted(sessions - silent))
        return not done.waiting

    def _alive(self, sessions: AbstractSet[str]) -> AbstractSet[str]:
        """Those that began not too long ago, and are no repacks of this very key, which died."""
        young = {s for s in sessions if self._now() - layout.session_start(s) <= self._silence}
        try:
            signer = self._vault.signer_for("repack")
        except KeyUnusable:
            return young  # who only plans need not have it
        return young - own_repacks(self._vault, signer.public, young)

    def _refuse_robbing(
        self, replica: Replica, sweep: AbstractSet[str], stored: AbstractSet[str]
    ) -> None:
        """Look once more at what another run decided, before it is carried out.

        By the fence it takes nothing from a point that the replica shows. But a round of another
        replica, copied here whole, looks like one of this replica.
        """
        needs = Needs(self._vault, shown_by=replica.name)
        needs.refresh()
        going = needs.robbed(replica.name, stored, sweep)
        if going is not None:
            raise DamagedData(
                f"a round on replica {replica.name} deletes what restore points need, so it is not "
                "followed",
                detail=f"{going} for one",
                hint="somebody put it there, or something else is lost: run `cellarer scrub "
                "--repair`; if that finds nothing, change the credentials, and make a new replica "
                "with `cellarer sync`",
            )

    def _delete(
        self, replica: Replica, sweep: Iterable[str], stored: Mapping[str, int], done: _Done
    ) -> None:
        left = sorted(key for key in sweep if key in stored)
        if done.swept.intersection(left):
            raise StoreError(
                f"replica {replica.name} does not delete what it is asked to",
                detail=f"{len(left)} objects are still listed",
                hint="see `cellarer doctor`; the store may keep them for a time",
            )
        for key in left:
            replica.store.delete(key)
            done.swept.add(key)
            done.swept_bytes += stored[key]

    def _write(self, replica: Replica, number: int, step: str, objects: Iterable[str]) -> None:
        write_step(self._vault, replica, number, step, objects, self._now())


@dataclass
class _Done:
    """What a run did so far."""

    condemned_bytes: int = 0
    swept_bytes: int = 0
    swept: set[str] = field(default_factory=set)
    waiting: tuple[str, ...] = ()
    locked_bytes: int = 0
    locked_until: datetime | None = None
    aborted: set[str] = field(default_factory=set)
    decided: AbstractSet[str] = frozenset()
    rounds: int = 0


def listed(vault: Vault, replica: Replica, prefix: str) -> dict[str, int]:
    """What a replica lists below a prefix, with sizes in bytes. Raises `StoreError`."""
    infos = vault.replicas.ask(replica, lambda store: list(store.list(prefix)))
    return {info.key: info.size_bytes for info in infos}


def reading(key: str) -> Callable[[Store], bytes]:
    """To be asked of a replica: this object."""
    return lambda store: store.read(key)
