"""Sessions that this host writes, kept in mind so that the dead among them are closed soon.

A collector waits for every open session, two days for one that is silent. Here it can be told at
once that the program is gone: nobody holds the lock of its file. The file goes away before a COMMIT
is tried, so what still has one was never a restore point.

It is a hint only. Where a file system tells wrongly that nobody holds a lock, the session that is
closed too early ends with an error: its register decides.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from cellarer.errors import (
    CellarerError,
    DamagedData,
    ObjectExists,
    ObjectMissing,
    StoreError,
    UsageError,
    VaultUnreachable,
)
from cellarer.vault import format as layout
from cellarer.vault.comparison import marked_replicas
from cellarer.vault.keys import WriteKey
from cellarer.vault.registers import signed_register
from cellarer.vault.vault import Vault


class OwnSession:
    """The file of one session, locked while this process writes it."""

    def __init__(self, vault: Vault, session: str) -> None:
        self._file: Path | None = None
        self._descriptor = -1
        directory = _directory(vault)
        # Without the file a dead session is waited for longer, and nothing else.
        with suppress(OSError):
            if directory is not None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock(directory, session)

    def _lock(self, directory: Path, session: str) -> None:
        """It is locked before it has its name: nobody finds it free for a moment."""
        unnamed = directory / f".{session}"
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = unnamed.rename(directory / session)
        except OSError:
            unnamed.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def forget(self) -> None:
        """What comes may be a restore point: nobody is to close it."""
        if self._file is not None:
            with suppress(OSError):  # a COMMIT is looked for as well
                self._file.unlink(missing_ok=True)
            self._file = None

    def leave(self) -> None:
        """The session is over; a file that was not forgotten stays, and the next one closes it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def close_died(vault: Vault) -> list[str]:
    """Close the sessions of this host whose program died; those that were open until now.

    One that was written with another key is left to the collectors, one of which a replica is out
    of reach to the next backup.
    """
    closed, write_key = [], vault.write_key
    for session, file, descriptor in _died(vault) if write_key else ():
        try:
            if write_key and _abort(vault, session, write_key):
                closed.append(session)
            file.unlink(missing_ok=True)
        except (StoreError, UsageError, VaultUnreachable):
            continue
        finally:
            os.close(descriptor)
    return closed


def _died(vault: Vault) -> list[tuple[str, Path, int]]:
    """Session, its file, and a descriptor that holds the lock."""
    directory = _directory(vault)
    found: list[tuple[str, Path, int]] = []
    with suppress(OSError):  # there is none, or it is another user's
        for file in sorted(directory.iterdir()) if directory else ():
            if layout.is_session(file.name):
                descriptor = os.open(file, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(descriptor)  # it is being written
                else:
                    found.append((file.name, file, descriptor))
    return found


def _abort(vault: Vault, session: str, write_key: WriteKey) -> bool:
    """Close a session of this writer where it is open; whether it was anywhere.

    Raises `StoreError` and `VaultUnreachable` unless every replica answers and holds the vault.
    """
    key = layout.snapshot_key(session)
    if set(marked_replicas(vault.replicas)) != {each.name for each in vault.replicas.replicas}:
        raise StoreError("a replica is away, or a disk is not mounted", retryable=True)
    try:
        if vault.announcement(session).get("writer") != write_key.writer:
            return False
        registers = vault.replicas.each(lambda store: store.read(key))
        open_on = {n for n, register in registers.items() if isinstance(register, ObjectMissing)}
        for register in registers.values():
            if isinstance(register, bytes):
                if vault.open_register(key, register) is not None:
                    return False  # the file came back from an older state of this host
            elif not isinstance(register, ObjectMissing):
                raise register
    except DamagedData:
        return False
    if not open_on:
        return False
    signer = vault.signer_for("session")
    data = signed_register(signer, vault, session, write_key.writer, "abort")
    for answer in vault.replicas.each(lambda store: store.create(key, data)).values():
        if isinstance(answer, CellarerError) and not isinstance(answer, ObjectExists):
            raise answer
    return True


def _directory(vault: Vault) -> Path | None:
    return vault.cache / vault.id / "sessions" if vault.cache else None
