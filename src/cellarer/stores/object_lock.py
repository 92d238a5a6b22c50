"""S3 Object Lock: objects that nobody can delete before a time, their owner included.

obstore cannot send the headers of a lock: those that it adds to every request are not signed, and
S3 refuses what is not. So Amazon's own library stores the object and its lock in one request, and
asks for locks; all else goes the usual way.

A bucket with locks keeps every version of an object. Deleting without naming a version would only
hide it: such a delete "succeeds" on a locked object, and frees nothing on any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NotConnected

from cellarer.errors import ObjectLocked, ObjectMissing
from cellarer.stores.object_keys import check_key
from cellarer.stores.objectstore import Clients, ObjectStore
from cellarer.stores.refusals import Refusal
from cellarer.stores.settings import StoreSettings

MODE = "COMPLIANCE"
"""The mode in which no right whatever lifts a lock; the other one, governance, has such a right."""

_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted"}
_ABSENT = {"404", "NoSuchKey", "NoSuchVersion", "MethodNotAllowed"}


class LockingStore(ObjectStore):
    """A bucket on S3 whose objects are locked for a time as they are written."""

    def __init__(
        self,
        url: str,
        clients: Clients,
        settings: StoreSettings,
        client: Any,
        bucket_and_prefix: tuple[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(url, clients, settings)
        self._client, self._now = client, now
        self._bucket, self._prefix = bucket_and_prefix
        self._lock_for = settings.immutable_for or timedelta()

    @property
    def locks_for(self) -> timedelta:
        return self._lock_for

    def delete(self, key: str) -> None:
        """Remove the object with all its versions. Raises `ObjectLocked`."""
        check_key(key)
        while (head := self._head(key)) is not None:
            with self._asked(f"{key} cannot be deleted", until=_locked_until(head)):
                self._client.delete_object(**self._named(key), VersionId=head["VersionId"])

    def locked_until(self, key: str) -> datetime | None:
        """The time that the store itself names; seeing it takes `s3:GetObjectRetention`."""
        check_key(key)
        head = self._head(key)
        if head is None:
            raise ObjectMissing(f"there is no {key}", detail=self.url)
        return _locked_until(head)

    def extend_lock(self, key: str, until: datetime) -> None:
        """Lock the object until then; where it is locked for longer nothing changes."""
        held = self.locked_until(key)
        if held is not None and held >= until:
            return
        retention = {"Mode": MODE, "RetainUntilDate": until}
        with self._asked(f"{key} cannot be locked"):
            self._client.put_object_retention(**self._named(key), Retention=retention)

    def locks(self) -> bool:
        """Whether the bucket can lock at all, which is decided when it is made."""
        with self._asked("the bucket's lock cannot be looked up"):
            try:
                answer = self._client.get_object_lock_configuration(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) == "ObjectLockConfigurationNotFoundError":
                    return False
                raise
            return bool(answer["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled")

    def _put(self, key: str, data: bytes) -> bool:
        given = {
            "StorageClass": self._storage_class(data),
            "ServerSideEncryption": self._settings.encryption,
            "SSEKMSKeyId": self._settings.kms_key,
        }
        with self._asked(f"{key} cannot be stored"):
            try:
                self._client.put_object(
                    **self._named(key),
                    Body=data,
                    IfNoneMatch="*",
                    ObjectLockMode=MODE,
                    ObjectLockRetainUntilDate=self._now() + self._lock_for,
                    **{name: value for name, value in given.items() if value},
                )
            except ClientError as error:
                if _code(error) in _CONFLICTS:
                    return False
                raise
        return True

    def _head(self, key: str) -> dict[str, Any] | None:
        """What the store says of an object's newest version; None where there is no object."""
        with self._asked(f"{key} cannot be looked up"):
            try:
                head: dict[str, Any] = self._client.head_object(**self._named(key))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            return head

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": "/".join(filter(None, (self._prefix, key)))}

    @contextmanager
    def _asked(self, message: str, until: datetime | None = None) -> Iterator[None]:
        """Turn what Amazon's library says into `StoreError`; `until` is a lock that is known."""
        try:
            yield
        except ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if until is not None and status == 403 and until > _said_at(error):
                raise ObjectLocked(
                    message,
                    detail=f"it is locked until {until:%Y-%m-%d %H:%M:%S} UTC; {self.url}",
                    hint="it can be deleted after that time, and by nobody before",
                    until=until,
                ) from None
            said = error.response.get("Error", {})
            refusal = Refusal(status, _code(error), said.get("Message", ""))
            raise refusal.as_error(message, self.url) from None
        except BotoCoreError as error:
            # Of its text only the kind is known to hold no address with a signature in it.
            away = isinstance(error, NotConnected | HTTPClientError)
            refusal = Refusal(0, type(error).__name__, "", connects=not away, credentials=not away)
            raise refusal.as_error(message, self.url) from None


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _said_at(error: ClientError) -> datetime:
    """The moment of the reply, by the store's clock: it is the one that a lock goes by."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)


def _locked_until(head: dict[str, Any]) -> datetime | None:
    until: datetime | None = head.get("ObjectLockRetainUntilDate")
    return until
