"""What a point of kind `postgres_base` says of itself: its last stream, `backup.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cellarer.errors import DamagedData, UsageError
from cellarer.ports import PointReader
from cellarer.postgres.data_directory import CONTROL_FILE

FACTS_PATH = "backup.json"
LABEL_PATH = "backup_label"
TABLESPACE_MAP_PATH = "tablespace_map"
DATA, TABLESPACES, WAL = "data", "tablespaces", "wal"
CONTROL_PATH = f"{DATA}/{CONTROL_FILE}"
FORMAT = 1


@dataclass(frozen=True)
class Tablespace:
    """A tablespace of the source; `path` is where it lay there."""

    oid: int
    name: str
    path: str


@dataclass(frozen=True)
class DamagedPage:
    """A page whose checksum was wrong when it was read."""

    path: str
    database: str
    relation: str
    block: int


@dataclass(frozen=True)
class BackupFacts:
    """All that has to be known to recover from the point. LSNs are text, as `X/XXXXXXXX`.

    Times are the server's, ISO 8601 in UTC. `directories` are paths like those of streams, and
    have to exist even if nothing lies in them.
    """

    system_identifier: str
    timeline: int
    start_lsn: str
    stop_lsn: str
    start_segment: str
    server_version: str
    server_version_num: int
    block_size: int
    wal_segment_size: int
    relation_segment_bytes: int
    checksums: bool
    started_at: str
    finished_at: str
    read: str
    standby: bool
    tablespaces: tuple[Tablespace, ...]
    directories: tuple[str, ...]
    damaged_pages: tuple[DamagedPage, ...]
    label: str

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.server_version_num // 10000

    def to_json(self) -> bytes:
        """The stream."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> BackupFacts:
        """The facts of a stream. Raises `DamagedData` where it is not one."""
        try:
            values = json.loads(data)
            known = {name: values[name] for name in cls.__dataclass_fields__}
            known["tablespaces"] = tuple(_tablespace(one) for one in values["tablespaces"])
            known["directories"] = tuple(str(path) for path in values["directories"])
            known["damaged_pages"] = tuple(DamagedPage(**one) for one in values["damaged_pages"])
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}")
            return cls(**known)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedData(
                f"{FACTS_PATH} is not readable",
                detail=str(error),
                hint="Take another point, or a newer version of cellarer.",
            ) from error


def read_facts(reader: PointReader) -> BackupFacts:
    """The facts of a point. Raises `UsageError` where it is no base backup."""
    if not any(entry.path == FACTS_PATH for entry in reader.entries()):
        raise UsageError(
            f"restore point {reader.point} is no base backup",
            hint="Name a source of kind postgres_base, or restore it to another target.",
        )
    return BackupFacts.parse(b"".join(reader.read(FACTS_PATH)))


def _tablespace(values: Mapping[str, Any]) -> Tablespace:
    return Tablespace(int(values["oid"]), str(values["name"]), str(values["path"]))
