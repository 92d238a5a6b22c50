"""A base backup as a server sends it over the replication protocol (PostgreSQL 15 and later).

The answer to BASE_BACKUP is one copy of typed messages, in which archives in tar's form follow one
another: the data directory, then each tablespace. They are taken apart as they come.
"""

from __future__ import annotations

import select
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from cellarer.errors import SourceFailed
from cellarer.postgres.conninfo import described

_COMMAND = (
    "BASE_BACKUP (LABEL '{label}', CHECKPOINT 'fast', WAL true, TABLESPACE_MAP true,"
    " PROGRESS true, MANIFEST 'no', VERIFY_CHECKSUMS false)"
)
_BLOCK = tarfile.BLOCKSIZE
_DATA, _ARCHIVE = ord("d"), ord("n")


@dataclass(frozen=True)
class SentTablespace:
    """A tablespace as the server told of it before the first file."""

    oid: int
    path: str


@dataclass(frozen=True)
class Member:
    """A file or a directory of a base backup; `blocks` has to be read before the next is asked for.

    `tablespace` is the oid of the tablespace that `path` is below, None for the data directory.
    """

    tablespace: int | None
    path: str
    directory: bool
    size_bytes: int
    mode: int
    mtime: datetime
    blocks: Iterator[bytes]


class BaseBackupStream:
    """One BASE_BACKUP at work, on a connection of its own.

    `start_lsn`, `timeline`, `tablespaces` and `expected_bytes` are known from the beginning,
    `stop_lsn` when all members were read. LSNs are text, as the server writes them. Raises
    `SourceFailed`.
    """

    def __init__(self, dsn: str, label: str) -> None:
        self.stop_lsn = ""
        self._described = described(dsn)
        self._connection = pq.PGconn.connect(make_conninfo(dsn, replication="true").encode())
        try:
            if self._connection.status != pq.ConnStatus.OK:
                raise self._failure("cannot open a replication connection")
            quoted = label.replace("'", "''")
            self._connection.send_query(_COMMAND.format(label=quoted).encode())
            [(self.start_lsn, timeline)] = self._rows()
            self.timeline = int(timeline)
            spaces = self._rows()
            # The data directory has neither oid nor path; sizes are in kilobytes.
            self.tablespaces: Sequence[SentTablespace] = [
                SentTablespace(int(oid), path) for oid, path, _ in spaces if oid
            ]
            self.expected_bytes = sum(int(size or 0) for *_, size in spaces) * 1024
            if self._result() != pq.ExecStatus.COPY_OUT:
                raise self._failure("the server sends no base backup")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection; a backup that is not complete ends with it on the server."""
        self._connection.finish()

    def members(self) -> Iterator[Member]:
        """Every file and directory, as the server sends them."""
        archive = _Archive(self._messages())
        while (member := archive.next_member(self.tablespaces)) is not None:
            yield member
            archive.pass_over()
        [(self.stop_lsn, _)] = self._rows()
        if self._result() != pq.ExecStatus.COMMAND_OK:
            raise self._failure("the base backup did not end well")

    def _messages(self) -> Iterator[memoryview]:
        while True:
            length, data = self._connection.get_copy_data(1)
            if length > 0:
                yield data
            elif length == 0:
                self._await_input()
            elif length == -1:
                return
            else:
                raise self._failure("the base backup broke off")

    def _await_input(self) -> None:
        select.select([self._connection.socket], [], [])
        try:
            self._connection.consume_input()
        except psycopg.OperationalError as error:
            raise self._failure("the base backup broke off") from error

    def _rows(self) -> list[tuple[str, ...]]:
        """The rows of the next result, as text; "" stands for null."""
        if self._result() != pq.ExecStatus.TUPLES_OK:
            raise self._failure("the server refuses a base backup")
        result = self._answer
        return [
            tuple(
                (result.get_value(row, column) or b"").decode() for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]

    def _result(self) -> pq.ExecStatus | None:
        while self._connection.is_busy():
            self._await_input()
        answer = self._connection.get_result()
        if answer is None:
            return None
        self._answer = answer
        return pq.ExecStatus(answer.status)

    def _failure(self, what: str) -> SourceFailed:
        told = self._connection.error_message.decode(errors="replace").strip()
        return SourceFailed(f"{what} from {self._described}", detail=told, hint=_advice(told))


class _Archive:
    """Archives in tar's form, out of the messages that hold them."""

    def __init__(self, messages: Iterator[memoryview]) -> None:
        self._messages = messages
        self._tablespace: tuple[str, str] = ("", "")
        self._held = b""
        self._left = 0
        self._padding = 0

    def next_member(self, tablespaces: Sequence[SentTablespace]) -> Member | None:
        """The next file or directory, None after the last one."""
        while True:
            header = self._take_block()
            if header is None:
                return None
            if header.count(0) == _BLOCK:
                continue  # the end of an archive
            try:
                found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise SourceFailed(
                    "the base backup is no tar archive", detail=str(error)
                ) from error
            if not (found.isreg() or found.isdir()):
                raise SourceFailed(
                    f"the base backup holds something that is no file: {found.name}",
                    hint='Back up on the database\'s host instead: read = "direct".',
                )
            self._left, self._padding = found.size, -found.size % _BLOCK
            return Member(
                tablespace=self._oid(tablespaces),
                path=found.name.removeprefix("./").rstrip("/"),
                directory=found.isdir(),
                size_bytes=found.size,
                mode=found.mode,
                mtime=datetime.fromtimestamp(found.mtime, UTC),
                blocks=self._blocks(),
            )

    def pass_over(self) -> None:
        """Skip what was not read of the last member, and the padding behind it."""
        for _ in self._blocks():
            pass
        self._left, self._padding = self._padding, 0
        for _ in self._blocks():
            pass

    def _oid(self, tablespaces: Sequence[SentTablespace]) -> int | None:
        name, path = self._tablespace
        if not path:
            return None
        return next((t.oid for t in tablespaces if t.path == path), int(name.partition(".")[0]))

    def _blocks(self) -> Iterator[bytes]:
        while self._left:
            if not self._held and not self._fill():
                raise SourceFailed("the base backup breaks off within a file")
            part, self._held = self._held[: self._left], self._held[self._left :]
            self._left -= len(part)
            yield part

    def _take_block(self) -> bytes | None:
        while len(self._held) < _BLOCK:
            if not self._fill():
                if self._held:
                    raise SourceFailed("the base backup breaks off within a header")
                return None
        block, self._held = self._held[:_BLOCK], self._held[_BLOCK:]
        return block

    def _fill(self) -> bool:
        """Take one more message of data in; False where there is none."""
        for message in self._messages:
            if message[0] == _DATA:
                self._held += message[1:]
                return True
            if message[0] == _ARCHIVE:
                name, path, *_ = bytes(message[1:]).decode().split("\0")
                self._tablespace = (name, path)
        return False


def _advice(told: str) -> str:
    if "permission denied" in told or "must be" in told or "replication" in told:
        return (
            "Give the user the attribute REPLICATION, and let pg_hba.conf admit it for replication."
        )
    if "number of requested standby connections" in told or "max_wal_senders" in told:
        return "Raise max_wal_senders on the server, or end a replication connection."
    return "See the server's log for what it did at that time."
