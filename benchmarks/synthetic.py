"""Makes a large vault fast: real, valid objects around very small chunks.

Everything is made by the program's own code and can be opened, listed, restored and collected; only
the way round the stores and the threads of a backup is short. Its shape is that of years of use:
half of all chunks came with the first snapshot of one large source, the others a few at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from blake3 import blake3

from cellarer.domain.snapshot import Entry
from cellarer.domain.sums import SUM
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.chunker import Cuts
from cellarer.vault.founding import Made
from cellarer.vault.index import RecordTable, seal_segment
from cellarer.vault.manifest import RUN_FIELDS, References, StreamReferences, contents_lines
from cellarer.vault.pack import SealedPack, build_pack
from cellarer.vault.record import RecordSealer, SealedRecord

CHUNK_BYTES = 24
CHUNKS_IN_RECORD = 100
RECORDS_IN_PACK = 32
PACKS_IN_SEGMENT = 20
BEGUN = datetime(2025, 1, 1, tzinfo=UTC)
APART = timedelta(minutes=15)
STREAM = "shop/data/public/orders"


@dataclass
class _Source:
    """What the snapshots of one source have come to: its stream only grows."""

    name: str
    id_key: bytes
    table: RecordTable = field(default_factory=RecordTable)
    numbers: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    digest: blake3 = field(default_factory=blake3)
    size_bytes: int = 0


class SyntheticVault:
    """Writes sessions into the directory of a local store that holds a new vault."""

    def __init__(self, directory: Path, made: Made) -> None:
        self._directory, self._made = directory, made
        self._signer = made.write_key.signer
        self._index = made.write_key.index
        self._previous = ""
        self._previous_entry = ""

    def fill(self, chunks: int, snapshots: int, sources: int) -> None:
        """So many snapshots in turn of so many sources, with so many chunks in all."""
        chunk_ids = self._made.write_key.chunk_ids
        every = [
            _Source(name, crypto.derive(chunk_ids, f"cellarer/1/domain/{name}"))
            for name in (f"source-{n:02d}" for n in range(sources))
        ]
        few = chunks // 2 // snapshots
        for number in range(snapshots):
            moment = BEGUN + number * APART
            new = few if number else chunks - few * (snapshots - 1)
            self._session(every[number % sources], moment, new)

    def _session(self, source: _Source, moment: datetime, new: int) -> None:
        session, root = layout.new_session(moment), crypto.new_key()
        vault = self._made.vault_id
        announcement: dict[str, object] = {
            "commitment": blake3(root).hexdigest(),
            "session": session,
            "started": layout.time_text(moment),
            "vault": vault,
            "writer": self._made.write_key.writer,
        }
        signed = self._signer.sign("session", announcement)
        self._store(layout.session_key(session), signed)
        envelope = layout.canonical_json({"root": root.hex(), "session": session, "vault": vault})
        sealed = crypto.seal_to_recipients(envelope, self._made.recipients)
        self._store(layout.envelope_key(session), sealed)
        cipher = crypto.RecordCipher(bytes.fromhex(vault), session, root)
        sealer = RecordSealer(cipher, session, source.id_key)
        records = (_record(source, sealer, count) for count in _parts(new))
        self._packs(source, session, layout.PACKS_PREFIX, records)
        references = self._manifest(source, session, sealer)
        self._register(source, session, moment, references, new)

    def _manifest(self, source: _Source, session: str, sealer: RecordSealer) -> str:
        """Store the contents and the references of the stream as it is now; their name."""
        total = f"{SUM}:{source.digest.hexdigest()}"
        contents = b"".join(contents_lines([Entry(STREAM, "table", source.size_bytes, total)]))
        chunk_id = crypto.keyed_id(source.id_key, contents)
        record = sealer.seal(chunk_id, np.array([len(contents)]), [contents])
        runs = np.zeros(len(source.numbers), RUN_FIELDS)
        runs["record"], runs["count"] = np.arange(len(runs)), source.counts
        (last,) = self._packs(source, session, layout.META_PREFIX, iter([record]))
        places = source.table.places(np.array([*source.numbers, last]))
        last_run = np.array([(len(runs), 0, 1)], RUN_FIELDS)
        streams = [
            StreamReferences(_name_id(source, STREAM), Cuts(12), runs),
            StreamReferences(_name_id(source, "contents"), Cuts(12), last_run),
        ]
        data = References(places, streams).seal(self._index)
        key = layout.object_key(layout.META_PREFIX, hashlib.sha256(data).hexdigest())
        self._store(key, data)
        return key

    def _packs(
        self, source: _Source, session: str, prefix: str, records: Iterator[SealedRecord]
    ) -> list[int]:
        """Store records in packs and their index; the numbers of the records."""
        numbers: list[int] = []
        unindexed: list[tuple[str, SealedPack]] = []
        segments = itertools.count(0 if prefix == layout.PACKS_PREFIX else 100_000)

        def index() -> None:
            data = seal_segment(self._index, [(key, pack.toc) for key, pack in unindexed])
            self._store(layout.index_key(session, next(segments)), data)
            unindexed.clear()

        while batch := list(itertools.islice(records, RECORDS_IN_PACK)):
            pack = build_pack(batch, self._index)
            key = layout.object_key(prefix, pack.sha256)
            ids = pack.toc.records["id"].tolist()
            places = dict(zip(ids, _enter(source, key, pack), strict=True))
            numbers += [places[record.id] for record in batch]
            self._store(key, pack.data)
            unindexed.append((key, pack))
            if len(unindexed) == PACKS_IN_SEGMENT:
                index()
        if unindexed:
            index()
        if prefix == layout.PACKS_PREFIX:
            source.numbers += numbers
        return numbers

    def _register(
        self, source: _Source, session: str, moment: datetime, references: str, new: int
    ) -> None:
        inner: dict[str, object] = {
            "added_bytes": new * CHUNK_BYTES,
            "finished": layout.time_text(moment + timedelta(seconds=20)),
            "kind": "postgres_dump",
            "note": {},
            "objects": 4,
            "previous": self._previous,
            "read_bytes": source.size_bytes,
            "references": references,
            "seconds": 20,
            "source": source.name,
            "started": layout.time_text(moment),
            "stored_bytes": new * CHUNK_BYTES,
            "streams": 1,
        }
        body: dict[str, object] = {
            "outcome": "commit",
            "sealed": crypto.sealed_text(self._index, inner, f"snapshot {session}"),
            "session": session,
            "vault": self._made.vault_id,
            "writer": self._made.write_key.writer,
        }
        data = self._signer.sign("snapshot", body)
        self._store(layout.snapshot_key(session), data)
        self._previous = hashlib.sha256(data).hexdigest()

    def prove(self, signer: crypto.Signer, points: Sequence[str], source: str) -> None:
        """Append a proof of each of these points to the ledger."""
        for number, point in enumerate(points):
            moment = BEGUN + number * APART
            key = layout.ledger_key(moment)
            fact: dict[str, object] = {
                "checks": [["restore", True, "", ""], ["rows", True, "7", "7"]],
                "passed": True,
                "point": point,
                "proof": "proven",
                "seconds": 3.5,
                "source": source,
                "time": layout.time_text(moment),
                "type": "proof",
            }
            body: dict[str, object] = {
                "key": key,
                "previous": self._previous_entry,
                "sealed": crypto.sealed_text(self._index, fact, f"ledger {key}"),
                "vault": self._made.vault_id,
            }
            data = signer.sign("ledger", body)
            self._store(key, data)
            self._previous_entry = hashlib.sha256(data).hexdigest()

    def _store(self, key: str, data: bytes) -> None:
        target = self._directory / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _parts(new: int) -> Iterator[int]:
    """How many chunks go into each record."""
    whole, rest = divmod(new, CHUNKS_IN_RECORD)
    yield from [CHUNKS_IN_RECORD] * whole
    if rest:
        yield rest


def _record(source: _Source, sealer: RecordSealer, count: int) -> SealedRecord:
    content = secrets.token_bytes(CHUNK_BYTES * count)
    chunks = (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))
    ids = b"".join(crypto.keyed_id(source.id_key, chunk) for chunk in chunks)
    source.digest.update(content)
    source.size_bytes += len(content)
    source.counts.append(count)
    return sealer.seal(ids, np.full(count, CHUNK_BYTES), [content])


def _enter(source: _Source, key: str, pack: SealedPack) -> list[int]:
    return [int(number) for number in source.table.enter(key, pack.toc)]


def _name_id(source: _Source, path: str) -> bytes:
    return crypto.keyed_id(source.id_key, b"name/" + path.encode())


def sessions_in(directory: Path) -> list[str]:
    """The sessions that a vault in a directory has registers of, oldest first."""
    return sorted(path.name for path in (directory / "snapshots").iterdir())


def config_text(replica: Path, sources: int) -> str:
    """A config of such a vault, with its key files beside it."""
    lines = [
        "[retention]\ndaily = 30\nweekly = 8\nmonthly = 12",
        '[product]\nname = "scale"\n[vault]\nwrite_key = { file = "write.key" }',
        'identity = { file = "identity.age" }\ncollect_key = { file = "collect.key" }',
        f'[[vault.replicas]]\nname = "local"\nurl = {json.dumps(replica.as_uri())}',
    ]
    lines += [
        f'[sources.source-{n:02d}]\nkind = "postgres_dump"\ndsn = "postgresql://nowhere/x"'
        for n in range(sources)
    ]
    return "\n".join(lines) + "\n"
