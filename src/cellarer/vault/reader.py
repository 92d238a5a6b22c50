"""Reading a restore point: every chunk authenticated, every stream compared with its sum."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData, KeyUnusable, UsageError
from cellarer.ports import Hasher
from cellarer.vault.crypto import keyed_id
from cellarer.vault.fetcher import RecordFetcher
from cellarer.vault.hashers import stream_hasher
from cellarer.vault.known import load_references
from cellarer.vault.manifest import LARGEST_CONTENTS, StreamReferences, parse_contents
from cellarer.vault.opening import check_chunks
from cellarer.vault.record import Chunks
from cellarer.vault.tombstones import tombstones
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writer import CONTENTS

BATCHES_AHEAD = 6
PACKS_AHEAD = 2
"""So many packs are on their way while one is opened: to a cloud, two requests at once besides."""

_OPENERS = 4
_FEW_RUNS = 2
_MOST_RUNS, _MOST_RECORDS = 64, 2
"""Of a batch that one thread joins: with records of 512 KiB it is a megabyte or less."""


class SnapshotReader:
    """A restore point opened with the identity; implements `ports.PointReader`."""

    def __init__(self, vault: Vault, commit: Commit) -> None:
        self._vault, self._commit = vault, commit
        references = load_references(vault, commit)
        self._records = references.records
        self._fetcher = RecordFetcher(vault, references.records)
        # Shared by all streams, of which several may be read at once; a thread starts when needed.
        self._openers = ThreadPoolExecutor(_OPENERS, "open")
        self._fetchers = ThreadPoolExecutor(PACKS_AHEAD, "fetch")
        self._id_key = vault.domain_key(commit.source)
        if not references.streams or references.streams[-1].name_id != self._name_id(CONTENTS):
            raise DamagedData(f"the manifest of {commit.session} has no contents")
        *streams, contents = references.streams
        self._entries = parse_contents(self._small(contents))
        self._streams = {stream.name_id: stream for stream in streams}
        self._by_path = {entry.path: entry for entry in self._entries}
        if not len(self._by_path) == len(self._streams) == len(self._entries) == len(streams):
            raise DamagedData(f"contents and references of {commit.session} differ")

    @property
    def point(self) -> str:
        """The id of the restore point."""
        return self._commit.session

    @property
    def commit(self) -> Commit:
        """What the signed record says of it."""
        return self._commit

    def entries(self) -> Sequence[Entry]:
        """All streams, in the order in which they were written."""
        return self._entries

    def read(self, path: str) -> Iterator[bytes]:
        """One stream in blocks; see `ports.PointReader.read`."""
        entry = self._by_path.get(path)
        if entry is None:
            raise UsageError(
                f"{self.point} holds no {path}", hint=f"`cellarer show {self.point}` lists it"
            )
        stream = self._streams.get(self._name_id(path))
        if stream is None:
            raise DamagedData(f"the manifest of {self.point} lacks {path}")
        kind, _, expected = entry.sum.partition(":")
        digest, size = self.hasher(kind), 0
        for block in self._whole(stream):
            digest.update(block)
            size += len(block)
            if size > entry.size_bytes:
                break  # runs may go on for terabytes
            yield block
        if digest.hexdigest() != expected or size != entry.size_bytes:
            raise DamagedData(
                f"{path} of {self.point} is not what was backed up",
                detail=f"{size} bytes of {entry.size_bytes}, the sum differs",
                hint="run `cellarer verify` on an older point and restore that one",
            )

    def broken(self, suspects: Collection[str]) -> list[str]:
        """The paths of streams with a record that no replica has whole, which are thus lost.

        `suspects` are the packs and sessions whose records are looked at; those as well that are
        not where they were, and may be in a suspect's pack now.
        """
        lost = set()
        self._fetcher.look_for_moves()
        for number, place in enumerate(self._records):
            places = {place.pack, *(moved.pack for moved in self._fetcher.moved(place))}
            if place.session in suspects or not places.isdisjoint(suspects):
                try:
                    check_chunks(self._id_key, place.id, self._fetcher.chunks(place))
                except (DamagedData, KeyUnusable):
                    lost.add(number)
        wanted = np.array(sorted(lost), np.int64)
        return [
            entry.path
            for entry in self._entries
            if (stream := self._streams.get(self._name_id(entry.path))) is None
            or np.isin(stream.runs["record"], wanted).any()
        ]

    def hasher(self, kind: str) -> Hasher:
        """See `ports.PointReader.hasher`."""
        return stream_hasher(kind, self._id_key)

    def _whole(self, stream: StreamReferences) -> Iterator[bytes]:
        try:
            yield from self._chunks(stream)
        except DamagedData as error:
            if self.point not in tombstones(self._vault):
                raise
            raise DamagedData(
                f"{self.point} was given up by retention, and collected while it was read",
                detail=str(error),
                hint="restore another point; `cellarer points hold` keeps one that is wanted",
            ) from error

    def _name_id(self, path: str) -> bytes:
        return keyed_id(self._id_key, b"name/" + path.encode())

    def _small(self, stream: StreamReferences) -> bytes:
        """A stream as a whole. Raises `DamagedData` where it is too large for that."""
        parts, size = [], 0
        for block in self._chunks(stream):
            size += len(block)
            if size > LARGEST_CONTENTS:
                raise DamagedData(f"the contents of {self.point} are too large to be true")
            parts.append(block)
        return b"".join(parts)

    def _chunks(self, stream: StreamReferences) -> Iterator[bytes]:
        """The chunks of a stream, joined by runs, with records opened ahead in threads."""
        if len(stream.runs) <= _FEW_RUNS:
            # Handing them to threads would take longer than opening them here.
            for run in stream.runs:
                chunks = self._fetcher.chunks(self._records[int(run["record"])])
                yield bytes(chunks.joined(int(run["first"]), int(run["count"])))
            return
        ahead: deque[Future[bytes]] = deque()
        upcoming = self._packs_ahead(stream.runs)
        try:
            coming = next(upcoming, None)
            for begin, end in _batches(stream.runs):
                while coming and coming[0] < end:
                    self._fetchers.submit(self._fetcher.fetch_ahead, coming[1])
                    coming = next(upcoming, None)
                ahead.append(self._openers.submit(self._joined, stream.runs[begin:end]))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _joined(self, runs: np.ndarray) -> bytes:
        """The chunks of some runs. A record that several of them are in is asked for once."""
        opened: dict[int, Chunks] = {}
        pieces = []
        for record, first, count in runs.tolist():
            chunks = opened.get(record)
            if chunks is None:
                chunks = opened[record] = self._fetcher.chunks(self._records[record])
            pieces.append(chunks.joined(first, count))
        return b"".join(pieces)

    def _packs_ahead(self, runs: np.ndarray) -> Iterator[tuple[int, str]]:
        """The packs that runs come to, each with the number of the run at which to ask for it.

        That is where the run comes to the pack that lies `PACKS_AHEAD` before it.
        """
        packs = self._records.rows["pack"][runs["record"]]
        differs = np.ones(len(packs), bool)
        differs[1:] = packs[1:] != packs[:-1]
        changes = np.flatnonzero(differs)
        asked_at = np.concatenate((np.zeros(PACKS_AHEAD, np.int64), changes))
        for at, change in zip(asked_at, changes, strict=False):
            yield int(at), self._records.packs[int(packs[change])]


def _batches(runs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs that are read together, [begin, end): such as lie in a few records, and not too many.

    A stream that changed here and there has a run for every few pages.
    """
    begin, records = 0, set[int]()
    for number, record in enumerate(runs["record"].tolist()):
        if number - begin >= _MOST_RUNS or len(records | {record}) > _MOST_RECORDS:
            yield begin, number
            begin, records = number, set()
        records.add(record)
    if begin < len(runs):
        yield begin, len(runs)
