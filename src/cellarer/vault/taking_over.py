"""Streams that a snapshot takes over from the one before, without reading all of them again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from blake3 import blake3

from cellarer.domain.sums import piece_sum
from cellarer.errors import DamagedData, VaultUnreachable
from cellarer.ports import Held, Patched
from cellarer.vault.chunker import Cuts
from cellarer.vault.format import ID_BYTES
from cellarer.vault.index import ABSENT, PlacedIds
from cellarer.vault.known import Known, load_references
from cellarer.vault.manifest import RunBuilder, StreamReferences
from cellarer.vault.vault import Commit, Vault

_ID = np.dtype(f"V{ID_BYTES}")


class LastSnapshot:
    """The newest snapshot of a source, as far as a writer may build upon it."""

    def __init__(self, vault: Vault, commits: Sequence[Commit], known: Known) -> None:
        self._known = known
        self._streams: dict[bytes, StreamReferences] = {}
        self._numbers = np.empty(0, np.int64)
        newest = [commit for commit in commits if not commit.forgotten][-1:]
        self._point = newest[0].session if newest else ""
        if newest:
            try:
                references = load_references(vault, newest[0])
            except (DamagedData, VaultUnreachable):
                return  # then everything is read again, and a scrub tells why
            self._streams = {stream.name_id: stream for stream in references.streams}
            self._numbers = known.table.find(references.records.rows["id"])

    def take_over(self, name_id: bytes, claim: Held) -> tuple[Cuts, np.ndarray] | None:
        """How a stream is cut, and its runs; None unless each of its records may be built upon."""
        stream = self._streams.get(name_id)
        if stream is None or claim.point != self._point:
            return None
        runs = stream.runs.astype(stream.runs.dtype.newbyteorder("<"))
        numbers = self._numbers[runs["record"]]
        if (numbers == ABSENT).any():
            return None
        runs["record"] = numbers
        return stream.cuts, runs

    def patch(self, name_id: bytes, claim: Patched) -> PatchedStream | None:
        """A stream to be patched; None unless all that it has may be built upon, as is claimed."""
        found = self.take_over(name_id, claim.base)
        if found is None or found[0].page_bytes != claim.piece_bytes:
            return None
        cuts, runs = found
        counts = runs["count"].astype(np.int64)
        starts = np.repeat(runs["first"] - (np.cumsum(counts) - counts), counts)
        records, positions = np.repeat(runs["record"], counts), np.arange(len(starts)) + starts
        ids = self._ids.at(records, positions)
        total = f"{piece_sum(cuts.page_bytes)}:{blake3(ids or b'').hexdigest()}"
        if ids is None or total != claim.base.sum or len(starts) != _count(claim.base, cuts):
            return None
        return PatchedStream(cuts, np.frombuffer(ids, _ID), records, positions, claim)

    @cached_property
    def _ids(self) -> PlacedIds:
        return self._known.index.ids_in(self._numbers[self._numbers != ABSENT])


def _count(claim: Held | Patched, cuts: Cuts) -> int:
    """How many pieces a stream of such a length has."""
    return -(-claim.size_bytes // cuts.page_bytes)


class PatchedStream:
    """The pieces of a stream: where they lie, as in the newest snapshot until they are put anew."""

    def __init__(
        self,
        cuts: Cuts,
        ids: np.ndarray,
        records: np.ndarray,
        positions: np.ndarray,
        claim: Patched,
    ) -> None:
        self.cuts = cuts
        self._size_bytes = claim.size_bytes
        count = _count(claim, cuts)
        # A piece that has another length now is another one.
        kept = min(claim.base.size_bytes, claim.size_bytes) // cuts.page_bytes
        if claim.base.size_bytes == claim.size_bytes:
            kept = count
        self._ids = np.zeros(count, _ID)
        self._records, self._positions = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._there = np.arange(count) < kept
        self._ids[:kept] = ids[:kept]
        self._records[:kept], self._positions[:kept] = records[:kept], positions[:kept]

    def __len__(self) -> int:
        return len(self._ids)

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """How many bytes each of these pieces has."""
        size = self.cuts.page_bytes
        return [min(size, self._size_bytes - number * size) for number in numbers]

    def put(
        self, numbers: Sequence[int], ids: bytes, records: np.ndarray, positions: np.ndarray
    ) -> None:
        """These pieces have these ids, and lie there."""
        at = np.array(numbers, np.int64)
        self._ids[at] = np.frombuffer(ids, _ID)
        self._records[at], self._positions[at] = records, positions
        self._there[at] = True

    @property
    def whole(self) -> bool:
        """Whether every piece is there."""
        return bool(self._there.all())

    @property
    def sum(self) -> str:
        """Over all pieces; see `domain.sums`."""
        return f"{piece_sum(self.cuts.page_bytes)}:{blake3(self._ids.tobytes()).hexdigest()}"

    def runs(self) -> np.ndarray:
        """All pieces in order, as runs."""
        builder = RunBuilder()
        builder.extend(self._records, self._positions)
        return builder.runs()
