"""What a writer may leave out: the chunks that committed snapshots of its source hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from cellarer.vault import format as layout
from cellarer.vault.chunker import Cuts
from cellarer.vault.index import ChunkIndex, RecordTable, enter_pack, open_segment
from cellarer.vault.manifest import References
from cellarer.vault.moved import load_moves
from cellarer.vault.pack import TableOfContents
from cellarer.vault.registers import Repack
from cellarer.vault.session_keys import session_keys
from cellarer.vault.vault import Commit, Vault


@dataclass(frozen=True)
class Known:
    """Stored chunks, where their records lie, and how the newest snapshot's streams were cut.

    `cuts` has the name id of each stream, its cuts and its length.
    """

    index: ChunkIndex
    table: RecordTable
    cuts: dict[bytes, tuple[Cuts, int]]


def load_known(
    vault: Vault,
    commits: Sequence[Commit],
    replicas: Collection[str],
    unfit: AbstractSet[str] = frozenset(),
) -> Known:
    """What these snapshots of one source stored; what unfinished sessions did never counts.

    A pack counts only if all of `replicas` list it and it is not `unfit`, which was read before: a
    new snapshot never points to what is gone, about to be deleted, or damaged. Nor does it point to
    records of a session whose key is (see `session_keys`). What was repacked is found where it lies
    now.
    """
    known = Known(ChunkIndex(), RecordTable(), {})
    if not commits:
        return known
    sealed_by = {commit.session for commit in commits}
    wanted = {commit.session for commit in commits if {*replicas} <= {*commit.replicas}}
    repacks = {r.session: r for r in vault.repacks() if {*replicas} <= {*r.replicas}}
    keys: set[str] = set()
    for found in vault.replicas.listings(layout.INDEX_PREFIX).values():
        keys.update(key for key in found if key.split("/")[1] in wanted | repacks.keys())

    keys -= unfit
    stored = _on_all(vault, replicas) - unfit
    stored -= _repacked(vault, repacks.values(), stored)

    def segment(key: str) -> list[tuple[str, TableOfContents]]:
        return vault.replicas.fetch(key, lambda data: list(open_segment(vault.index_key, data)))

    packs = [
        (pack, toc.of(sealed_by))
        for found in vault.gather(keys, segment)
        for pack, toc in found
        if pack in stored
    ]
    openable = session_keys(vault, _sessions_of_records(packs), replicas, unfit)
    for pack, toc in packs:
        enter_pack(known.index, known.table, pack, toc.of(openable))
    newest = {c.body["references"]: c for c in [c for c in commits if not c.forgotten][-1:]}
    for references in vault.gather(newest, lambda key: load_references(vault, newest[key])):
        known.cuts.update((s.name_id, (s.cuts, s.length)) for s in references.streams)
    return known


def _sessions_of_records(packs: Iterable[tuple[str, TableOfContents]]) -> Counter[str]:
    """The sessions that packs have records of, with how many."""
    records: Counter[str] = Counter()
    for _, toc in packs:
        counts = np.bincount(toc.records["session"], minlength=len(toc.sessions)).tolist()
        records.update({s: n for s, n in zip(toc.sessions, counts, strict=True) if n})
    return records


def _repacked(vault: Vault, repacks: Iterable[Repack], stored: AbstractSet[str]) -> set[str]:
    """Packs whose living records lie elsewhere, too: building on them would keep them for ever."""
    names = {repack.moves for repack in repacks} & stored

    def sources(name: str) -> set[str]:
        table = load_moves(vault, name)
        return table.sources if table.targets <= stored else set()

    return set().union(*vault.gather(names, sources))


def _on_all(vault: Vault, replicas: Collection[str]) -> set[str]:
    """The packs that every one of these replicas lists."""
    stored: list[set[str]] = []
    for prefix in (layout.PACKS_PREFIX, layout.META_PREFIX):
        listings = vault.replicas.listings(prefix)
        stored.append(set.intersection(*(set(listings.get(name, ())) for name in replicas)))
    return set.union(*stored)


def load_references(vault: Vault, commit: Commit) -> References:
    """The references of a snapshot, checked against the name of their object."""
    key = commit.body["references"]

    def check(data: bytes) -> References:
        # The seal says only that these are references of this vault, the name says which ones.
        return References.unseal(vault.index_key, layout.check_content_name(key, data))

    return vault.replicas.fetch(key, check)
