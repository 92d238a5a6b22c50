"""The hash functions of sums of whole streams, with which each is compared when it was read."""

from __future__ import annotations

import hashlib

from blake3 import blake3

from cellarer.domain.sums import OLD_SUM, SUM, piece_bytes_of
from cellarer.errors import DamagedData
from cellarer.ports import Hasher
from cellarer.vault.format import ID_BYTES


def stream_hasher(kind: str, id_key: bytes) -> Hasher:
    """The hash function of a kind of sums, at its beginning. Raises `DamagedData` for another one.

    `id_key` is the key of the ids of the source's chunks.
    """
    if kind == SUM:
        return blake3()
    if kind == OLD_SUM:
        return hashlib.sha256()
    if piece_bytes := piece_bytes_of(kind):
        return _PieceHasher(id_key, piece_bytes)
    raise DamagedData(f"a stream's sum is of an unknown kind: {kind}")


class _PieceHasher:
    """BLAKE3 over the ids of pieces, one after another."""

    def __init__(self, id_key: bytes, piece_bytes: int) -> None:
        self._total, self._piece = blake3(), blake3(key=id_key)
        self._piece_bytes, self._missing = piece_bytes, piece_bytes

    def update(self, data: bytes, /) -> object:
        """See `ports.Hasher`."""
        view, start, ids = memoryview(data), 0, []
        while start < len(view):
            part = view[start : start + self._missing]
            self._piece.update(part)
            start += len(part)
            self._missing -= len(part)
            if not self._missing:
                ids.append(self._piece.digest(ID_BYTES))
                self._piece.reset()
                self._missing = self._piece_bytes
        self._total.update(b"".join(ids))
        return self

    def hexdigest(self) -> str:
        """See `ports.Hasher`."""
        total = self._total.copy()
        if self._missing < self._piece_bytes:
            total.update(self._piece.digest(ID_BYTES))
        return total.hexdigest()
