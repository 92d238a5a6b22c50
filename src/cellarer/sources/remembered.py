"""What a host remembers of a source's last point, to leave unread what has not changed.

Losing it costs a reading, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cellarer import places
from cellarer.domain.snapshot import Entry
from cellarer.ports import Held


class Remembered:
    """The streams of the newest point, kept in `path`: size, sum, and a mark of what each was of.

    A mark is whatever tells that a thing is the same as then; the source chooses what does. What
    cannot be read counts as nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._point = path, ""
        self._known: dict[str, tuple[str, int, str]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            for name, (mark, size, total) in found["streams"].items():
                self._known[str(name)] = str(mark), int(size), str(total)
            self._point = str(found["point"])

    def unchanged(self, path: str, mark: str) -> Held | None:
        """That a stream is what the point holds, if it bore the same mark then."""
        known = self._known.get(path)
        if known is None or known[0] != mark:
            return None
        return Held(self._point, known[1], known[2])

    @property
    def streams(self) -> int:
        """How many there are."""
        return len(self._known)

    def forget(self) -> None:
        """Everything is to be read this time."""
        self._known = {}

    def save(self, point: str, entries: Sequence[Entry], marks: Mapping[str, str]) -> None:
        """Remember those streams of a point that have a mark. Raises `OSError`."""
        streams = {
            entry.path: [marks[entry.path], entry.size_bytes, entry.sum]
            for entry in entries
            if entry.path in marks
        }
        places.keep(self._path, json.dumps({"point": point, "streams": streams}))
