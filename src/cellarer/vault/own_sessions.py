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

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.vault import Vault


class OwnSession:
    """The file of one session, locked while this process writes it."""

    def __init__(self, vault: Vault, session: str) -> None:
        self._file, self._descriptor = None, -1
        directory = _directory(vault)
        # Without the file a dead session is waited for longer, and nothing else.
        with suppress(OSError):
            if directory is not None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = directory / session
                self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file = file

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
    closed = []
    for session, file, descriptor in _died(vault):
        try:
            if _abort(vault, session):
                closed.append(session)
            file.unlink(missing_ok=True)
        except (StoreError, VaultUnreachable):
            continue
        finally:
            os.close(descriptor)
    return closed


def _died(vault: Vault) -> list[tuple[str, Path, int]]:
    """Session, its file, and a descriptor that holds the lock."""
    directory = _directory(vault)
    found = []
    for file in sorted(directory.iterdir()) if directory and directory.is_dir() else ():
        if not layout.is_session(file.name):
            continue
        with suppress(OSError):
            descriptor = os.open(file, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)  # it is being written
            else:
                found.append((file.name, file, descriptor))
    return found


def _abort(vault: Vault, session: str) -> bool:
    """Close a session of this writer where it is open; whether it was anywhere.

    Raises `StoreError` and `VaultUnreachable` unless every replica answers.
    """
    assert vault.write_key is not None
    key, writer = layout.snapshot_key(session), vault.write_key.writer
    try:
        if vault.announcement(session).get("writer") != writer or _was_committed(vault, key):
            return False
    except DamagedData:
        return False
    body: dict[str, object] = {
        "outcome": "abort",
        "session": session,
        "vault": vault.id,
        "writer": writer,
    }
    data, was_open = vault.signer_for("session").sign("snapshot", body), False
    for replica in vault.replicas.replicas:
        with suppress(ObjectExists):
            replica.store.create(key, data)
            was_open = True
    return was_open


def _was_committed(vault: Vault, key: str) -> bool:
    """Whether a register is no ABORT: then the file came back from an older state of this host."""
    for replica in vault.replicas.replicas:
        with suppress(ObjectMissing):
            data = vault.replicas.ask(replica, lambda store: store.read(key))
            if vault.open_register(key, data) is not None:
                return True
    return False


def _directory(vault: Vault) -> Path | None:
    return vault.cache / vault.id / "sessions" if vault.cache else None
