"""PostgreSQL's files beside and of its log, as far as they have to be looked into."""

from __future__ import annotations

import struct
from pathlib import Path

PAGE_BYTES = 8192
"""The block size of WAL (`XLOG_BLCKSZ`) in every build that is distributed."""


def control_system(data_directory: Path) -> str | None:
    """The system identifier of the cluster in a data directory, None where there is no cluster.

    The first field of `ControlFileData` in PostgreSQL's `catalog/pg_control.h`.
    """
    try:
        with (data_directory / "global" / "pg_control").open("rb") as file:
            return str(struct.unpack("=Q", file.read(8))[0])
    except (OSError, struct.error):
        return None


def data_end(path: Path, start: int) -> int:
    """Where the log in a segment's file ends that is being received; the rest of it is zeros.

    Every page of log begins with a header, so the first without one was never written. Looked for
    from `start` on. Zeros at the very end of what was written cannot be told from the rest, and
    need not be: a reader fills up with zeros.
    """
    end, at = start, start - start % PAGE_BYTES
    with path.open("rb") as file:
        file.seek(at)
        while page := file.read(PAGE_BYTES):
            written = len(page.rstrip(b"\0"))
            if not written:
                break
            end, at = max(end, at + written), at + len(page)
    return end
