"""Continuous log: `pg_receivewal` writes it into a directory, and from there it goes to the vault.

One thread watches: the receiver, the slot, the room. Another one ships, and may wait for a store.
The slot is moved to what the vault holds on as many replicas as must have it, never further: what
is lost between server and vault is asked of the server again, and the directory may be lost, too.
Whatever ends, whether killed or cut off, is begun anew after a pause; the place to go on from is
in the vault, at the server and in the names of files, and not in memory.
"""

from __future__ import annotations

import collections
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import history_name, lsn_text, segment_at
from cellarer.domain.wal_health import TOLD_FOR, Happened, StreamReport
from cellarer.errors import CellarerError, SourceFailed
from cellarer.wal.beginning import seed, timeline_at
from cellarer.wal.gaps import GapFiller
from cellarer.wal.logs import Logs
from cellarer.wal.receiver import REMOVED, Receiver, end_receivers
from cellarer.wal.reports import ReportFile
from cellarer.wal.shipping import Shipper
from cellarer.wal.spool import alone, write_whole
from cellarer.wal.upstream import LOST, Identity, Observed, Slot, Upstream, receiver_for

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
LAST_WORDS_SECONDS = 10.0
"""How long the end of a stream waits for what is left to be stored; the server keeps it, too."""

_TICK_SECONDS = 1.0
_LOOK_SECONDS = 10.0
_NARROW_SECONDS = 20.0
_NO_ROOM = "No space left on device"


@dataclass(frozen=True)
class StreamSettings:
    """What the config says of a stream."""

    source: str
    slot: str
    flush_every_seconds: float
    spool: Path
    spool_limit_bytes: int
    when_full: str
    heartbeat: bool


class Streamer:
    """One source's stream. `run` goes on until its process is told to end."""

    def __init__(
        self,
        settings: StreamSettings,
        upstream: Upstream,
        logs: Logs,
        reports: ReportFile,
        now: Callable[[], datetime],
        tell: Callable[[str], None],
    ) -> None:
        self._settings, self._upstream, self._logs = settings, upstream, logs
        self._reports, self._now, self._tell = reports, now, tell
        before = reports.load() or StreamReport(settings.source, now())
        self._report = replace(before, streaming=False, full=False, problem="", hint="")
        self._name = f"cellarer-wal-{secrets.token_hex(4)}"
        self._shippers: dict[str, Shipper] = {}
        self._heard, self._wake = threading.Event(), threading.Event()
        self._pieces_due, self._closing = threading.Event(), threading.Event()
        self._receiving = self._promoted = False
        self._written: int | None = None
        self._sighting: tuple[str, Sighting | None] | None = None
        self._beatless: tuple[str, str] | None = None
        self._failed: Exception | None = None
        self._flushed: collections.deque[tuple[datetime, int]] = collections.deque()
        self._gaps = GapFiller(upstream, logs, settings.spool)

    def run(self) -> None:
        """Stream for good. Raises `UsageError` where another process does already."""
        spool = self._settings.spool
        with alone(spool):
            for path in spool.iterdir():
                if path.name.isdecimal():
                    self._shipper(path.name)
            shipping = threading.Thread(target=self._ship_for_good, name="ship", daemon=True)
            shipping.start()
            try:
                self._stream_for_good()
            finally:
                self._gaps.close()
                self._closing.set()
                self._pieces_due.set()
                self._wake.set()
                shipping.join(LAST_WORDS_SECONDS)
                self._keep(streaming=False)

    def drop_slot(self) -> bool:
        """Drop the slot on request, and say whether there was one."""
        with alone(self._settings.spool):
            if self._upstream.slot() is None:
                return False
            self._upstream.drop_slot()
            self._keep(slot_status="", held_bytes=0)
            return True

    # ------------------------------------------------------------------------------- receiving

    def _stream_for_good(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            began = time.monotonic()
            try:
                self._stream()
            except CellarerError as error:
                self._keep(streaming=False, problem=str(error), hint=error.hint)
            except OSError as error:
                hint = f"see that {self._settings.spool} can be written"
                self._keep(streaming=False, problem=f"the spool cannot be used: {error}", hint=hint)
            if time.monotonic() - began > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _stream(self) -> None:
        """Receive until the receiver ends, whatever the reason. Raises `CellarerError`."""
        identity, histories = self._upstream.identify()
        shipper = self._shipper(identity.system)
        shipper.directory.mkdir(mode=0o700, exist_ok=True)
        for timeline, history in histories.items():
            write_whole(shipper.directory / history_name(timeline), history)
        self._promoted |= 0 < self._report.timeline < identity.timeline
        self._keep(system=identity.system, timeline=identity.timeline)
        self._wait_for_room(identity, shipper)
        slot = self._slot_for()
        assert slot.restart_lsn is not None
        timeline = timeline_at(slot.restart_lsn, identity.timeline, histories)
        end_receivers(shipper.directory)
        wanted = segment_at(timeline, slot.restart_lsn, identity.segment_bytes)
        seed(shipper.directory, shipper.files(), wanted, identity.segment_bytes)
        self._receiving = True
        receiver = Receiver(
            receiver_for(identity.version),
            self._upstream.dsn,
            shipper.directory,
            self._name,
            self._on_word,
        )
        try:
            self._watch(receiver, identity, shipper)
        finally:
            receiver.stop()
            self._receiving, self._written = False, None
            self._pieces_due.set()
            self._wake.set()
        if receiver.said and _NO_ROOM not in receiver.said:
            raise SourceFailed("pg_receivewal ended", detail=receiver.said, hint=_hint(receiver))

    def _watch(self, receiver: Receiver, identity: Identity, shipper: Shipper) -> None:
        every, looked = min(self._settings.flush_every_seconds, _LOOK_SECONDS), 0.0
        while receiver.running and self._has_room(identity, shipper):
            self._heard.wait(_TICK_SECONDS)
            self._heard.clear()
            if time.monotonic() - looked >= every:
                looked = time.monotonic()
                self._beat()
                observed = self._observe(shipper)
                if observed.slot is None or observed.slot.status == LOST:
                    return  # made anew by whoever comes next
                self._gaps.note(identity)
                self._written = observed.written_lsn
                self._sighting = identity.system, observed.sighting
                if self._written is not None:
                    self._pieces_due.set()
                    self._wake.set()
                self._advance(observed.slot, shipper)
                self._keep(streaming=True, full=False, **self._trouble(observed))

    def _on_word(self) -> None:
        """The receiver said something: a segment is complete, or it ended."""
        self._heard.set()
        self._wake.set()

    def _observe(self, shipper: Shipper) -> Observed:
        observed = self._upstream.observe(self._name, self._report.timeline)
        now = self._now()
        # What the slot was moved past is stored; of a new one nothing else is known.
        resting = observed.slot.restart_lsn if observed.slot else None
        stored = max(shipper.stored.lsn if shipper.stored else 0, resting or 0)
        if not self._flushed or self._flushed[-1][1] < observed.flush_lsn:
            self._flushed.append((now, observed.flush_lsn))
        while self._flushed and self._flushed[0][1] <= stored:
            self._flushed.popleft()
        slot = observed.slot
        self._report = replace(
            self._report,
            flush_lsn=observed.flush_lsn,
            stored_lsn=stored or self._report.stored_lsn,
            oldest_unstored=self._flushed[0][0] if self._flushed else None,
            slot=self._settings.slot,
            slot_status=slot.status if slot else "",
            safe_bytes=slot.safe_bytes if slot else None,
            held_bytes=observed.held_bytes,
        )
        return observed

    def _trouble(self, observed: Observed) -> dict[str, str]:
        """What is wrong although log is received."""
        if self._failed is not None:
            hint = getattr(self._failed, "hint", "") or "see `cellarer status`"
            return {"problem": f"log cannot be stored: {self._failed}", "hint": hint}
        if observed.written_lsn is None and not self._upstream.sees_receivers():
            return {
                "problem": "the role may not see how far its own receiver is, so only whole "
                "segments are stored",
                "hint": "run on the server: grant pg_read_all_stats to ROLE",
            }
        if self._beatless is not None:
            return {"problem": self._beatless[0], "hint": self._beatless[1]}
        return {"problem": "", "hint": ""}

    def _beat(self) -> None:
        """Leave a sign of life in the log. Without it log is received all the same."""
        self._beatless = None
        if not self._settings.heartbeat:
            return
        try:
            if not self._upstream.beat():
                self._beatless = ("no heartbeat can be written: the server is a standby",
                                  'set heartbeat = "none", or stream from the primary')  # fmt: skip
        except SourceFailed as error:
            self._beatless = (f"no heartbeat can be written: {error.detail}",
                              "let the role execute pg_logical_emit_message, or set "
                              'heartbeat = "none"')  # fmt: skip

    # ------------------------------------------------------------------------------------ slot

    def _slot_for(self) -> Slot:
        """The slot, made where it is missing; one that was there before is missed aloud.

        But not of a server that was promoted: it never had it, and `doctor` tells of gaps.
        """
        slot = self._upstream.slot()
        if slot is not None and (slot.status == LOST or slot.restart_lsn is None):
            self._upstream.drop_slot()
            self._happened(f"the slot {self._settings.slot} was {slot.status or 'unused'}, and was "
                           "dropped: the server had removed log that it should keep")  # fmt: skip
            slot = None
        if slot is None:
            slot = self._upstream.create_slot()
            if self._report.stored_lsn is not None and not self._promoted:
                begins = slot.restart_lsn or 0
                lost = ("nothing is missing" if begins <= self._report.stored_lsn else
                        "what the server had removed meanwhile is a gap")  # fmt: skip
                self._happened(f"the slot {self._settings.slot} was gone, and was made anew from "
                               f"{lsn_text(begins)} on; {lost}")  # fmt: skip
            self._gaps.look_soon()
        self._promoted = False
        return slot

    def _advance(self, slot: Slot, shipper: Shipper) -> None:
        """Let go of what the vault holds. Also of nothing: a slot that rests may time out."""
        stored = shipper.stored.lsn if shipper.stored else 0
        target = max(stored, slot.restart_lsn or 0)
        if target:
            self._upstream.advance_slot(target)

    # ------------------------------------------------------------------------------------ room

    def _has_room(self, identity: Identity, shipper: Shipper) -> bool:
        """Whether two more segments may come: the one that is written, and the one begun next."""
        more = 2 * identity.segment_bytes
        used = shipper.size_bytes()
        self._report = replace(
            self._report, spool_bytes=used, spool_limit_bytes=self._settings.spool_limit_bytes,
            when_full=self._settings.when_full,
        )  # fmt: skip
        small = used + more > self._settings.spool_limit_bytes
        return not small and (not used or self._disk_has_room(identity, shipper))

    def _disk_has_room(self, identity: Identity, shipper: Shipper) -> bool:
        found = os.statvfs(shipper.directory)
        return found.f_bavail * found.f_frsize >= 2 * identity.segment_bytes

    def _wait_for_room(self, identity: Identity, shipper: Shipper) -> None:
        """While the spool is full, the server holds its log; unless its disk is to be spared."""
        began = time.monotonic()
        while not self._has_room(identity, shipper):
            self._wake.set()
            observed = self._observe(shipper)
            held = self._report.held_bytes
            # But for what is being written all is stored, so that storing makes no room.
            narrow = (
                time.monotonic() - began > _NARROW_SECONDS
                and len(shipper.files()) <= 1
                and not self._disk_has_room(identity, shipper)
            )
            if (
                self._settings.when_full == "drop-slot"
                and observed.slot is not None
                and (self._failed is not None or narrow)
                and held > self._settings.spool_limit_bytes
            ):
                self._upstream.drop_slot()
                why = "the spool has no room" if narrow else "the vault took nothing"
                self._happened(
                    f"the slot {self._settings.slot} was dropped, as when_full says: {why}, and "
                    f"the server held {held} bytes"
                )
                observed = self._observe(shipper)
            elif observed.slot is not None and observed.slot.restart_lsn is not None:
                self._advance(observed.slot, shipper)
            trouble = {
                "problem": "the spool is full, and receiving pauses",
                "hint": f"let the vault take what lies in {shipper.directory}, or give it room",
            }
            if narrow:
                trouble["problem"] = "the disk of the spool has no room for another segment"
                trouble["hint"] = (
                    f"make room for two segments at least below {self._settings.spool}, or name "
                    "another directory as spool"
                )
            self._keep(streaming=False, full=True, **trouble)
            time.sleep(_TICK_SECONDS)

    # -------------------------------------------------------------------------------- shipping

    def _ship_for_good(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            closing, written, sighting = self._closing.is_set(), self._written, self._sighting
            # What is being written just now may be seen in part, unless it is known how far.
            pieces = self._pieces_due.is_set() and (written is not None or not self._receiving)
            self._pieces_due.clear()
            try:
                for system, shipper in list(self._shippers.items()):
                    seen = sighting[1] if sighting and sighting[0] == system else None
                    shipper.ship(pieces=pieces, written_lsn=written, sighting=seen)
                if not closing:
                    self._gaps.turn()
                self._failed, pause = None, FIRST_PAUSE_SECONDS
            except (CellarerError, OSError) as error:
                self._failed = error
                self._logs.forget()
                for shipper in self._shippers.values():
                    shipper.forget()
                self._pieces_due.set()
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if closing:
                return

    def _shipper(self, system: str) -> Shipper:
        if system not in self._shippers:
            self._shippers[system] = Shipper(
                self._settings.spool / system,
                lambda: self._logs.writer(system),
                lambda: self._logs.reader(system).names(),
            )
            self._pieces_due.set()
            self._wake.set()
        return self._shippers[system]

    # --------------------------------------------------------------------------------- telling

    def _happened(self, message: str) -> None:
        now = self._now()
        lately = [each for each in self._report.happened if now - each.time < TOLD_FOR]
        self._report = replace(self._report, happened=(*lately[-9:], Happened(now, message)))
        self._tell(message)

    def _keep(self, **changes: object) -> None:
        """Write down how it stands, and tell what is new of it."""
        before = self._report.problem
        self._report = replace(self._report, seen=self._now(), **changes)  # type: ignore[arg-type]
        if self._report.problem != before:
            self._tell(self._report.problem or "all is well again")
        with suppress(OSError):  # a report that is missing is missed: `status` says so
            self._reports.keep(self._report)


def _hint(receiver: Receiver) -> str:
    if REMOVED in receiver.said:
        return "the slot does not keep what it should: see max_slot_wal_keep_size; a gap is left"
    return "it is begun anew by itself; see the server's log where that does not help"
