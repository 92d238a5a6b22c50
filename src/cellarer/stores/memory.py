"""A store in memory, for trying flows without a disk or a network."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing
from cellarer.ports import ObjectInfo
from cellarer.stores.object_keys import check_key, check_prefix, check_range


class MemoryStore:
    """One replica's bytes in a dict; they go when the process goes."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "memory:"

    def create(self, key: str, data: bytes) -> None:
        check_key(key)
        with self._lock:
            held = self._objects.setdefault(key, bytes(data))
        if held != data:
            raise ObjectExists(f"{key} is there already, with other content", detail=self.url)

    def read(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            if key in self._objects:
                return self._objects[key]
        raise ObjectMissing(f"there is no {key}", detail=self.url)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        data = self.read(key)
        if len(data) < offset + length:
            raise DamagedData(
                f"{key} ends too early",
                detail=f"{len(data)} bytes where {offset + length} are needed",
            )
        return data[offset : offset + length]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            sizes = {key: len(data) for key, data in self._objects.items()}
        return (ObjectInfo(key, sizes[key]) for key in sorted(sizes) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)
