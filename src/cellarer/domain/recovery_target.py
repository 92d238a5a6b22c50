"""Where a recovery that replays WAL shall stop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cellarer.errors import UsageError

Kind = Literal["latest", "immediate", "time", "lsn", "xid", "name"]
LATEST, CURRENT = "latest", "current"

_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
_TIMELINE = re.compile(r"0*[1-9][0-9]{0,9}|0x[0-9A-Fa-f]{1,8}")


@dataclass(frozen=True)
class RecoveryTarget:
    """A moment in the history of a server.

    `value` is a time in ISO 8601 with its offset, an LSN, a transaction's number or a restore
    point's name, by the `kind`; empty for `latest`, the end of all WAL there is, and `immediate`,
    the end of the base backup. `timeline` is `latest`, `current` (the base backup's) or a number.
    `inclusive` says whether the transaction at the very moment is in.
    """

    kind: Kind = "latest"
    value: str = ""
    timeline: str = LATEST
    inclusive: bool = True

    @property
    def time(self) -> datetime | None:
        """The time to stop at, where that is the target."""
        return datetime.fromisoformat(self.value) if self.kind == "time" else None

    @property
    def text(self) -> str:
        """As a person would say it."""
        if self.kind == "latest":
            return "the end of the WAL"
        if self.kind == "immediate":
            return "the end of the base backup"
        if self.time is not None:
            shown = f"{self.time.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".")
            words = f"{shown} UTC"
        else:
            kinds = {"lsn": "LSN", "xid": "transaction", "name": "restore point"}
            words = f"{kinds[self.kind]} {self.value}"
        return words if self.inclusive else f"just before {words}"


def recovery_target(
    *,
    at: datetime | None = None,
    lsn: str | None = None,
    xid: str | None = None,
    name: str | None = None,
    moment: str | None = None,
    timeline: str = LATEST,
    exclusive: bool = False,
) -> RecoveryTarget:
    """The target that options name; `moment` is `latest` or `immediate`. Raises `UsageError`."""
    wanted: dict[Kind, str | None] = {
        "time": at.astimezone(UTC).isoformat(sep=" ", timespec="microseconds") if at else None,
        "lsn": lsn,
        "xid": xid,
        "name": name,
    }
    given = [kind for kind, value in wanted.items() if value is not None]
    if len(given) + (moment is not None) > 1:
        raise UsageError(
            "only one moment can be recovered to",
            hint="give one of --at, --lsn, --xid, --name, latest and immediate",
        )
    if timeline not in (LATEST, CURRENT):
        if not _TIMELINE.fullmatch(timeline):
            raise UsageError(
                f"{timeline} is no timeline",
                hint="give latest, current, or a number as `cellarer points` shows it",
            )
        timeline = str(int(timeline, 16 if timeline.startswith("0x") else 10))
    if not given:
        if exclusive:
            raise UsageError("--exclusive needs --at, --lsn or --xid", hint="leave it out")
        kind: Kind = "immediate" if moment == "immediate" else "latest"
        return RecoveryTarget(kind, timeline=timeline)
    if given[0] == "name" and exclusive:
        raise UsageError("a named restore point has nothing before it", hint="drop --exclusive")
    value = wanted[given[0]] or ""
    _refuse_malformed(given[0], value)
    return RecoveryTarget(given[0], value, timeline, not exclusive)


def _refuse_malformed(kind: Kind, value: str) -> None:
    if kind == "lsn" and not _LSN.fullmatch(value):
        raise UsageError(f"{value} is no LSN", hint="write it as 16/B374D848")
    if kind == "xid" and not (value.isascii() and value.isdecimal()):
        raise UsageError(f"{value} is no transaction's number", hint="write it in decimal")
    if kind == "name" and not 0 < len(value.encode()) < 64:
        raise UsageError(
            "no restore point has such a name",
            hint="names are of 1 to 63 bytes, as given once to pg_create_restore_point()",
        )
