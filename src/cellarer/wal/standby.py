"""Keeps a warm standby: its server runs, it is handed what the vault has, and it is known how far
behind it is. And promotes it, once nothing is left that it could replay.

The server never gets an answer that reads as the end of the log, so whatever happens here it waits.
Nothing is kept in memory that could not be found again: whoever comes next goes on.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from cellarer.domain.standby import Standing, hidden_behind, left_at, told
from cellarer.domain.wal import history_name, lsn_text, segment_at
from cellarer.errors import CellarerError, DamagedData, TargetFailed, VaultUnreachable, WalAbsent
from cellarer.postgres.standby_feed import StandbyFeed
from cellarer.postgres.standby_server import ServerState, StandbyServer
from cellarer.targets.standby_directory import release
from cellarer.wal.feeding import Feeder, next_history
from cellarer.wal.logs import Logs

REPORT_SECONDS = 60.0
STILL_WRITES_SECONDS = 30.0
"""Log that was stored so lately may be of a primary that lives: its stream stores every few
seconds."""

_TURN_SECONDS, _LOOK_SECONDS = 0.2, 1.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
_TAKE_OVER_SECONDS = 60.0


class Standby:
    """One standby: its server, what it is handed, and the log of its cluster in the vault."""

    def __init__(
        self,
        server: StandbyServer,
        feed: StandbyFeed,
        logs: Logs,
        system: str,
        now: Callable[[], datetime],
        tell: Callable[[str], None],
    ) -> None:
        self._server, self._feed, self._logs = server, feed, logs
        self._system, self._now, self._tell = system, now, tell
        self._segment_bytes = server.segment_bytes()
        self._feeder = Feeder(feed, lambda: logs.reader(system), self._segment_bytes, now)
        self._stored: dict[str, datetime] = {}
        self._failed: CellarerError | None = None
        self._began = now()
        self._pid: int | None = None
        self.last: Standing | None = None
        """How it stood when it was last looked at."""

    def keep(self) -> None:
        """Keep it until this process is told to end; the server is stopped then.

        Returns, and leaves the server running, once somebody else has promoted it.
        """
        while True:
            with self._feed.kept():
                self._keep()
            while self._feed.is_taken_over:
                time.sleep(_TURN_SECONDS)
            state = self._server.state()
            if not self._feed.exists or (state is not None and not state.recovering):
                self._tell("the standby was promoted by another `cellarer standby`: it is left")
                return
            self._tell("the standby was not promoted, and is kept on")

    def standing(self) -> Standing:
        """How it stands now, by who keeps it, or else as far as server and vault answer."""
        if self._feed.is_kept and (text := self._feed.written_down()) is not None:
            return Standing.from_json(text)
        try:
            self._feeder.look()
        except CellarerError as error:
            self._failed = error
        standing = self._standing(self._server.state())
        if standing.role == "primary":
            return standing
        serves = "serves, and gets no log" if standing.running else "does not run"
        return replace(
            standing,
            problem=f"no `cellarer standby` keeps it: its server {serves}",
            hint="let a service run `cellarer standby`, without --status",
        )

    def promote(self, doubts: Callable[[], list[str]], *, sure: bool) -> Standing:
        """Promote it once it has replayed all there is, and see that it takes writes.

        `doubts` are reasons to believe that the primary lives; without `sure` one of them is enough
        to leave all as it is. Raises `TargetFailed`, and what keeps the vault from being read.
        """
        with self._feed.taken_over(), self._feed.kept(_TAKE_OVER_SECONDS):
            self._feed.open()
            self._run_server()
            state = self._server.state()
            if state is None or state.recovering:
                reasons = doubts()  # first: to ask the dead takes time
                state = self._replay_all(sure=sure)
                reasons += self._recently_stored()
                if reasons and not sure:
                    raise TargetFailed(
                        "it is not promoted: the primary may live",
                        detail="; ".join(reasons),
                        hint="Stop the primary for good, so that there are never two. If it is"
                        " dead, or shall be cut off, add --yes.",
                    )
                for reason in reasons:
                    self._tell(f"warning: {reason}; see that there are not two primaries now")
                self._server.promote()
            return self._finish(state)

    # --------------------------------------------------------------------------------- keeping

    def _keep(self) -> None:
        """Until somebody else wants to promote it, or did."""
        self._feed.open()
        closing = threading.Event()
        feeding = threading.Thread(
            target=self._feed_until, args=[closing], name="feed", daemon=True
        )
        try:
            self._run_server()
            self._feeder.started_anew()
            feeding.start()
            self._watch()
        except BaseException:
            closing.set()
            self._server.stop()
            raise
        closing.set()
        feeding.join(_TAKE_OVER_SECONDS)

    def _run_server(self) -> None:
        """See that the server runs; what it had just taken when it ended is handed over again."""
        pid = self._server.pid
        if pid is None:
            self._server.start()
            pid = self._server.pid
        if pid != self._pid:
            self._feeder.started_anew()
            self._pid = pid

    def _watch(self) -> None:
        """Until somebody else promotes it, or did."""
        pause, told_at, before = _FIRST_PAUSE_SECONDS, 0.0, ""
        while not self._feed.is_taken_over:
            if self._server.pid != self._pid:
                self._tell("the server has ended, and is started again")
                try:
                    self._run_server()
                    pause = _FIRST_PAUSE_SECONDS
                except TargetFailed as error:
                    self._tell(f"{error}")
                    self._write_down(replace(self._standing(None), problem=f"{error}"))
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    continue
            state = self._server.state()
            if state is not None and not state.recovering:
                return
            if state is not None and state.paused and self._server.lacks_room():
                self._server.stop()  # it is started again with what the primary has got
                continue
            self._feeder.pieces = state is not None and state.archive_mode != "always"
            standing = self._standing(state)
            self.last = standing
            self._write_down(standing)
            if standing.problem != before or time.monotonic() - told_at >= REPORT_SECONDS:
                self._tell(told(standing))
                told_at, before = time.monotonic(), standing.problem
            time.sleep(_LOOK_SECONDS)

    def _feed_until(self, closing: threading.Event) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not closing.wait(_TURN_SECONDS):
            try:
                self._feeder.turn()
                self._failed, pause = None, _FIRST_PAUSE_SECONDS
            except CellarerError as error:
                self._failed = error
            except OSError as error:
                text = f"{error.strerror or error}: {error.filename or self._server.data}"
                hint = "see that there is room, and that the directory can be written"
                self._failed = TargetFailed("no WAL can be handed over", detail=text, hint=hint)
            if self._failed is not None:
                self._logs.forget()
                closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _write_down(self, standing: Standing) -> None:
        with suppress(OSError):  # where the disk is full, the feeding tells so
            self._feed.write_down(standing.to_json())

    # --------------------------------------------------------------------------------- telling

    def _standing(self, state: ServerState | None) -> Standing:
        address, seen = self._server.address, self._feeder.seen
        running = self._server.pid is not None and address is not None
        newest = max(seen.names, key=lambda name: name[8:], default=None)
        known = Standing(
            "standby" if state is None or state.recovering else "primary",
            state.moment if state else "",
            None,
            replayed_lsn=lsn_text(state.lsn) if state else None,
            stored_at=self._stored_at(newest) if newest else None,
            running=running,
            host=address.host if running and address else "",
            port=address.port if running and address else None,
        )
        if state is None:
            unasked = f"the server does not answer: {self._server.said}"
            hint = "it may still replay up to where it is consistent"
            failed = self._failed
            problem = (str(failed), failed.hint) if failed else (unasked, hint)
            return replace(known, problem=problem[0], hint=problem[1])
        if not state.recovering:
            return replace(known, lag_seconds=0.0, timeline=state.timeline)
        timeline = self._timeline(state)
        text, hint = self._trouble(state, timeline)
        late = self._lag(state, timeline)
        return replace(known, lag_seconds=late, timeline=timeline, problem=text, hint=hint)

    def _lag(self, state: ServerState, timeline: int) -> float | None:
        seen, now = self._feeder.seen, self._now()
        oldest = self._feeder.unreplayed(timeline, state.lsn)
        since = self._stored_at(oldest) if oldest else None
        if since is None and self._failed is not None:
            since = seen.at or self._began
        if since is None:
            return 0.0 if seen.at is not None and oldest is None else None
        return max((now - since).total_seconds(), 0.0)

    def _trouble(self, state: ServerState, timeline: int) -> tuple[str, str]:
        if self._failed is not None:
            return str(self._failed), self._failed.hint
        if self._has_gone_astray(state, timeline):
            return (
                f"timeline {timeline} was left before {lsn_text(state.lsn)}, which this standby has"
                " replayed: it cannot follow",
                f"move {self._server.data} away and run again: the standby is made anew",
            )
        if (lost := hidden_behind(timeline, state.lsn, self._feeder.seen.histories)) is not None:
            return (
                f"{history_name(lost)} is missing, without which a newer timeline cannot be found",
                f"push it, if any server has it; else move {self._server.data} away and run again",
            )
        oldest = self._feeder.unreplayed(timeline, state.lsn)
        if oldest and (missing := self._feeder.waits_in_vain(oldest)):
            return (
                f"{missing} is missing, and {oldest} is there, which comes after it",
                "while the primary has it in its pg_wal, `cellarer wal push` stores it; else take a"
                f" base backup, move {self._server.data} away and run again",
            )
        if state.paused:
            return "replay is paused", "run on it: select pg_wal_replay_resume()"
        if state.archive_mode == "always":
            return (
                "archive_mode is always, so it is handed whole segments alone",
                "set archive_mode to on",
            )
        return "", ""

    def _has_gone_astray(self, state: ServerState, timeline: int) -> bool:
        left = left_at(timeline, self._feeder.seen.histories)
        return left is not None and left < state.lsn

    def _timeline(self, state: ServerState) -> int:
        """That of what it replayed last."""
        last = segment_at(1, max(state.lsn - 1, 0), self._segment_bytes)
        name = last.name(self._segment_bytes)
        return self._feed.newest_timeline(name) or state.timeline

    def _stored_at(self, name: str) -> datetime | None:
        """When a file came into the vault; None where that cannot be read now."""
        if name not in self._stored:
            try:
                stored = self._logs.reader(self._system).header(name).stored
            except CellarerError:
                return None
            self._stored = dict(list(self._stored.items())[-8:]) | {name: stored}
        return self._stored[name]

    # ------------------------------------------------------------------------------- promoting

    def _replay_all(self, *, sure: bool) -> ServerState:
        """Hand over all that the vault has, until the server has replayed it. Raises."""
        told_at = time.monotonic()
        while True:
            if self._server.pid is None:
                raise self._server.failure("the standby ended while it replayed")
            state = self._server.state()
            self._feeder.pieces = state is not None and state.archive_mode != "always"
            self._feeder.turn(look=state is not None)
            if state is not None:
                timeline = self._timeline(state)
                if state.paused and self._server.lacks_room():
                    self._server.stop()
                    self._run_server()
                    continue
                self._refuse_stuck(state, timeline)
                self._refuse_gap(state, timeline)
                ended = self._feeder.unreplayed(timeline, state.lsn) is None
                if ended and self._is_proven_end(state, timeline, sure=sure):
                    return state
            if time.monotonic() - told_at >= REPORT_SECONDS / 6:
                told_at = time.monotonic()
                self._tell(told(self._standing(state)))
            time.sleep(_TURN_SECONDS)

    def _refuse_stuck(self, state: ServerState, timeline: int) -> None:
        lost = hidden_behind(timeline, state.lsn, self._feeder.seen.histories) is not None
        astray = lost or self._has_gone_astray(state, timeline)
        if astray or state.paused or state.archive_mode == "always":
            problem, hint = self._trouble(state, timeline)
            raise TargetFailed(f"it is not promoted: {problem}", hint=hint)

    def _refuse_gap(self, state: ServerState, timeline: int) -> None:
        """Raise `DamagedData` where the server waits for what was there once."""
        oldest = self._feeder.unreplayed(timeline, state.lsn)
        if oldest and (missing := self._feeder.waits_in_vain(oldest)):
            try:
                self._logs.reader(self._system).read(missing)
            except WalAbsent:
                return  # of a newer timeline: then that of the older one is wanted
            except DamagedData as error:
                raise self._given_up_by_hand(error) from None

    def _given_up_by_hand(self, error: DamagedData) -> DamagedData:
        error.hint += f". To give up what lies behind it: pg_ctl promote -D {self._server.data}"
        return error

    def _is_proven_end(self, state: ServerState, timeline: int, *, sure: bool) -> bool:
        """Whether no replica has more than the server was handed. Raises where nobody can tell.

        With `sure` the replicas that answer are enough.
        """
        size = self._segment_bytes
        segment = segment_at(timeline, state.lsn, size)
        log = self._logs.reader(self._system)
        left = left_at(timeline, self._feeder.seen.histories)
        for each in (segment, segment.following()):
            name = each.name(size)
            try:
                content = log.read(name)
            except WalAbsent:
                continue
            except VaultUnreachable as error:
                if not sure:
                    error.hint += "; or add --yes, and what only that replica has is given up"
                    raise
                self._tell(f"warning: {error}")
                continue
            except DamagedData as error:
                raise self._given_up_by_hand(error) from None
            end = size if left is None else max(0, left - each.start(size))
            if not self._feeder.has_given(name, content[:end]):
                return False
        try:
            log.read(next_history(self._feeder.seen.histories))
        except WalAbsent:
            return True
        except VaultUnreachable:
            if sure:
                return True
            raise
        return False

    def _recently_stored(self) -> list[str]:
        names = sorted(self._feeder.seen.names, key=lambda name: name[8:])
        newest = {name[:8]: name for name in names}  # what a fork left may lie further on
        stored = filter(None, map(self._stored_at, newest.values()))
        ages = [(self._now() - each).total_seconds() for each in stored]
        told = "WAL came into the vault {:.0f} seconds ago"
        return [told.format(max(age, 0)) for age in ages if age < STILL_WRITES_SECONDS]

    def _finish(self, replayed: ServerState) -> Standing:
        """See that it takes writes, then let go of it."""
        self._server.prove_writes(f"cellarer_{secrets.token_hex(4)}")
        release(self._server.data)
        self._server.reload()
        self._feeder.close()
        self._feed.remove()
        state = self._server.state()
        if state is None:
            raise self._server.failure("the promoted server does not answer", self._server.said)
        if state.synchronous:
            self._tell(f"its commits wait for standbys: synchronous_standby_names is"
                       f" {state.synchronous!r}; empty it where these are gone")  # fmt: skip
        standing = self._standing(state)
        moment = replayed.moment if replayed.recovering else standing.replayed_to
        return replace(standing, replayed_to=moment)
