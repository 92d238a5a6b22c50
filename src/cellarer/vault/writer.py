"""Writing one snapshot: streams in, packs out, and the commit as the last write.

    stream -> chunks -> known? -> records (compress, seal) -> packs -> every replica at once
                                                         then index, manifest, COMMIT

Only the calling thread touches the state here; compressing and sealing, and the uploads, run in
threads with bounded queues, so memory stays the same whatever the size of a stream.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any

from blake3 import blake3

from cellarer.domain.snapshot import Entry
from cellarer.errors import (
    CellarerError,
    DamagedData,
    SourceFailed,
    StoreError,
    UsageError,
    VaultUnreachable,
)
from cellarer.ports import Stream
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.chunker import Chunker, chunk_bits
from cellarer.vault.format import ID_BYTES
from cellarer.vault.index import ABSENT
from cellarer.vault.keys import WriteKey
from cellarer.vault.known import Known, load_known
from cellarer.vault.ledger import last_damage
from cellarer.vault.manifest import References, RunBuilder, StreamReferences, contents_lines
from cellarer.vault.packer import Packer
from cellarer.vault.record import RECORD_BYTES, RecordSealer, SealedRecord
from cellarer.vault.replicas import Writing
from cellarer.vault.vault import Commit, Vault

SEALING_THREADS = 2
RECORDS_IN_FLIGHT = 6
CONTENTS = "contents"

_BATCH_CHUNKS = 256
_FRESH_CHUNKS = 1 << 14


class SnapshotWriter:
    """One session. `add` streams, then `commit`, or `abandon`."""

    def __init__(self, vault: Vault, source: str, kind: str, now: Callable[[], datetime]) -> None:
        if vault.write_key is None:
            raise UsageError(
                "this host has no write key",
                hint="set vault.write_key in cellarer.toml to back up from here",
            )
        self._vault, self._source, self._kind, self._now = vault, source, kind, now
        self._write_key: WriteKey = vault.write_key
        self._signer = vault.signer_for("session")
        self.started = now()
        self.session = layout.new_session(self.started)
        current = current_replicas(vault, vault.commits())
        self._writing = Writing(current, vault.replicas.write_quorum)
        self._pool = ThreadPoolExecutor(SEALING_THREADS, "seal")
        self._undecided = False
        try:
            self._announce()
            self._begin()
        except BaseException:
            self.abandon()
            raise

    def add(self, stream: Stream) -> None:
        """Read a stream to its end and store what is new in it.

        Raises `SourceFailed` for a second stream of the same path: only one could be read back.
        """
        if stream.path in self._paths:
            raise SourceFailed(f"{self._source} gives two streams named {stream.path}")
        self._paths.add(stream.path)
        self._entries.append(self._store(stream, self._packer))

    def commit(self, note: dict[str, object] | None = None) -> Commit:
        """Make everything added one restore point: the last write of all."""
        self._finish(self._packer)
        self._store(Stream(CONTENTS, CONTENTS, contents_lines(self._entries)), self._meta_packer)
        self._finish(self._meta_packer)
        references = self._references().seal(self._vault.index_key)
        name = layout.object_key(layout.META_PREFIX, hashlib.sha256(references).hexdigest())
        self._writing.put(name, references)
        inner = self._record(name, len(references), note or {})
        return self._register(inner)

    def abandon(self) -> None:
        """Stop; what was written stays unreferenced and a collector may take it away.

        The session's register is closed with an ABORT where that can be done, so that no collector
        need wait for it. Not after a COMMIT was tried: some replica may have it.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._undecided:
            self._undecided = False
            for upload in self._writing.start(*self._signed_register("abort")):
                upload.result()
        self._writing.close()

    @property
    def streams(self) -> int:
        """How many streams were added so far."""
        return len(self._entries)

    @property
    def behind(self) -> dict[str, CellarerError]:
        """Replicas that dropped out during this session, with the reason."""
        return self._writing.failed

    def _announce(self) -> None:
        root = crypto.new_key()
        announcement: dict[str, object] = {
            "commitment": blake3(root).hexdigest(),
            "session": self.session,
            "started": layout.time_text(self.started),
            "vault": self._vault.id,
            "writer": self._write_key.writer,
        }
        signed = self._signer.sign("session", announcement)
        self._undecided = True
        self._writing.put(layout.session_key(self.session), signed)
        envelope = {
            "root": root.hex(),
            "session": self.session,
            "vault": self._vault.id,
        }
        sealed = crypto.seal_to_recipients(layout.canonical_json(envelope), self._vault.recipients)
        generation = self._vault.configuration.generation
        self._writing.put(layout.envelope_key(self.session, generation), sealed)
        self._cipher = crypto.RecordCipher(bytes.fromhex(self._vault.id), self.session, root)

    def _begin(self) -> None:
        # Snapshots and index are read after the announcement: a collector that starts now waits.
        refuse_collected(self._vault)
        commits = self._vault.commits()
        taking_part = set(self._writing.alive)
        damaged = last_damage(self._vault, self._source)
        own = [
            c
            for c in commits
            if c.source == self._source
            and taking_part <= {*c.replicas}
            and (damaged is None or c.started > damaged)
        ]
        self._known: Known = load_known(self._vault, own, taking_part)
        self._previous = commits[-1].sha256 if commits else ""
        self._id_key = self._vault.domain_key(self._source)
        self._sealer = RecordSealer(self._cipher, self.session, self._id_key)
        index_key = self._vault.index_key
        self._packer = Packer(
            layout.PACKS_PREFIX, self.session, index_key, self._known.table, self._writing
        )
        self._meta_packer = Packer(
            layout.META_PREFIX,
            self.session,
            index_key,
            self._known.table,
            self._writing,
            first_segment=100_000,
        )
        self._entries: list[Entry] = []
        self._paths: set[str] = set()
        self._streams: list[tuple[bytes, int, RunBuilder]] = []
        self._fresh: dict[bytes, tuple[int, int]] = {}
        self._closed: list[tuple[int, tuple[bytes, ...]]] = []
        self._sealing: deque[tuple[int, Future[SealedRecord]]] = deque()
        self._new_record()
        self.read_bytes = 0
        self.added_bytes = 0

    def _new_record(self) -> None:
        self._record_number = self._known.table.reserve()
        self._record_ids: list[bytes] = []
        self._record_chunks: list[bytes] = []
        self._record_bytes = 0

    def _store(self, stream: Stream, packer: Packer) -> Entry:
        name_id = crypto.keyed_id(self._id_key, b"name/" + stream.path.encode())
        bits = chunk_bits(stream.size_hint_bytes or 0, self._known.bits.get(name_id))
        builder = RunBuilder()
        self._streams.append((name_id, bits, builder))
        chunker = Chunker(bits)
        digest, size = hashlib.sha256(), 0
        batch: list[memoryview] = []
        for block in stream.blocks:
            digest.update(block)
            size += len(block)
            batch.extend(chunker.feed(block))
            if len(batch) >= _BATCH_CHUNKS:
                self._place(batch, builder, packer)
                batch = []
        batch.extend(chunker.finish())
        self._place(batch, builder, packer)
        if packer is self._packer:
            self.read_bytes += size
        return Entry(stream.path, stream.kind, size, digest.hexdigest(), stream.mode, stream.mtime)

    def _place(self, batch: list[memoryview], builder: RunBuilder, packer: Packer) -> None:
        if not batch:
            return
        if len(self._fresh) > _FRESH_CHUNKS:
            self._index_closed_records()
        key = self._id_key
        ids = [blake3(chunk, key=key).digest(ID_BYTES) for chunk in batch]
        records, positions = self._known.index.find(b"".join(ids))
        for chunk, chunk_id, record, position in zip(batch, ids, records, positions, strict=True):
            if record != ABSENT:
                builder.append(record, position)
                continue
            fresh = self._fresh.get(chunk_id)
            if fresh is None:
                fresh = self._new_chunk(chunk_id, chunk, packer)
            builder.append(*fresh)

    def _new_chunk(self, chunk_id: bytes, chunk: memoryview, packer: Packer) -> tuple[int, int]:
        if self._record_bytes + len(chunk) > RECORD_BYTES and self._record_ids:
            self._flush_record(packer)
        place = (self._record_number, len(self._record_ids))
        self._fresh[chunk_id] = place
        self._record_ids.append(chunk_id)
        self._record_chunks.append(bytes(chunk))
        self._record_bytes += len(chunk)
        self.added_bytes += len(chunk)
        return place

    def _flush_record(self, packer: Packer) -> None:
        if self._record_ids:
            ids, chunks = tuple(self._record_ids), tuple(self._record_chunks)
            sealing = self._pool.submit(self._sealer.seal, ids, chunks)
            self._sealing.append((self._record_number, sealing))
            self._closed.append((self._record_number, ids))
            self._new_record()
        self._drain(packer, RECORDS_IN_FLIGHT)

    def _finish(self, packer: Packer) -> None:
        self._flush_record(packer)
        self._drain(packer, 0)
        packer.finish()

    def _index_closed_records(self) -> None:
        """Move the chunks of closed records from the dict to the index, 250 bytes to 24 each."""
        self._known.enter_records(self._closed)
        for _, ids in self._closed:
            for chunk_id in ids:
                del self._fresh[chunk_id]
        self._closed = []

    def _drain(self, packer: Packer, limit: int) -> None:
        while len(self._sealing) > limit:
            number, sealing = self._sealing.popleft()
            packer.add(number, sealing.result())

    def _references(self) -> References:
        used: dict[int, int] = {}
        for _, _, builder in self._streams:
            for record in builder.records():
                used.setdefault(record, len(used))
        return References(
            [self._known.table[number] for number in used],
            [StreamReferences(i, bits, builder.runs(used)) for i, bits, builder in self._streams],
        )

    def _record(self, references: str, length: int, note: dict[str, object]) -> dict[str, object]:
        finished = self._now()
        stored = self._packer.stored_bytes + self._meta_packer.stored_bytes + length
        return {
            "added_bytes": self.added_bytes,
            "finished": layout.time_text(finished),
            "kind": self._kind,
            "note": note,
            "objects": self._packer.objects + self._meta_packer.objects,
            "previous": self._previous,
            "read_bytes": self.read_bytes,
            "references": references,
            "seconds": round((finished - self.started).total_seconds(), 3),
            "source": self._source,
            "started": layout.time_text(self.started),
            "stored_bytes": stored,
            "streams": len(self._entries),
        }

    def _signed_register(self, outcome: str, **more: object) -> tuple[str, bytes]:
        body: dict[str, object] = {
            "outcome": outcome,
            "session": self.session,
            "vault": self._vault.id,
            "writer": self._write_key.writer,
            **more,
        }
        return layout.snapshot_key(self.session), self._signer.sign("snapshot", body)

    def _register(self, inner: dict[str, Any]) -> Commit:
        sealed = crypto.sealed_text(self._vault.index_key, inner, f"snapshot {self.session}")
        key, data = self._signed_register("commit", sealed=sealed)
        self._undecided = False
        try:
            self._writing.put(key, data)
        finally:
            self.abandon()
        sha256 = hashlib.sha256(data).hexdigest()
        alive = tuple(self._writing.alive)
        return Commit(self.session, self._write_key.writer, inner, sha256, alive)


def current_replicas(vault: Vault, commits: Sequence[Commit]) -> list[Any]:
    """The replicas that have every snapshot known anywhere: the ones a new one can be put on.

    A replica that was away lacks chunks a new snapshot may point to; it is caught up afterwards.
    So is one that is new: without the marker, which is copied last, nothing there can be read.
    """
    markers = vault.replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    answering = [name for name, marker in markers.items() if _marks(marker, vault.id)]
    current = [
        replica
        for replica in vault.replicas.replicas
        if replica.name in answering and all(replica.name in c.replicas for c in commits)
    ]
    if len(current) < vault.replicas.write_quorum:
        away = [r.name for r in vault.replicas.replicas if r not in current]
        raise VaultUnreachable(
            f"{len(current)} of {vault.replicas.write_quorum} needed replicas are reachable "
            "and up to date",
            detail=f"away or behind: {', '.join(away)}",
            hint="see `cellarer doctor`; `cellarer sync` brings a replica up to date",
            retryable=True,
        )
    return current


def _marks(marker: object, vault_id: str) -> bool:
    """Whether a replica's marker is that of this vault, and not of another or of none."""
    if not isinstance(marker, bytes):
        return False
    try:
        return layout.parse_json(marker, layout.FORMAT_KEY).get("vault") == vault_id
    except DamagedData:
        return False


def refuse_collected(vault: Vault) -> None:
    """This version does not know which packs a collection round has condemned."""
    for name, found in vault.replicas.listings(layout.COLLECTIONS_PREFIX).items():
        if found:
            raise StoreError(
                f"replica {name} holds collection rounds of a newer Cellarer",
                hint="back up with that version",
            )
