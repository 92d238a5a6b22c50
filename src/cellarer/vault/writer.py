"""Writing one snapshot: streams in, packs out, and the commit as the last write.

    stream -> chunks -> known? -> records (compress, seal) -> packs -> every replica at once
                                                         then index, manifest, COMMIT

Only the calling thread touches the state here; compressing and sealing, and the uploads, run in
threads with bounded queues, so memory stays the same whatever the size of a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from blake3 import blake3

from cellarer.domain.snapshot import Entry
from cellarer.domain.sums import SUM, piece_sum
from cellarer.errors import CellarerError, SourceFailed, VaultUnreachable
from cellarer.ports import Stream
from cellarer.vault import crypto
from cellarer.vault import format as layout
from cellarer.vault.chunker import Batch, Chunker, Cuts, choose_cuts, page_cuts
from cellarer.vault.fence import closed_by_another, condemned_for, refuse_swept
from cellarer.vault.keys import needed_write_key
from cellarer.vault.known import Known, load_known
from cellarer.vault.ledger import entries, known_damage
from cellarer.vault.manifest import References, RunBuilder, StreamReferences, contents_lines
from cellarer.vault.own_sessions import OwnSession
from cellarer.vault.packer import Packer
from cellarer.vault.placing import Placer
from cellarer.vault.record import RecordSealer
from cellarer.vault.registers import signed_register
from cellarer.vault.repair import damaged_on
from cellarer.vault.taking_over import LastSnapshot
from cellarer.vault.taking_part import choose_replicas
from cellarer.vault.vault import Commit, Vault
from cellarer.vault.writing import Writing

SEALING_THREADS = 2
CONTENTS = "contents"


class SnapshotWriter:
    """One session. `add` streams, then `commit`, or `abandon`."""

    def __init__(self, vault: Vault, source: str, kind: str, now: Callable[[], datetime]) -> None:
        self._write_key = needed_write_key(vault.write_key, "back up")
        self._vault, self._source, self._kind, self._now = vault, source, kind, now
        self._signer = vault.signer_for("session")
        self.started = now()
        self.session = layout.new_session(self.started)
        self._taking_part = choose_replicas(vault, vault.commits())
        self._writing = Writing(vault.replicas, self._taking_part.replicas)
        self._pool = ThreadPoolExecutor(SEALING_THREADS, "seal")
        self._undecided = False
        self._own_session = OwnSession(vault, self.session)
        try:
            self._announce()
            self._begin()
        except BaseException:
            self.abandon()
            raise

    @property
    def entries(self) -> Sequence[Entry]:
        """What was added so far."""
        return self._entries

    def add(self, stream: Stream) -> Entry:
        """Read a stream to its end and store what is new in it; or take it over.

        Raises `SourceFailed` for a second stream of the same path: only one could be read back;
        and for a path that is no text.
        """
        if stream.path in self._paths:
            raise SourceFailed(f"{self._source} gives two streams named {stream.path}")
        self._paths.add(stream.path)
        name_id = self._name_id(stream)
        entry = self._taken_over(stream, name_id) or self._patched(stream, name_id)
        entry = entry or self._store(stream, name_id, self._packer)
        self.read_bytes += entry.size_bytes
        self._entries.append(entry)
        return entry

    def commit(self, note: dict[str, object] | None = None) -> Commit:
        """Make everything added one restore point: the last write of all."""
        self._placer.finish(self._packer)
        contents = Stream(CONTENTS, CONTENTS, contents_lines(self._entries))
        self._store(contents, self._name_id(contents), self._meta_packer)
        self._placer.finish(self._meta_packer)
        needed = self._references()
        references = needed.seal(self._vault.index_key)
        name = layout.object_key(layout.META_PREFIX, hashlib.sha256(references).hexdigest())
        self._writing.put(name, references)
        # Packs and references are on their way together, and so are the segments after them.
        self._writing.barrier()
        self._packer.index()
        self._meta_packer.index()
        self._writing.settle()
        inner = self._record(name, len(references), note or {})
        places = needed.records
        used = (places.packs[number] for number in np.unique(places.rows["pack"]).tolist())
        refuse_swept(self._vault, self._writing, used)
        return self._register(inner)

    def abandon(self) -> None:
        """Stop; what was written stays unreferenced and a collector may take it away.

        The session's register is closed with an ABORT where that can be done, so that no collector
        need wait for it. Not after a COMMIT was tried: some replica may have it.
        """
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._undecided:
            self._undecided = False
            self._writing.close(*self._signed_register("abort"))
        self._writing.close()
        self._own_session.leave()

    @property
    def streams(self) -> int:
        """How many streams were added so far."""
        return len(self._entries)

    @property
    def behind(self) -> dict[str, CellarerError]:
        """Replicas that were left out or dropped out of this session, with the reason."""
        return {**self._taking_part.left_out, **self._writing.failed}

    @property
    def lacking(self) -> Sequence[str]:
        """Replicas that take part and lack an older snapshot."""
        return self._taking_part.lacking

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
        self._writing.settle()
        envelope = {
            "root": root.hex(),
            "session": self.session,
            "vault": self._vault.id,
        }
        sealed = crypto.seal_to_recipients(layout.canonical_json(envelope), self._vault.recipients)
        key = layout.envelope_key(self.session, self._vault.configuration.generation)
        self._envelope = [key, hashlib.sha256(sealed).hexdigest()]
        self._writing.put(key, sealed)
        self._cipher = crypto.RecordCipher(bytes.fromhex(self._vault.id), self.session, root)

    def _begin(self) -> None:
        # Marks, snapshots and index are read after the announcement: a collector that starts now
        # waits for this session, and what an earlier one condemned is not built upon.
        condemned = condemned_for(self._vault, self._writing)
        commits = self._vault.commits(forgotten=True)
        self._writing.settle()  # the envelope was on its way meanwhile
        taking_part = set(self._writing.alive)
        told = entries(self._vault)
        self._damage = known_damage(told, self._source)
        own = [
            c
            for c in commits
            if c.source == self._source and c.body.get("damage", "") == self._damage
        ]
        unfit = condemned | damaged_on(told, taking_part)
        self._own = own
        self._known: Known = load_known(self._vault, own, taking_part, unfit)
        self._previous = commits[-1].sha256 if commits else ""
        self._id_key = self._vault.domain_key(self._source)
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
        self._chunks = 0
        self._streams: list[StreamReferences] = []
        sealer = RecordSealer(self._cipher, self.session, self._id_key)
        self._placer = Placer(self._known, self._id_key, sealer, self._pool)
        self.read_bytes = 0

    def _taken_over(self, stream: Stream, name_id: bytes) -> Entry | None:
        """The entry of a stream that is as it was in the newest point, if that can be built on."""
        claim = stream.unchanged
        if claim is None:
            return None
        found = self._last.take_over(name_id, claim)
        if found is None:
            return None
        cuts, runs = found
        self._streams.append(StreamReferences(name_id, cuts, runs, claim.size_bytes))
        self._chunks += int(runs["count"].sum(dtype=np.int64))
        return Entry(
            stream.path, stream.kind, claim.size_bytes, claim.sum, stream.mode, stream.mtime
        )

    def _patched(self, stream: Stream, name_id: bytes) -> Entry | None:
        """The entry of a stream of which only some pieces are read, if the rest can be built on.

        Raises `SourceFailed` where a piece is missing that the newest point does not have.
        """
        claim = stream.patched
        if claim is None:
            return None
        patched = self._last.patch(name_id, claim)
        if patched is None or patched.cuts != self._cuts(stream, name_id):
            return None  # it has grown so much that it is cut into larger pieces from now on
        for pieces in claim.pieces:
            lengths = patched.lengths(pieces.numbers)
            if sum(lengths) != len(pieces.data):
                raise SourceFailed(f"{stream.path} of {self._source} changed its length meanwhile")
            placed = self._placer.place(Batch(memoryview(pieces.data), lengths), self._packer)
            patched.put(pieces.numbers, *placed)
        if not patched.whole:
            raise SourceFailed(f"{self._source} gives only parts of {stream.path}")
        size, runs = claim.size_bytes, patched.runs()
        self._streams.append(StreamReferences(name_id, patched.cuts, runs, size))
        self._chunks += len(patched)
        return Entry(stream.path, stream.kind, size, patched.sum, stream.mode, stream.mtime)

    @cached_property
    def _last(self) -> LastSnapshot:
        return LastSnapshot(self._vault, self._own, self._known)

    def _name_id(self, stream: Stream) -> bytes:
        try:
            return crypto.keyed_id(self._id_key, b"name/" + stream.path.encode())
        except UnicodeEncodeError as error:
            raise SourceFailed(
                f"the name of a file of {self._source} is not UTF-8: {stream.path!r}",
                hint="rename it, or remove it if nothing needs it; nothing was committed",
            ) from error

    def _cuts(self, stream: Stream, name_id: bytes) -> Cuts:
        previous = self._known.cuts.get(name_id)
        if stream.page_bytes is not None:
            return page_cuts(stream.page_bytes, previous and previous[0])
        return choose_cuts(stream.size_hint_bytes or 0, stream.grows_at_end, previous, self._chunks)

    def _store(self, stream: Stream, name_id: bytes, packer: Packer) -> Entry:
        cuts = self._cuts(stream, name_id)
        builder, chunker = RunBuilder(), Chunker(cuts)
        by_pages = stream.summed_by_pages and cuts.page_bytes > 0
        digest, size = blake3(), 0

        def place(batches: Iterable[Batch]) -> None:
            for batch in batches:
                ids, records, positions = self._placer.place(batch, packer)
                builder.extend(records, positions)
                self._chunks += len(records)
                if by_pages:
                    digest.update(ids)

        for block in stream.blocks:
            if not by_pages:
                digest.update(block)
            size += len(block)
            place(chunker.feed(block))
        place(chunker.finish())
        self._streams.append(StreamReferences(name_id, cuts, builder.runs(), size))
        total = f"{piece_sum(cuts.page_bytes) if by_pages else SUM}:{digest.hexdigest()}"
        return Entry(stream.path, stream.kind, size, total, stream.mode, stream.mtime)

    def _references(self) -> References:
        """The streams, with only the records that they use, numbered anew in order of use."""
        named = np.concatenate([stream.runs["record"] for stream in self._streams])
        used, first, places = np.unique(named, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty(len(used), np.int64)
        rank[order] = np.arange(len(used))
        start = 0
        for stream in self._streams:
            end = start + len(stream.runs)
            stream.runs["record"] = rank[places[start:end]]
            start = end
        return References(self._known.table.places(used[order]), self._streams)

    def _record(self, references: str, length: int, note: dict[str, object]) -> dict[str, object]:
        finished = self._now()
        stored = self._packer.stored_bytes + self._meta_packer.stored_bytes + length
        return {
            "added_bytes": self._placer.added_bytes,
            "damage": self._damage,
            "envelope": self._envelope,
            "finished": layout.time_text(finished),
            "kind": self._kind,
            "note": note | self._missing(),
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

    def _missing(self) -> dict[str, object]:
        """What the record says of the replicas that will not have it at once."""
        reasons = {name: str(error) for name, error in self.behind.items()}
        return {"behind": reasons} if reasons else {}

    def _signed_register(self, outcome: str, **more: object) -> tuple[str, bytes]:
        writer = self._write_key.writer
        data = signed_register(self._signer, self._vault, self.session, writer, outcome, **more)
        return layout.snapshot_key(self.session), data

    def _register(self, inner: dict[str, Any]) -> Commit:
        sealed = crypto.sealed_text(self._vault.index_key, inner, f"snapshot {self.session}")
        key, data = self._signed_register("commit", sealed=sealed)
        self._own_session.forget()
        self._undecided = False
        try:
            self._writing.put(key, data)
            self._writing.settle()
        except VaultUnreachable as error:
            raise closed_by_another(self.session, self._writing) or error from error
        finally:
            self.abandon()
        sha256 = hashlib.sha256(data).hexdigest()
        alive = tuple(self._writing.alive)
        return Commit(self.session, self._write_key.writer, inner, sha256, alive)
