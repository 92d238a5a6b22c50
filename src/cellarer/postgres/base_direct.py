"""A base backup read from the data directory, between `pg_backup_start` and `pg_backup_stop`."""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from psycopg import errors

from cellarer.domain.wal import Segment, parse_lsn
from cellarer.errors import SourceFailed
from cellarer.ports import Held, Pieces
from cellarer.postgres.base_changes import Partly
from cellarer.postgres.base_files import BaseFile
from cellarer.postgres.base_pages import (
    BLOCK_BYTES,
    PageCheck,
    file_blocks,
    read_block,
    read_pieces,
)
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.data_directory import CONTROL_FILE, control_is_whole
from cellarer.postgres.snapshot import failures

_READERS = 2
_BLOCKS_AHEAD, _FILES_AHEAD = 8, 64
_START_TIMELINE = re.compile(r"^START TIMELINE: ([0-9]+)$", re.MULTILINE)

_CONTROL_TRIES = 10

_T = TypeVar("_T")
Claim = Callable[[BaseFile, os.stat_result], Held | Partly | None]


@dataclass(frozen=True)
class Ended:
    """What the server says at the end of a backup, and `pg_control` from just before it."""

    stop_lsn: int
    timeline: int
    label: bytes
    tablespace_map: bytes
    control: bytes


class OnlineBackup:
    """The state of backup of a server, which lasts as long as the connection.

    `start_lsn` is where recovery begins, and on which `timeline`; `began_ns` when that was, by the
    clock of the file system.
    """

    def __init__(self, connection: Connection, data_directory: Path, label: str) -> None:
        self._connection = connection
        self._control = data_directory / CONTROL_FILE
        self.keeps_wal = self._reserve_wal()
        with failures("the server does not begin a base backup"):
            called = time.monotonic_ns()
            row = connection.execute(
                "SELECT pg_backup_start(%s, fast => true)::text", [label]
            ).fetchone()
        assert row is not None
        self.start_lsn = parse_lsn(row[0])
        # The checkpoint wrote it at its end, so it began at most as long before as the call took.
        took = time.monotonic_ns() - called
        self.began_ns = self._control.stat().st_mtime_ns - took
        with failures("the server does not tell its timeline"):
            row = connection.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
        assert row is not None
        self.timeline = int(row[0])

    def end(self) -> Ended:
        """Leave the state of backup. Raises `SourceFailed`, also after a restart in between."""
        control = self._whole_control()
        with failures("the server does not end the base backup well"):
            row = self._connection.execute(
                "SELECT lsn::text, labelfile, spcmapfile"
                " FROM pg_backup_stop(wait_for_archive => false)"
            ).fetchone()
        assert row is not None
        lsn, label, spaces = row
        timeline = _START_TIMELINE.search(label)
        if timeline is None:
            raise SourceFailed("the server gives a label without a timeline", detail=label)
        return Ended(
            parse_lsn(lsn), int(timeline[1]), label.encode(), (spaces or "").encode(), control
        )

    def _whole_control(self) -> bytes:
        """The control file, which the server may be writing this instant."""
        for _ in range(_CONTROL_TRIES):
            control = self._control.read_bytes()
            if control_is_whole(control):
                return control
        raise damaged_control()

    def _reserve_wal(self) -> bool:
        """Keep the server from removing WAL before it was copied; whether it lets us."""
        name = f"cellarer_base_{secrets.token_hex(6)}"
        with suppress(
            errors.InsufficientPrivilege,
            errors.ObjectNotInPrerequisiteState,
            errors.ConfigurationLimitExceeded,
        ):
            self._connection.execute(
                "SELECT pg_create_physical_replication_slot(%s, true, true)", [name]
            )
            return True
        return False


def damaged_control() -> SourceFailed:
    """The error for a server whose control file is not what was written."""
    return SourceFailed(
        f"{CONTROL_FILE} of the server is damaged: it does not fit the sum at its end",
        detail="no server starts with it, so no backup is taken of it",
        hint="see to the disk of the server, restart nothing before a checkpoint has written it "
        "anew, then take the backup again",
    )


@dataclass
class OpenedFile:
    """A file that is being backed up, with what is claimed of it, and what is read of it."""

    file: BaseFile
    found: os.stat_result
    claim: Held | Partly | None
    descriptor: int | None
    scheduled: bool = False
    blocks: deque[Future[bytes]] = field(default_factory=deque)
    pieces: deque[Future[Pieces]] = field(default_factory=deque)


class ReadAhead:
    """Files in their order, read by several threads ahead of whoever takes them."""

    def __init__(self, files: Iterable[BaseFile], check: PageCheck, claim: Claim) -> None:
        self._check, self._claim = check, claim
        self._pool = ThreadPoolExecutor(_READERS, "read")
        self._opened: deque[OpenedFile] = deque()
        self._descriptors: set[int] = set()
        self._ahead = 0
        self._work = self._schedule(files)

    def __iter__(self) -> Iterator[OpenedFile]:
        """Each file that is still there; it is to be read before the next."""
        while self._pump(lambda: bool(self._opened)):
            yield self._opened.popleft()

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def blocks(self, opened: OpenedFile) -> Iterator[bytes]:
        """All of a file."""
        if opened.claim is None:
            yield from (block for block in self._results(opened, opened.blocks) if block)
            return
        # It was to be taken over, and could not be.
        if isinstance(opened.claim, Partly):
            for _ in self.pieces(opened):
                pass
        check = self._check if opened.file.relation else None
        place, path = Path(opened.file.place), opened.file.path
        yield from file_blocks(place, path, opened.found.st_size, check)

    def pieces(self, opened: OpenedFile) -> Iterator[Pieces]:
        """Of a file that was taken over but for some pieces, these."""
        return self._results(opened, opened.pieces)

    def _results(self, opened: OpenedFile, futures: deque[Future[_T]]) -> Iterator[_T]:
        while self._pump(lambda: bool(futures) or opened.scheduled) and futures:
            try:
                result = futures.popleft().result()
            except OSError as error:
                raise SourceFailed(
                    f"{opened.file.place} cannot be read", detail=error.strerror or str(error)
                ) from error
            self._ahead -= 1
            yield result
        self._close(opened)

    def _close(self, opened: OpenedFile) -> None:
        if opened.descriptor is not None:
            self._descriptors.remove(opened.descriptor)
            os.close(opened.descriptor)
            opened.descriptor = None

    def _pump(self, enough: Callable[[], bool]) -> bool:
        """Give the threads work; whether there is enough of it, or was, when all is scheduled."""
        while not enough() or (self._ahead < _BLOCKS_AHEAD and len(self._opened) < _FILES_AHEAD):
            if next(self._work, None) is None:
                break
        return enough()

    def _schedule(self, files: Iterable[BaseFile]) -> Generator[bool]:
        """Open files and submit the reading of their blocks, one step at a time."""
        for file in files:
            try:
                descriptor = os.open(file.place, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # dropped meanwhile; recovery drops it as well
            except OSError as error:
                raise SourceFailed(
                    f"{file.place} cannot be read", detail=error.strerror or str(error)
                ) from error
            self._descriptors.add(descriptor)
            found = os.fstat(descriptor)
            opened = OpenedFile(file, found, self._claim(file, found), descriptor)
            self._opened.append(opened)
            for _ in self._submitted(opened, descriptor):
                self._ahead += 1
                yield True
            opened.scheduled = True
            if not opened.blocks and not opened.pieces:
                self._close(opened)  # nothing of it is read, or all was
            yield True

    def _submitted(self, opened: OpenedFile, descriptor: int) -> Iterator[None]:
        """Have the threads read what is needed of a file, a step for each task of theirs."""
        path, size, claim = opened.file.path, opened.found.st_size, opened.claim
        if claim is None:
            check = self._check if opened.file.relation else None
            for offset in range(0, size, BLOCK_BYTES):
                read = self._pool.submit(read_block, descriptor, path, offset, size, check)
                opened.blocks.append(read)
                yield
        elif isinstance(claim, Partly):
            together = max(BLOCK_BYTES // claim.piece_bytes, 1)
            for start in range(0, len(claim.numbers), together):
                numbers = claim.numbers[start : start + together]
                of = (descriptor, path, numbers, claim.piece_bytes, size, self._check)
                opened.pieces.append(self._pool.submit(read_pieces, *of))
                yield


def wal_files(data_directory: Path, timeline: int, start: int, stop: int, size: int) -> list[Path]:
    """The segments of WAL from one position up to another, as they lie in `pg_wal`.

    Raises `SourceFailed` where the server has removed one.
    """
    found = []
    for number in range(start // size, max(stop - 1, start) // size + 1):
        name = Segment(timeline, number).name(size)
        path = data_directory / "pg_wal" / name
        if not path.exists():
            raise _removed(name)
        found.append(path)
    return found


def wal_blocks(path: Path, size: int) -> Iterator[bytes]:
    """A segment of WAL, whole. Raises `SourceFailed` where the server took it away meanwhile."""
    try:
        with path.open("rb", buffering=0) as file:
            for offset in range(0, size, BLOCK_BYTES):
                block = read_block(file.fileno(), path.name, offset, size, None)
                # The server names a file anew before it writes it over.
                if len(block) != min(BLOCK_BYTES, size - offset) or not os.path.samestat(
                    path.stat(), os.fstat(file.fileno())
                ):
                    raise _removed(path.name)
                yield block
    except FileNotFoundError:
        raise _removed(path.name) from None
    except OSError as error:
        raise SourceFailed(f"{path} cannot be read", detail=error.strerror or "") from error


def _removed(name: str) -> SourceFailed:
    return SourceFailed(
        f"the server has removed {name}, which this backup needs",
        detail="it was written while the backup ran",
        hint="Give the user the attribute REPLICATION, so that a slot keeps WAL, or raise"
        " wal_keep_size on the server; then run again.",
        retryable=True,
    )


def mode_of(found: os.stat_result) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(found.st_mode)
