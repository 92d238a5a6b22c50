"""What a backup need not read, as the last point holds it: whole files, or pages of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellarer.domain.sums import piece_bytes_of
from cellarer.ports import Held
from cellarer.postgres.base_files import BaseFile, locator_of, segment_of
from cellarer.postgres.base_pages import Layout
from cellarer.postgres.base_stamps import Beginning, Stamps
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.cluster_facts import ClusterFacts
from cellarer.postgres.wal_summaries import ChangedBlocks, Span, blocks_changed


@dataclass(frozen=True)
class Partly:
    """A file is as in a point but for its length and these pieces, in ascending order."""

    base: Held
    piece_bytes: int
    numbers: Sequence[int]


class Changes:
    """Compares files with those of the last point.

    Pages are left unread only where the server ran all the time since, on one timeline: whoever
    changes files behind its back (`pg_checksums`, `pg_rewind`, a volume that is put back) has to
    stop it. And only where they have checksums: then hint bits are logged, and it shows where one
    was read while it was written.
    """

    def __init__(
        self,
        connection: Connection,
        cluster: ClusterFacts,
        stamps: Stamps,
        beginning: Beginning,
        layout: Layout,
    ) -> None:
        self._stamps, self._layout = stamps, layout
        self._changed: ChangedBlocks | None = None
        last = stamps.beginning
        if (
            cluster.tells_pages
            and last is not None
            and (last.timeline, last.server_started)
            == (beginning.timeline, beginning.server_started)
            and last.lsn <= beginning.lsn
        ):
            span = Span(beginning.timeline, last.lsn, beginning.lsn)
            self._changed = blocks_changed(connection, span)

    def claim(self, file: BaseFile, found: os.stat_result) -> Held | Partly | None:
        """How a file is what the last point holds; None where it is to be read as a whole."""
        unchanged = self._stamps.unchanged(file.path, found)
        if unchanged is not None or self._changed is None:
            return unchanged
        base = self._stamps.held(file.path)
        if base is None:
            return None
        unsettled = self._stamps.unsettled(file.path)
        return pieces_to_read(
            file.path, base, found.st_size, self._changed, self._layout, unsettled
        )


def pieces_to_read(
    path: str,
    base: Held,
    size_bytes: int,
    changed: ChangedBlocks,
    layout: Layout,
    unsettled: Sequence[int] = (),
) -> Partly | None:
    """What to read of a relation's file, of which a point holds `base`; None for all of it.

    `changed` is what was written since that point began, by the log; of the `unsettled` pages it
    tells nothing, nor of the first one of some indexes, where they note what is of no weight.
    """
    page = layout.page_bytes
    piece = piece_bytes_of(base.sum.partition(":")[0])
    if not piece or piece % page:
        return None  # nobody knows the sums of its pieces
    if size_bytes % page or base.size_bytes % page:
        return None  # somebody is just making it longer, or it is none of pages
    relation = locator_of(path)
    touched = changed.of(relation) if relation else None
    if touched is None:
        return None
    blocks, limit = touched
    first = segment_of(path) * (layout.segment_bytes // page)
    inside = blocks[(blocks >= first) & (blocks < first + size_bytes // page)] - first
    again = np.array([number for number in {0, *unsettled} if number < size_bytes // page], int)
    needed = np.zeros(-(-size_bytes // piece), bool)
    needed[inside // (piece // page)] = True
    needed[again // (piece // page)] = True
    if size_bytes != base.size_bytes:
        needed[min(size_bytes, base.size_bytes) // piece :] = True
    if limit is not None:
        needed[max(limit - first, 0) // (piece // page) :] = True
    return Partly(base, piece, np.flatnonzero(needed).tolist())
