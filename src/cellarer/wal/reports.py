"""How a stream stands, in a small file on this host; losing it loses nothing but that."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

from cellarer.domain.wal_health import Happened, StreamReport
from cellarer.wal.spool import write_whole


class ReportFile:
    """The file of one source; its directory is made when something is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> StreamReport | None:
        """What was written down last; None where there is nothing, or nothing readable."""
        try:
            value = json.loads(self._path.read_text())
            value["seen"] = datetime.fromisoformat(value["seen"])
            if value["oldest_unstored"]:
                value["oldest_unstored"] = datetime.fromisoformat(value["oldest_unstored"])
            value["happened"] = tuple(
                Happened(datetime.fromisoformat(each["time"]), each["message"])
                for each in value["happened"]
            )
            return StreamReport(**value)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, report: StreamReport) -> None:
        """Write it down instead of what was there. Raises `OSError`."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        value = dataclasses.asdict(report)
        write_whole(self._path, json.dumps(value, default=datetime.isoformat).encode())
