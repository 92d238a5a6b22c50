"""Every error a user can meet, as one small tree.

An error says what happened (`message`), what is known about it (`detail`) and what to do next
(`hint`). Its class decides the exit code of the command line, so scripts can tell a wrong key from
an unreachable vault without reading prose.

    CellarerError             1  something failed
    ├── UsageError            2  bad arguments or config
    ├── CheckFailed           3  an objective or a check was missed
    ├── VaultUnreachable      4  not enough replicas answer
    ├── KeyUnusable           5  a key is missing or wrong
    ├── DamagedData           6  stored bytes are not what was written
    ├── SourceFailed          1  a source could not be read whole; nothing was committed
    ├── TargetFailed          1  a restore did not go through
    ├── ToolMissing           1  a program or library that is needed is not here
    ├── WalConflict           1  other WAL of this name is in the vault
    ├── WalAbsent             1  WAL that is asked for is not in the vault, for certain
    └── StoreError            1  one object store refused (ObjectMissing, ObjectExists, ObjectLocked
                                beneath)

"Waiting for approval" (7) and "interrupted" (130) are outcomes, not errors.
"""

from __future__ import annotations

from datetime import datetime


class CellarerError(Exception):
    """The base: a message, a detail, a hint, and whether trying again may help."""

    kind = "failed"
    exit_code = 1

    def __init__(
        self, message: str, *, detail: str = "", hint: str = "", retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message}: {self.detail}" if self.detail else self.message

    def as_json(self) -> dict[str, object]:
        """The error as scripts read it."""
        return {
            "kind": self.kind,
            "message": self.message,
            "detail": self.detail,
            "hint": self.hint,
            "retryable": self.retryable,
        }


class UsageError(CellarerError):
    """Arguments or config that cannot be meant."""

    kind = "usage"
    exit_code = 2


class CheckFailed(CellarerError):
    """A check, proof or objective was missed; the data itself reads well."""

    kind = "check_failed"
    exit_code = 3


class VaultUnreachable(CellarerError):
    """Fewer replicas answer than the work needs."""

    kind = "vault_unreachable"
    exit_code = 4


class KeyUnusable(CellarerError):
    """A key is missing, unreadable or belongs to another vault."""

    kind = "key"
    exit_code = 5


class DamagedData(CellarerError):
    """Stored bytes differ from what was written, and no replica has them whole."""

    kind = "damaged"
    exit_code = 6


class SourceFailed(CellarerError):
    """A source could not be read whole. No snapshot was committed."""

    kind = "source"


class TargetFailed(CellarerError):
    """A restore did not go through."""

    kind = "target"


class ToolMissing(CellarerError):
    """A program or an optional library that this work needs is not here."""

    kind = "tool_missing"


class WalConflict(CellarerError):
    """The vault has other WAL under this name. Nothing was stored, and nothing was changed."""

    kind = "wal_conflict"


class WalAbsent(CellarerError):
    """This file of WAL is on no replica, and nobody ever saw it, nor any that comes after it.

    An answer more than a failure: PostgreSQL takes it for the end of the archive.
    """

    kind = "wal_absent"


class StoreError(CellarerError):
    """One object store refused or did not answer."""

    kind = "store"


class ObjectMissing(StoreError):
    """The object asked for is not in this store."""

    kind = "object_missing"


class ObjectExists(StoreError):
    """An object of this name is there already, so it was not created."""

    kind = "object_exists"


class ObjectLocked(StoreError):
    """The store refuses to delete this object yet; `until` is when it will, where that is known."""

    kind = "object_locked"

    def __init__(
        self, message: str, *, detail: str = "", hint: str = "", until: datetime | None = None
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.until = until
