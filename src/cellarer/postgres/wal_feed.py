"""Hands WAL to a recovering server through its own standard input and output.

The server's restore_command asks on its standard output and waits for the answer on its standard
input, both of which are ours: no process has to start for a segment, no key leaves this process,
and a server whose owner was killed gets no answer, which ends its recovery instead of promoting a
database that lacks the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from cellarer.domain.wal import following_names
from cellarer.errors import CellarerError, TargetFailed
from cellarer.postgres.account import Account

ASKING_COMMAND = (
    'echo "%f %p" && read -r said && case "$said" in given) exit 0;; absent) exit 1;; esac;'
    " exit 200"
)
"""As restore_command: 1 says that recovery may end here, 200 that it must stop."""

_AHEAD_BYTES = 96 * 2**20
_READERS = 3
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")

Read = Callable[[str], bytes | None]
"""One file of the log by its name; None where it is proven that there is none."""


class WalFeed:
    """Answers one server at a time. `error` is what ended the feeding, if anything did.

    `last` is the last segment that there should be: as long as it was not asked for, recovery is
    not let choose a new timeline, which is how it ends.
    """

    def __init__(self, read: Read, segment_bytes: int, last: str | None = None) -> None:
        self.error: CellarerError | None = None
        self.given = 0
        self._read = read
        self._segment_bytes = segment_bytes
        self._last = last
        self._ahead: dict[str, Future[bytes | None]] = {}
        self._readers = ThreadPoolExecutor(_READERS, "wal")
        self._asked: str | None = None

    def serve(self, questions: IO[bytes], answers: IO[bytes], data: Path, account: Account) -> None:
        """Answer until the server is gone. Meant for a thread of its own."""
        self._asked = None
        for line in questions:
            name, _, path = line.decode("ascii", "replace").strip().partition(" ")
            try:
                answer = self._answer(name, data / path, account)
            except CellarerError as error:
                self.error, answer = error, "failed"
            except OSError as error:
                self.error, answer = _unwritable(data / path, error), "failed"
            with suppress(BrokenPipeError):
                answers.write(f"{answer}\n".encode())
                answers.flush()

    def end_here(self) -> None:
        """The target was reached before the last segment: from here on recovery may end."""
        self._last = None

    def close(self) -> None:
        """Read no more."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _answer(self, name: str, path: Path, account: Account) -> str:
        if _SEGMENT.fullmatch(name):
            self._asked = max(self._asked or name, name, key=_position)
        elif (history := _HISTORY.fullmatch(name)) and self._ends_early(int(history[1], 16)):
            raise self._early(f"it read no further than {self._asked}")
        content = self._content(name)
        if content is None:
            if name == self._last:
                raise self._early("this segment is not there any more")
            return "absent"
        _write(path, content, account)
        self.given += 1
        return "given"

    def _ends_early(self, timeline: int) -> bool:
        """Whether a question for this history can only mean that recovery takes itself for done."""
        if self._last is None or self._asked is None or timeline <= int(self._last[:8], 16):
            return False
        return _position(self._asked) < _position(self._last)

    def _early(self, detail: str) -> TargetFailed:
        return TargetFailed(
            f"recovery would have ended before {self._last}, the last WAL that there is",
            detail=detail,
            hint="Run `cellarer wal status` for gaps, and recover to a time before them.",
        )

    def _content(self, name: str) -> bytes | None:
        prefetched = self._ahead.pop(name, None)
        if _SEGMENT.fullmatch(name):
            self._read_ahead(name)
        if prefetched is not None:
            # What was absent or failed a moment ago may be there now.
            with suppress(CellarerError, OSError):
                if (content := prefetched.result()) is not None:
                    return content
        return self._read(name)

    def _read_ahead(self, name: str) -> None:
        count = max(1, _AHEAD_BYTES // self._segment_bytes)
        wanted = following_names(name, count, self._segment_bytes)
        for gone in set(self._ahead) - set(wanted):
            self._ahead.pop(gone).cancel()
        for name in wanted:
            if name not in self._ahead and (not self._last or name <= self._last):
                self._ahead[name] = self._readers.submit(self._read, name)


def _position(name: str) -> str:
    """What orders segments of one history, whatever their timelines."""
    return name[8:]


def _write(path: Path, content: bytes, account: Account) -> None:
    """The file as the server's own, never through a link that lies there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if account.uid is not None and account.gid is not None:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(content)


def _unwritable(path: Path, error: OSError) -> TargetFailed:
    return TargetFailed(
        f"cannot write {path}",
        detail=error.strerror or str(error),
        hint="Free some space there, then run again.",
    )
