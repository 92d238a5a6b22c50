"""Opening packs with the identity: every record authenticates, every chunk is what its id says.

A record's id is a keyed hash of the ids of its chunks, and each of these one of a chunk. So what
opens here is, chunk for chunk, what the manifests name. Whether a manifest puts chunks together
right is for a verification to say, which compares whole streams with their sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from blake3 import blake3

from cellarer.errors import DamagedData
from cellarer.vault import format as layout
from cellarer.vault.crypto import RecordCipher, keyed_id
from cellarer.vault.departed import Departed
from cellarer.vault.index import RecordTable, open_segment
from cellarer.vault.known import load_references
from cellarer.vault.log_opening import LogOpener
from cellarer.vault.manifest import References
from cellarer.vault.pack import MAGIC, TableOfContents, read_toc
from cellarer.vault.record import open_record
from cellarer.vault.vault import Commit, Vault

_DIGEST_BYTES = 16


class Opener:
    """Opens what restore points may need. Safe to use from several threads.

    It keeps 16 bytes of each pack's table of contents as the index has it.
    """

    def __init__(self, vault: Vault, commits: Sequence[Commit]) -> None:
        self._vault, self._log = vault, LogOpener(vault)
        self._sources = {commit.session: commit.source for commit in commits}
        self._references = {str(commit.body["references"]) for commit in commits}
        self._ciphers: dict[str, tuple[RecordCipher, bytes]] = {}
        self._indexed = {pack: _digest(toc) for pack, toc in _segments(vault, commits)}

    def check(self, key: str, data: bytes) -> None:
        """Open a pack or a meta object, whose bytes are those of its name; or a file of WAL.

        Raises `DamagedData`, and `KeyUnusable` where the identity does not open a session.
        """
        if key.startswith(layout.WAL_PREFIX):
            self._log.open(key, data)
            return
        if key in self._references:
            References.unseal(self._vault.index_key, data)
        if not data.startswith(MAGIC):
            return
        toc = read_toc(data, self._vault.index_key)
        if self._indexed.get(key, b"") not in (b"", _digest(toc)):
            raise DamagedData(f"the index tells otherwise of {key} than its table of contents")
        at = 0
        for row in toc.records:
            end = at + int(row["chunks"])
            session = toc.sessions[int(row["session"])]
            # What a session left that never was a restore point nobody needs.
            if session in self._sources:
                record_id = row["id"].tobytes()
                cipher, id_key = self._cipher(session)
                start = int(row["offset"])
                sealed = memoryview(data)[start : start + int(row["length"])]
                chunks = open_record(cipher, record_id, sealed)
                ids = check_chunks(id_key, record_id, chunks)
                lengths = [len(chunk) for chunk in chunks]
                told = toc.chunk_ids[at * layout.ID_BYTES : end * layout.ID_BYTES]
                if ids != told or lengths != toc.chunk_lengths[at:end].tolist():
                    raise DamagedData(f"the table of contents of {key} is not that of its records")
            at = end

    def _cipher(self, session: str) -> tuple[RecordCipher, bytes]:
        found = self._ciphers.get(session)
        if found is None:
            root = self._vault.session_root(session)
            cipher = RecordCipher(bytes.fromhex(self._vault.id), session, root)
            found = cipher, self._vault.domain_key(self._sources[session])
            self._ciphers[session] = found
        return found


def check_chunks(id_key: bytes, record_id: bytes, chunks: Iterable[memoryview]) -> bytes:
    """The ids of a record's chunks, computed anew. Raises `DamagedData` if the record has others.

    That it authenticates says who wrote it; this says that it is what manifests mean.
    """
    ids = b"".join(keyed_id(id_key, chunk) for chunk in chunks)
    if keyed_id(id_key, ids) != record_id:
        raise DamagedData("a record does not hold the chunks that it is named for")
    return ids


def opened_wholly(vault: Vault, commits: Sequence[Commit], closed: Collection[str]) -> list[Commit]:
    """Those of some points of which every record lies in a pack where it was opened.

    All packs were, except `closed` ones. What was opened in a pack is what the index says of it:
    `Opener` compares the two. A pack that the index does not know counts as not opened.
    """
    known = _Places(vault, vault.commits(forgotten=True))
    return [
        commit
        for commit in commits
        if commit.body["references"] not in closed and known.hold(vault, commit, closed)
    ]


class _Places:
    """Where all records lie, by the index: 40 bytes each, sorted by pack and offset."""

    def __init__(self, vault: Vault, commits: Sequence[Commit]) -> None:
        self._departed = Departed(vault)
        table = RecordTable()
        packs: dict[str, int] = {}
        numbers = [np.empty(0, np.int64)]
        for pack, toc in _segments(vault, commits):
            if pack not in packs:
                packs[pack] = len(packs)
                numbers.append(table.enter(pack, toc))
        places = table.places(np.concatenate(numbers))
        self._packs = packs
        self._sessions = {session: number for number, session in enumerate(places.sessions)}
        keys = _place(places.rows["pack"], places.rows["offset"])
        order = np.argsort(keys)
        self._keys, self._rows = keys[order], places.rows[order]

    def hold(self, vault: Vault, commit: Commit, closed: Collection[str]) -> bool:
        """Whether all records of a point are where its references say."""
        try:
            wanted = load_references(vault, commit).records
        except DamagedData:
            return False
        packs = {*wanted.packs}
        if not (packs | self._departed.behind(wanted)).isdisjoint(closed):
            return False
        if not self._packs.keys() >= packs:
            return False
        if not self._sessions.keys() >= {*wanted.sessions}:
            return False
        if not len(wanted.rows):
            return True
        numbers = np.array([self._packs[name] for name in wanted.packs])[wanted.rows["pack"]]
        sessions = np.array([self._sessions[s] for s in wanted.sessions])[wanted.rows["session"]]
        keys = _place(numbers, wanted.rows["offset"])
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._rows[at]
        same = (self._keys[at] == keys) & (found["session"] == sessions)
        for name in ("id", "length"):
            same &= found[name] == wanted.rows[name]
        return bool(same.all())


def _place(packs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return packs.astype(np.uint64) << np.uint64(32) | offsets.astype(np.uint64)


def _segments(vault: Vault, commits: Sequence[Commit]) -> Iterator[tuple[str, TableOfContents]]:
    """The packs that the index segments of some points speak of, a segment at a time."""
    sessions = {commit.session for commit in commits}
    sessions |= {repack.session for repack in vault.repacks()}
    listings = vault.replicas.listings(layout.INDEX_PREFIX).values()
    for key in sorted({key for found in listings for key in found}):
        if key.split("/")[1] in sessions:
            for packs in vault.gather([key], lambda key: _open(vault, key)):
                yield from packs


def _open(vault: Vault, key: str) -> list[tuple[str, TableOfContents]]:
    return vault.replicas.fetch(key, lambda data: list(open_segment(vault.index_key, data)))


def _digest(toc: TableOfContents) -> bytes:
    return blake3(toc.to_bytes()).digest(_DIGEST_BYTES)
