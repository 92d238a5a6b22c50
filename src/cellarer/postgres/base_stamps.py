"""What a host remembers of the files that it backed up, to leave unread what has not changed.

A file is as it was if its size, inode, and the times of its content and of its inode are the same
*and* those times lay before the backup that read it began, by the clock that stamps them. A write
that comes after the reading gets a time that is not before the beginning, so it cannot bear the
same stamp, however coarse the clock is. The beginning is before the checkpoint that a backup starts
with: the kernel stamps a file before it copies what is written, and that checkpoint has waited only
for writes that began before it. Losing what is remembered costs a reading, nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellarer import places
from cellarer.domain.snapshot import Entry
from cellarer.ports import Held
from cellarer.postgres.base_pages import MOST_UNSETTLED

_FORMAT = 3

Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Beginning:
    """Where the log of a server was when a backup began, and since when it ran, by its own word."""

    timeline: int
    lsn: int
    server_started: str


@dataclass(frozen=True)
class _File:
    """A file of the last point. It was `settled` if a later change of it shows in its stamp.

    `unsettled_pages` may have changed since without a word in the log.
    """

    stamp: Stamp
    sum: str
    settled: bool
    unsettled_pages: tuple[int, ...]


class Stamps:
    """The stamps of one source, kept in `path`; empty where there is nothing that can be read."""

    def __init__(self, path: Path, system: str) -> None:
        self._path, self._system = path, system
        self._point, self.beginning, self._known = _loaded(path, system)
        self._seen: dict[str, Stamp] = {}
        self._kept: set[str] = set()

    def unchanged(self, path: str, found: os.stat_result) -> Held | None:
        """That a stream is as in the point that is remembered, if that is certain."""
        stamp = _stamp(found)
        self._seen[path] = stamp
        known = self._known.get(path)
        if known is None or not known.settled or known.stamp != stamp:
            return None
        self._kept.add(path)
        return self.held(path)

    def held(self, path: str) -> Held | None:
        """What the point that is remembered holds of a file, whatever became of that."""
        known = self._known.get(path)
        return Held(self._point, known.stamp[0], known.sum) if known else None

    def unsettled(self, path: str) -> Sequence[int]:
        """The pages of that file of which the log may tell nothing."""
        known = self._known.get(path)
        return known.unsettled_pages if known else ()

    def save(
        self,
        point: str,
        entries: Sequence[Entry],
        began_ns: int,
        beginning: Beginning,
        damaged: Collection[str],
        unsettled: Mapping[str, Collection[int]],
    ) -> None:
        """Remember the files as they are in a point, but for the `damaged` ones.

        Those are read each time, so that each point tells of them. `began_ns` is when the backup
        began, by the clock of the file system: of files written later the stamp tells nothing. Of
        the `unsettled` pages of files that were read the log may tell nothing. Raises `OSError`.
        """
        pages = {path: set(self.unsettled(path)) for path in self._kept}
        pages |= {path: {*found, *pages.get(path, ())} for path, found in unsettled.items()}
        files = {
            entry.path: [*stamp, entry.sum, max(stamp[1], stamp[2]) < began_ns, sorted(own)]
            for entry in entries
            if entry.path not in damaged
            and (stamp := self._seen.get(entry.path))
            and entry.size_bytes == stamp[0]
            and len(own := pages.get(entry.path, ())) <= MOST_UNSETTLED
        }
        content = {
            "format": _FORMAT,
            "system": self._system,
            "point": point,
            "timeline": beginning.timeline,
            "lsn": beginning.lsn,
            "server_started": beginning.server_started,
            "files": files,
        }
        places.keep(self._path, json.dumps(content))

    def forget(self) -> None:
        """Everything is to be read this time."""
        self._known, self.beginning = {}, None


def _stamp(found: os.stat_result) -> Stamp:
    return (
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
        found.st_dev,
    )


def _loaded(path: Path, system: str) -> tuple[str, Beginning | None, dict[str, _File]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["system"] != system:
            return "", None, {}
        beginning = Beginning(
            int(content["timeline"]), int(content["lsn"]), str(content["server_started"])
        )
        files = {
            str(name): _File(
                (int(a), int(b), int(c), int(d), int(e)),
                str(total),
                settled is True,
                tuple(map(int, unsettled)),
            )
            for name, (a, b, c, d, e, total, settled, unsettled) in content["files"].items()
        }
        return str(content["point"]), beginning, files
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError),
    ):
        return "", None, {}
