"""Write-ahead log put into the vault, by a host that cannot read it.

    file of WAL -> look: is it there? -> sealed to the log key -> every replica at once

Each file is one object, created once. `log_reader.py` reads them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import Kind, LogName, first_page, is_system, piece_name
from cellarer.errors import (
    CellarerError,
    DamagedData,
    ObjectExists,
    ObjectMissing,
    UsageError,
    WalConflict,
)
from cellarer.vault import format as layout
from cellarer.vault.keys import needed_write_key
from cellarer.vault.ledger import record_fact
from cellarer.vault.log_facts import stored_fact
from cellarer.vault.log_files import check_file, checked_name
from cellarer.vault.log_keys import (
    LOG_KEY_AGE,
    STORING,
    LogKey,
    bring_key,
    log_key,
    new_log_key,
)
from cellarer.vault.log_object import (
    LogHeader,
    SealedLog,
    check_body,
    content_sum,
    header_on,
    open_header,
    seal_log,
    sealed_sighting,
)
from cellarer.vault.log_reader import LogReader, systems
from cellarer.vault.log_state import LogState, StateFile
from cellarer.vault.marker import refuse_unmarked
from cellarer.vault.promptly import Prompt
from cellarer.vault.replicas import Replica, unreachable
from cellarer.vault.vault import Vault

__all__ = ["LogReader", "LogWriter", "Stored", "systems"]

TOLD_EVERY = timedelta(hours=1)
"""The ledger hears so often of what was stored, if anything was; and of a new timeline at once.

Every command reads the ledger: every five minutes would be 100,000 entries in a year, and some
seconds for each command."""

LOOKED_AT_EVERY = timedelta(minutes=5)
"""A writer that runs for long looks so often whether recipients or keys have changed."""


@dataclass(frozen=True)
class Stored:
    """That a file of WAL is in the vault, on as many replicas as the quorum at least.

    `new` is False where it was there before. `behind` are replicas that do not have it, with the
    reason; `sync` brings it there. `untold` is why the ledger could not be told; it is tried again.
    """

    new: bool
    behind: Mapping[str, CellarerError] = field(default_factory=dict)
    untold: CellarerError | None = None


class LogWriter:
    """Stores the WAL of one cluster, `system`. Safe to call from several threads.

    Below `state` this host keeps which log key it uses. Raises `UsageError` without a write key.
    """

    def __init__(self, vault: Vault, system: str, state: Path, now: Callable[[], datetime]) -> None:
        if not is_system(system):
            raise UsageError(f"not a system identifier: {system!r}")
        needed_write_key(vault.write_key, STORING)
        self.system = system
        self._vault, self._now = vault, now
        self._file = StateFile(state, vault.id, system)
        self._prompt = Prompt(vault.replicas)
        self._lock = threading.RLock()
        self._key: LogKey | None = None
        self._introduced: set[tuple[str, str]] = set()
        self._looked_at = now()

    def put(self, name: str, data: bytes, sighting: Sighting | None = None) -> Stored:
        """Store a file of PostgreSQL's archive under its name.

        `sighting` is the last that is known of the server, which is kept with what is new.

        Raises `WalConflict` where other WAL has this name, `SourceFailed` for what is no such file,
        `UsageError` for WAL of another cluster, and `VaultUnreachable` where fewer replicas than
        the quorum have it in the end; then some may, and putting it again goes on.
        """
        parsed = checked_name(name)
        check_file(name, parsed, data, self.system)
        with self._lock:
            vault, key = self._current()
        target = layout.wal_key(self.system, name)
        content = content_sum(vault.chunk_ids, self.system, data)
        answers = self._prompt.each(lambda replica: _look(vault, replica, target, content))
        _refuse_conflict(answers)
        there = any(isinstance(answer, LogHeader) for answer in answers.values())
        lacking = [name for name, answer in answers.items() if answer is None]
        if lacking:
            sealed = _there(vault, target) if there else None
            sealed = sealed or self._sealed(target, data, content, key, sighting)
            created = self._prompt.each(
                lambda replica: self._create(vault, replica, sealed, content), lacking
            )
            answers = {**answers, **created}
            _refuse_conflict(answers)
        behind = {name: a for name, a in answers.items() if isinstance(a, CellarerError)}
        if len(answers) - len(behind) < vault.replicas.write_quorum:
            vault.replicas.ask_again()  # who puts it again means it
            raise unreachable(f"too few replicas have {name}", dict(answers))
        return Stored(not there, behind, self._note(parsed, data))

    def put_piece(
        self, segment: str, start: int, data: bytes, sighting: Sighting | None = None
    ) -> Stored:
        """Store the bytes of a segment from offset `start` on, which was flushed up to their end.

        Raises as `put`.
        """
        return self.put(piece_name(segment, start, start + len(data)), data, sighting)

    def told(self, *, force: bool = False) -> None:
        """Tell the ledger what was stored, if anything was and it is time, or with `force` at once.

        Storing does this by itself; call it when no more is coming. Raises `CellarerError` where
        it could not be told.
        """
        with self._lock:
            state, now = self._file.load(), self._now()
            lately = state.told is not None and state.told <= now < state.told + TOLD_EVERY
            known = state.told_timelines >= state.flushed.keys()
            if not state.news or not state.segment_bytes or (lately and known and not force):
                return
            record_fact(self._vault, stored_fact(self.system, state), now)
            told = frozenset(state.flushed)
            self._file.change(lambda s: replace(s, told=now, told_timelines=told, news=False))

    def _note(self, parsed: LogName, data: bytes) -> CellarerError | None:
        """Keep in mind what was stored; why the ledger does not know, if it should."""
        try:
            self._file.change(lambda state: _noted(state, parsed, data))
            self.told()
        except CellarerError as error:
            return error
        return None

    def _current(self) -> tuple[Vault, LogKey]:
        """The vault as its newest configuration says, and the log key for its recipients."""
        now = self._now()
        if not self._looked_at <= now < self._looked_at + LOOKED_AT_EVERY:
            self._vault = self._vault.reopen()
            self._looked_at = now
        if self._key is None:
            self._key = self._kept_key()
        if self._key is None or not self._serves(self._key, now):
            self._key = new_log_key(self._vault, self.system, now)
            session = self._key.session
            self._file.change(lambda state: replace(state, session=session))
        return self._vault, self._key

    def _kept_key(self) -> LogKey | None:
        """The key that this host used last, as the vault has it; None where that is none."""
        session = self._file.load().session
        if not session:
            return None
        try:
            return log_key(self._vault, session)
        except DamagedData:
            return None  # lost or not to be trusted any more: what comes has a new one

    def _serves(self, key: LogKey, now: datetime) -> bool:
        """Whether WAL may still be sealed to a key."""
        write_key = self._vault.write_key
        return (
            key.system == self.system
            and write_key is not None
            and key.writer == write_key.writer
            and key.generation == self._vault.configuration.generation
            and timedelta() <= now - layout.session_start(key.session) < LOG_KEY_AGE
        )

    def _sealed(
        self, target: str, data: bytes, content: str, key: LogKey, sighting: Sighting | None
    ) -> SealedLog:
        return seal_log(
            self._vault.signer_for("wal"), self._vault.id, target, data,
            session=key.session, public=key.public, content=content, stored=self._now(),
            sighting=sealed_sighting(self._vault.index_key, target, sighting) if sighting else "",
        )  # fmt: skip

    def _create(
        self, vault: Vault, replica: Replica, sealed: SealedLog, content: str
    ) -> LogHeader | None:
        """Put an object on a replica, after the key that opens it.

        Looks first whether the vault is there still: a writer runs for months, and a disk that was
        unmounted meanwhile leaves a directory that takes everything.
        """
        refuse_unmarked(vault.replicas, replica, vault.id)
        if (replica.name, sealed.session) not in self._introduced:
            bring_key(vault, replica, sealed.session)
            self._introduced.add((replica.name, sealed.session))
        try:
            vault.replicas.ask(replica, lambda store: store.create(sealed.key, sealed.data))
        except ObjectExists:
            return _look(vault, replica, sealed.key, content)  # somebody else was first
        return None


def _look(vault: Vault, replica: Replica, target: str, content: str) -> LogHeader | None:
    """What a replica has under a name, if anything. Raises `WalConflict` for other WAL."""
    try:
        header = header_on(vault, replica, target)
    except ObjectMissing:
        return None
    if header.content != content:
        raise WalConflict(
            f"other write-ahead log is stored as {target}",
            detail=f"on replica {replica.name}, since {layout.time_text(header.stored)}; nothing "
            "was changed",
            hint="two servers archive to this vault under one name: a standby that was promoted, "
            "or a copy of the server. Stop archiving on the one that is not the primary",
        )
    return header


def _there(vault: Vault, target: str) -> SealedLog | None:
    """An object that some replica has; None where none has it whole, but for its header."""

    def check(data: bytes) -> SealedLog:
        header = open_header(vault, target, data)
        check_body(header, data)
        return SealedLog(target, header.session, data)

    try:
        return vault.replicas.fetch(target, check)
    except DamagedData:
        return None


def _refuse_conflict(answers: Mapping[str, object]) -> None:
    """Raise the conflict that a replica told of, if one did."""
    for answer in answers.values():
        if isinstance(answer, WalConflict):
            raise answer


def _noted(state: LogState, parsed: LogName, data: bytes) -> LogState:
    """What is kept in mind after a file was stored."""
    if parsed.kind is Kind.SEGMENT:
        number = parsed.of(len(data)).number
        return state.with_segment(parsed.timeline, number, len(data))
    if parsed.kind is not Kind.PIECE:
        return state
    page = first_page(data) if parsed.start == 0 else None
    size = page.segment_bytes if page else state.segment_bytes
    if not size:
        return state
    lsn = parsed.of(size).start(size) + parsed.end
    return replace(state, segment_bytes=size).with_flushed(parsed.timeline, lsn)
