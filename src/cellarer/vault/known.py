"""What a writer may leave out: the chunks that committed snapshots of its source hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from cellarer.vault.session_keys import SessionKeys
from cellarer.vault.vault import Commit, Vault

MOST_CHUNKS = 1 << 22
"""As many chunks as one snapshot may have are known besides those of the newest: 100 MB. Where a
source keeps more, what only its older snapshots hold is stored again at worst."""

_BATCH_BYTES = 16 << 20


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
    most_chunks: int = MOST_CHUNKS,
) -> Known:
    """What these snapshots of one source stored; what unfinished sessions did never counts.

    A pack counts only if all of `replicas` list it and it is not `unfit`, which was read before: a
    new snapshot never points to what is gone, about to be deleted, or damaged. Nor does it point to
    records of a session whose key is (see `SessionKeys`). What was repacked is found where it lies
    now. All packs of the newest snapshot count; of the others, newest sessions first, those that
    come before `most_chunks`.
    """
    known = Known(ChunkIndex(), RecordTable(), {})
    if not commits:
        return known
    sealed_by = {commit.session for commit in commits}
    newest = _newest(vault, commits)
    known.cuts.update(newest.cuts)
    keys = SessionKeys(vault, replicas, unfit)
    # Those that the new snapshot will build upon most come first, while some are still read.
    keys.whole(Counter({s: n for s, n in newest.records.items() if s in sealed_by}))
    wanted = {commit.session for commit in commits if {*replicas} <= {*commit.replicas}}
    repacks = {r.session: r for r in vault.repacks() if {*replicas} <= {*r.replicas}}
    stored = _on_all(vault, replicas) - unfit
    needed = set(newest.packs)
    for sources, targets in _moved(vault, repacks.values(), stored):
        stored -= sources
        needed |= targets if sources & needed else set()
    needed &= stored

    def segment(key: str) -> list[tuple[str, TableOfContents]]:
        return vault.replicas.fetch(key, lambda data: list(open_segment(vault.index_key, data)))

    for batch in _newest_first(vault, wanted | repacks.keys(), unfit):
        full = len(known.index) >= most_chunks
        if full and not needed:
            break
        packs = [
            (pack, toc.of(sealed_by))
            for found in vault.gather(batch, segment)
            for pack, toc in found
            if pack in (needed if full else stored)
        ]
        _enter(known, packs, keys)
        needed -= {pack for pack, _ in packs}
    return known


def _enter(known: Known, packs: Sequence[tuple[str, TableOfContents]], keys: SessionKeys) -> None:
    records: Counter[str] = Counter()
    for _, toc in packs:
        records.update(_counted(toc.sessions, toc.records["session"]))
    openable = keys.whole(records)
    for pack, toc in packs:
        enter_pack(known.index, known.table, pack, toc.of(openable))


@dataclass(frozen=True)
class _Newest:
    """What the newest snapshot says: cuts of its streams, its packs, records of each session."""

    cuts: dict[bytes, tuple[Cuts, int]]
    packs: Sequence[str]
    records: Mapping[str, int]


def _newest(vault: Vault, commits: Sequence[Commit]) -> _Newest:
    """Of the last snapshot that was not given up; of nothing where there is none, or it is lost."""

    def read(key: str) -> _Newest:
        references = load_references(vault, last[key])
        cuts = {s.name_id: (s.cuts, s.length) for s in references.streams}
        places = references.records
        return _Newest(cuts, places.packs, _counted(places.sessions, places.rows["session"]))

    last = {c.body["references"]: c for c in [c for c in commits if not c.forgotten][-1:]}
    return next(iter(vault.gather(last, read)), _Newest({}, [], {}))


def _counted(sessions: Sequence[str], numbers: np.ndarray) -> dict[str, int]:
    """How often each session is meant by numbers that count in the list of them."""
    counts = np.bincount(numbers, minlength=len(sessions)).tolist()
    return {session: n for session, n in zip(sessions, counts, strict=True) if n}


def _newest_first(
    vault: Vault, sessions: AbstractSet[str], unfit: AbstractSet[str]
) -> Iterator[list[str]]:
    """The segments of these sessions in batches that fit in memory together."""
    sizes: dict[str, int] = {}
    for found in vault.replicas.listings(layout.INDEX_PREFIX).values():
        sizes |= {key: size for key, size in found.items() if key.split("/")[1] in sessions}
    batch: list[str] = []
    held = 0
    for key in sorted(sizes.keys() - unfit, reverse=True):
        if batch and held + sizes[key] > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(key)
        held += sizes[key]
    if batch:
        yield batch


def _moved(
    vault: Vault, repacks: Iterable[Repack], stored: AbstractSet[str]
) -> list[tuple[set[str], set[str]]]:
    """Packs whose living records lie in other packs, too, and those packs, for each repack.

    Building on the former would keep them for ever.
    """
    names = {repack.moves for repack in repacks} & stored

    def packs(name: str) -> tuple[set[str], set[str]]:
        table = load_moves(vault, name)
        return (table.sources, table.targets) if table.targets <= stored else (set(), set())

    return vault.gather(names, packs)


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
