"""Gaps in the log of a cluster, filled from its server while that still has what is missing."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from pathlib import Path

from cellarer.domain.continuity import Gap
from cellarer.domain.wal import Segment, lsn_text
from cellarer.wal.logs import Logs
from cellarer.wal.receiver import Receiver, end_receivers
from cellarer.wal.shipping import Shipper
from cellarer.wal.upstream import Identity, Upstream, receiver_for

LOOK_EVERY_SECONDS = 3600.0
HURRY_EVERY_SECONDS, HURRY_SECONDS = 10.0, 300.0
"""A gap shows once something behind it is stored: after a beginning it is looked for often."""

SEGMENTS_AT_ONCE = 8
"""So many segments are asked for in one turn, between which what is new is shipped."""

_PATIENCE_SECONDS = 60.0


class GapFiller:
    """Looks for gaps once in a while, and fills them a few segments at a time."""

    def __init__(self, upstream: Upstream, logs: Logs, spool: Path) -> None:
        self._upstream, self._logs = upstream, logs
        self._directory = spool / "gaps"
        self._identity: Identity | None = None
        self._look_at = self._hurry_until = 0.0
        self._wanted: list[Segment] = []
        self._closed = threading.Event()

    def note(self, identity: Identity) -> None:
        """Log of this cluster is being received now, so that gaps in it can be asked for."""
        if self._identity != identity:
            self._identity = identity
            self.look_soon()

    def look_soon(self) -> None:
        """There is reason to look: a beginning, or a slot that was gone."""
        self._look_at = time.monotonic()
        self._hurry_until = self._look_at + HURRY_SECONDS

    def close(self) -> None:
        """Ask for nothing more; what is being received is let go."""
        self._closed.set()

    def turn(self) -> None:
        """Look if it is time; ask for some of what is missing. Raises what storing raises."""
        identity = self._identity
        if identity is None or self._closed.is_set():
            return
        if time.monotonic() >= self._look_at:
            hurried = time.monotonic() < self._hurry_until
            self._look_at = time.monotonic() + (
                HURRY_EVERY_SECONDS if hurried else LOOK_EVERY_SECONDS
            )
            found = self._logs.reader(identity.system).continuity()
            self._wanted = [
                segment
                for window in found.windows
                for gap in window.gaps
                for segment in segments_of(gap, identity.segment_bytes)
            ]
        if self._wanted:
            self._fill(identity)

    def _fill(self, identity: Identity) -> None:
        """Ask for the first that is missing and those behind it; give up one that is removed."""
        first = self._wanted[0]
        run = [first]
        for segment in self._wanted[1:SEGMENTS_AT_ONCE]:
            if segment != run[-1].following():
                break
            run.append(segment)
        directory = self._directory / identity.system
        end_receivers(directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        self._receive(identity, directory, run)
        shipper = Shipper(directory, lambda: self._logs.writer(identity.system), list)
        had = set(shipper.files())
        shipper.ship(pieces=False)
        shutil.rmtree(directory, ignore_errors=True)
        got = [segment for segment in run if segment.name(identity.segment_bytes) in had]
        self._wanted = self._wanted[max(len(got), 1) :]

    def _receive(self, identity: Identity, directory: Path, run: list[Segment]) -> None:
        size = identity.segment_bytes
        (directory / f"{run[0].name(size)}.partial").touch(mode=0o600)
        receiver = Receiver(
            receiver_for(identity.version),
            self._upstream.dsn,
            directory,
            f"cellarer-gap-{secrets.token_hex(4)}",
            lambda: None,
            lsn_text(run[-1].end(size)),
        )
        try:
            last, deadline = directory / run[-1].name(size), time.monotonic() + _PATIENCE_SECONDS
            while receiver.running and not last.exists() and time.monotonic() < deadline:
                if self._closed.wait(0.1):
                    break
        finally:
            receiver.stop()


def segments_of(gap: Gap, segment_bytes: int) -> list[Segment]:
    """The segments of which a part or all is missing."""
    first, last = (Segment.parse(name, segment_bytes) for name in (gap.first, gap.last))
    return [Segment(gap.timeline, number) for number in range(first.number, last.number + 1)]
