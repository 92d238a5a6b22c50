"""S3, Google Cloud Storage and Azure Blob Storage, through obstore.

All that differs between them, or from what `ports.Store` promises, is levelled here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError
from cellarer.ports import ObjectInfo
from cellarer.stores.clients import Client
from cellarer.stores.object_keys import check_key, check_prefix, check_range, check_size, is_key
from cellarer.stores.refusals import Refusal
from cellarer.stores.settings import StoreSettings

LARGE_BYTES = 1 << 20
"""From here on an upload goes through the client that waits for slow lines."""

COLD_BYTES = 128 << 10
"""From here on an object goes to the storage class that is asked for. The classes for what is
seldom read charge for 128 KiB at least (S3's price list), and small objects are read often."""

LISTING_PAGE = 1000
"""Objects asked for at once: what one reply of S3 holds."""

# Between attempts to create an object that is said to be there and is not. A store that says 409
# because of another request in flight is done with that one within these.
_CONFLICT_PAUSES_SECONDS = (0.05, 0.2, 0.8, 2.0)

# What obstore says where a range is answered with status 200, as `rclone serve s3` does.
_NOT_PARTIAL = "non-partial response"

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Clients:
    """Two ways to the same bucket: one that notices silence soon, one for large uploads."""

    prompt: Client
    patient: Client


class ObjectStore:
    """One replica's bytes in a bucket, below the prefix that the clients know."""

    def __init__(self, url: str, clients: Clients, settings: StoreSettings) -> None:
        self._url = url
        self._clients = clients
        self._settings = settings

    @property
    def url(self) -> str:
        return self._url

    def create(self, key: str, data: bytes) -> None:
        check_key(key)
        for pause_seconds in (*_CONFLICT_PAUSES_SECONDS, 0.0):
            if self._put(key, data) or self._holds(key, data):
                return
            time.sleep(pause_seconds)
        raise StoreError(
            f"{key} cannot be stored",
            detail=f"the store says that it is there, and that it is not; {self._url}",
            hint="try again; if it lasts, the store is not consistent",
            retryable=True,
        )

    def read(self, key: str) -> bytes:
        check_key(key)
        with self._explained(f"{key} cannot be read", key):
            found = obstore.get(self._clients.prompt, key)
            check_size(key, found.meta["size"])
            return found.bytes().to_bytes()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        check_key(key)
        check_range(offset, length)
        with self._explained(f"{key} cannot be read", key):
            try:
                # Of nothing, HTTP knows no range: then only the size is asked for.
                data = self._range(key, offset, length) if length else b""
            except BaseError as error:
                # Some stores refuse what reaches past the end, others send what there is.
                self._check_end(key, offset + length)
                if _NOT_PARTIAL not in str(error):
                    raise
                data = self.read(key)[offset : offset + length]
            if len(data) != length or not length:
                self._check_end(key, offset + length)
        if len(data) != length:
            raise StoreError(
                f"{key} cannot be read",
                detail=f"{len(data)} bytes came where {length} were asked for; {self._url}",
                retryable=True,
            )
        return data

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return self._listing(prefix)

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            with self._explained(f"{key} cannot be deleted", key):
                obstore.delete(self._clients.prompt, key)
        except ObjectMissing:
            return  # some stores say so, others do not; it is the state that was asked for

    def modified(self, key: str) -> datetime:
        """When the object was stored, by the store's clock, to the second. `ObjectMissing`."""
        check_key(key)
        with self._explained(f"{key} cannot be read", key):
            return obstore.head(self._clients.prompt, key)["last_modified"]

    def _put(self, key: str, data: bytes) -> bool:
        """Whether the store says that it took the object; else it says that one is there.

        One request, whatever the size: of several parts, the last would not be conditional.
        """
        clients = self._clients
        client = clients.patient if len(data) > LARGE_BYTES else clients.prompt
        storage_class = self._storage_class(data)
        attributes: obstore.Attributes = {"Storage-Class": storage_class} if storage_class else {}
        with self._explained(f"{key} cannot be stored", key):
            try:
                obstore.put(
                    client, key, data, mode="create", use_multipart=False, attributes=attributes
                )
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def _storage_class(self, data: bytes) -> str:
        return self._settings.storage_class if len(data) >= COLD_BYTES else ""

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether these bytes are there; False where nothing is. Raises `ObjectExists`.

        "Already exists" is said of three things: another's object; our own, whose first reply was
        lost; and none at all, when a request in flight collided with ours (S3's 409).
        """
        try:
            with self._explained(f"{key} cannot be compared", key):
                same = _equal(obstore.get(self._clients.prompt, key), data)
        except ObjectMissing:
            return False
        if not same:
            raise ObjectExists(f"{key} is there already, with other content", detail=self._url)
        return True

    def _range(self, key: str, offset: int, length: int) -> bytes:
        client = self._clients.prompt
        return obstore.get_range(client, key, start=offset, length=length).to_bytes()

    def _check_end(self, key: str, end: int) -> None:
        """Raise `DamagedData` where the object ends before."""
        size_bytes = obstore.head(self._clients.prompt, key)["size"]
        if size_bytes < end:
            raise DamagedData(
                f"{key} ends too early",
                detail=f"{size_bytes} bytes where {end} are needed; {self._url}",
            )

    def _listing(self, prefix: str) -> Iterator[ObjectInfo]:
        message = f"{prefix or 'the store'} cannot be listed"
        with self._explained(message, prefix):
            pages = iter(
                obstore.list(self._clients.prompt, prefix.rstrip("/"), chunk_size=LISTING_PAGE)
            )
        last = ""
        while True:
            with self._explained(message, prefix):
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                key = meta["path"]
                if key < last:
                    raise StoreError(
                        message,
                        detail=f"the store lists {key} after {last}; {self._url}",
                        hint="this store does not sort its listings as S3 does; use another one",
                    )
                last = key
                if is_key(key):
                    yield ObjectInfo(key, meta["size"])

    @contextmanager
    def _explained(self, message: str, key: str) -> Iterator[None]:
        """Turn what obstore says into `StoreError` or `ObjectMissing`."""
        try:
            yield
        except (BaseError, OSError) as error:
            refusal = Refusal.parse(error)
            if isinstance(error, FileNotFoundError) and not refusal.bucket_missing:
                # Without the cause: its text holds the whole reply, and it is no accident.
                raise ObjectMissing(f"there is no {key}", detail=self._url) from None
            # Nor here: the text of a reply may quote the signed request.
            raise refusal.as_error(message, self._url) from None


def _equal(found: obstore.GetResult, data: bytes) -> bool:
    """Whether the content is `data`; stops at the first block that differs."""
    at = 0
    for block in found.stream(_BLOCK_BYTES):
        if block != data[at : at + len(block)]:
            return False
        at += len(block)
    return at == len(data)
