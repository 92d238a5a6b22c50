"""Getting records: from whole packs where most of a pack is wanted, else by ranges.

Two small caches, bounded in bytes and shared by all streams of a restore: packs as they are stored
and records as they are opened. Several threads that want the same thing wait for one fetch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

import numpy as np

from cellarer.errors import CellarerError, DamagedData, VaultUnreachable
from cellarer.vault.crypto import RecordCipher
from cellarer.vault.format import check_content_name
from cellarer.vault.index import RecordPlace, RecordPlaces
from cellarer.vault.moved import MovedRecords
from cellarer.vault.record import Chunks, open_record
from cellarer.vault.vault import Vault

PACK_CACHE_BYTES = 80 << 20
RECORD_CACHE_BYTES = 24 << 20

WHOLE_PACK_BYTES = 4 << 20
"""A pack of which this much is wanted is fetched whole: one request instead of dozens."""

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """Least recently used values are dropped when the sum of their sizes passes the bound."""

    def __init__(self, bound_bytes: int, size: Callable[[V], int]) -> None:
        self._bound, self._size = bound_bytes, size
        self._lock = threading.Lock()
        self._values: OrderedDict[object, Future[V]] = OrderedDict()
        self._sizes: dict[object, int] = {}
        self._held = 0

    def get(self, key: object, make: Callable[[], V]) -> V:
        """The value for `key`, made once however many threads ask."""
        with self._lock:
            waiting = self._values.get(key)
            if waiting is not None:
                self._values.move_to_end(key)
            else:
                mine: Future[V] = Future()
                self._values[key] = mine
        if waiting is not None:
            return waiting.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._values[key]
            mine.set_exception(error)
            raise
        mine.set_result(value)
        self._admit(key, value)
        return value

    def _admit(self, key: object, value: V) -> None:
        with self._lock:
            self._sizes[key] = self._size(value)
            self._held += self._sizes[key]
            for old in list(self._values):
                if self._held <= self._bound:
                    break
                if old != key and old in self._sizes:
                    del self._values[old]
                    self._held -= self._sizes.pop(old)


class RecordFetcher:
    """Opens records of one vault. Safe to use from several threads."""

    def __init__(self, vault: Vault, wanted: RecordPlaces) -> None:
        self._vault = vault
        lengths = np.bincount(wanted.rows["pack"], wanted.rows["length"], len(wanted.packs))
        self._wanted = dict(zip(wanted.packs, lengths.tolist(), strict=True))
        self._moved = MovedRecords(vault, wanted)
        self._left: set[str] = set()
        self._packs: BoundedCache[bytes] = BoundedCache(PACK_CACHE_BYTES, len)
        self._records: BoundedCache[Chunks] = BoundedCache(
            RECORD_CACHE_BYTES, lambda chunks: len(chunks.content) + chunks.ends.nbytes
        )
        self._ciphers: dict[str, RecordCipher] = {}

    def look_for_moves(self) -> None:
        """Learn of all repacks that there were. Raises `VaultUnreachable`."""
        self._moved.refresh()

    def moved(self, place: RecordPlace) -> list[RecordPlace]:
        """Where else a record lies, as far as repacks are known here."""
        return self._moved.places(place)

    def chunks(self, place: RecordPlace) -> Chunks:
        """The chunks of a record, authenticated. Raises `DamagedData`."""
        return self._records.get((place.pack, place.offset), lambda: self._open(place))

    def fetch_ahead(self, pack: str) -> None:
        """Have a pack at hand for those who ask for its records next, if it is fetched whole."""
        if self._fetched_whole(pack):
            with suppress(CellarerError):  # whoever asks for a record is told
                self._packs.get(pack, lambda: self._fetch_pack(pack))

    def _open(self, place: RecordPlace) -> Chunks:
        """Where it was, or where a repack has put it since; that may happen while this reads."""
        problem: CellarerError | None = None
        for candidate in self._candidates(place):
            try:
                chunks = self._open_at(candidate)
            except (DamagedData, VaultUnreachable) as error:
                problem = problem or error
            else:
                if candidate is not place:
                    self._left.add(place.pack)
                return chunks
        assert problem is not None
        raise problem

    def _candidates(self, place: RecordPlace) -> Iterator[RecordPlace]:
        """The places to try, in this order. A pack that was left by one record is asked last."""
        if place.pack not in self._left:
            yield place
        known = self._moved.places(place)
        yield from known
        self._moved.refresh()
        yield from (moved for moved in self._moved.places(place) if moved not in known)
        if place.pack in self._left:
            yield place

    def _open_at(self, place: RecordPlace) -> Chunks:
        cipher = self._cipher(place.session)
        if self._fetched_whole(place.pack):
            try:
                pack = self._packs.get(place.pack, lambda: self._fetch_pack(place.pack))
                end = place.offset + place.length
                return open_record(cipher, place.id, memoryview(pack)[place.offset : end])
            except DamagedData:
                # No replica has the pack whole; the record may still be whole somewhere.
                self._wanted[place.pack] = -(1 << 62)
        return self._vault.replicas.fetch_range(
            place.pack,
            place.offset,
            place.length,
            lambda sealed: open_record(cipher, place.id, sealed),
        )

    def _fetched_whole(self, pack: str) -> bool:
        wanted: int = self._wanted.get(pack, 0) + self._moved.wanted(pack)
        return wanted >= WHOLE_PACK_BYTES

    def _fetch_pack(self, key: str) -> bytes:
        return self._vault.replicas.fetch(key, lambda data: check_content_name(key, data))

    def _cipher(self, session: str) -> RecordCipher:
        cipher = self._ciphers.get(session)
        if cipher is None:
            root = self._vault.session_root(session)
            cipher = RecordCipher(bytes.fromhex(self._vault.id), session, root)
            self._ciphers[session] = cipher
        return cipher
