"""Streams that a snapshot takes over from the one before, without reading them again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellarer.errors import DamagedData, VaultUnreachable
from cellarer.vault.chunker import Cuts
from cellarer.vault.index import ABSENT
from cellarer.vault.known import Known, load_references
from cellarer.vault.manifest import StreamReferences
from cellarer.vault.vault import Commit, Vault


class LastSnapshot:
    """The newest snapshot of a source, as far as a writer may build upon it."""

    def __init__(self, vault: Vault, commits: Sequence[Commit], known: Known) -> None:
        self._streams: dict[bytes, StreamReferences] = {}
        self._numbers = np.empty(0, np.int64)
        newest = [commit for commit in commits if not commit.forgotten][-1:]
        self.point = newest[0].session if newest else ""
        if newest:
            try:
                references = load_references(vault, newest[0])
            except (DamagedData, VaultUnreachable):
                return  # then everything is read again, and a scrub tells why
            self._streams = {stream.name_id: stream for stream in references.streams}
            self._numbers = known.table.find(references.records.rows["id"])

    def take_over(self, name_id: bytes) -> tuple[Cuts, np.ndarray] | None:
        """How a stream is cut, and its runs; None unless each of its records may be built upon."""
        stream = self._streams.get(name_id)
        if stream is None:
            return None
        runs = stream.runs.astype(stream.runs.dtype.newbyteorder("<"))
        numbers = self._numbers[runs["record"]]
        if (numbers == ABSENT).any():
            return None
        runs["record"] = numbers
        return stream.cuts, runs
