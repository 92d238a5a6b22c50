"""A replica on a store that cannot decide between two who create the same name at once.

Nothing there may be collected: whether a session was committed or given up is decided by whose
object came first, and on such a store both may believe that it was theirs. Taking backups, copying
to it and reading need no such decision, as no two sessions share a name and a pack is named by its
content.
"""

from __future__ import annotations

from collections.abc import Iterator

from cellarer.errors import ObjectExists, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo
from cellarer.stores.layer import StoreLayer

COLLECTING = ("collections/",)
"""Prefixes of what only a collector creates."""


class GrowOnly(StoreLayer):
    """Refuses to delete and to collect; creates after a look, so that it replaces nothing.

    Between the look and the creation another may come: the look protects what was there, it does
    not decide between two at the same moment.
    """

    grows_only = True

    def create(self, key: str, data: bytes) -> None:
        if key.startswith(COLLECTING):
            raise self._refusal("this replica cannot take part in a collection")
        try:
            held = self._inner.read(key)
        except ObjectMissing:
            self._inner.create(key, data)
            return
        if held != data:
            raise ObjectExists(f"{key} is there already, with other content", detail=self.url)

    def read(self, key: str) -> bytes:
        return self._inner.read(key)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._inner.read_range(key, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        raise self._refusal(f"{key} cannot be deleted")

    def _refusal(self, message: str) -> StoreError:
        return StoreError(
            message,
            detail=f"its store overwrites, so it only grows; {self.url}",
            hint="collect on the other replicas; to collect here too, move this one to a store "
            "that honours If-None-Match and take grow_only out of the config",
        )
