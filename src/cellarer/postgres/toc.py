"""The table of contents of an archive of `pg_dump`: header, number of entries, entries.

Numbers are integers of a sign byte and 4 bytes little-endian; texts have an integer as length,
-1 for none; an offset is a state byte and 8 bytes. Archive versions 1.14 to 1.16 are known, which
PostgreSQL 12 to 18 write.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from cellarer.errors import DamagedData

READ_BYTES = 1 << 20
INTEGER = Struct("<BI")

_MAGIC = b"PGDMP"
_OLDEST, _NEWEST = (1, 14), (1, 16)
_COMPRESSION_BYTE_SINCE = (1, 15)
_RELATION_KIND_SINCE = (1, 16)
_OFFSET_BYTES, _CUSTOM_FORMAT = 8, 1
_OFFSET_SET = 2

_CLIENT_ENCODING = re.compile(rb"client_encoding = '(\w+)'")
_CODECS = {"koi8r": "koi8_r", "koi8u": "koi8_u"}


@dataclass(frozen=True)
class TocEntry:
    """One object of the archive. Texts that the archive leaves out are empty.

    `offset_position` is where in the raw table of contents the offset of the entry's data stands.
    """

    dump_id: int
    has_data: bool
    tag: str
    description: str
    section: int
    definition: str
    drop_statement: str
    copy_statement: str
    namespace: str
    tablespace: str
    owner: str
    dependencies: tuple[int, ...]
    offset_position: int

    @property
    def holds_large_objects(self) -> bool:
        """Whether the data of this entry is large objects rather than the rows of a table."""
        return self.description == "BLOBS"


@dataclass(frozen=True)
class TableOfContents:
    """What stands before the first data block; `raw` is all of it, verbatim."""

    raw: bytes
    archive_version: tuple[int, int, int]
    compressed: bool
    database: str
    server_version: str
    pg_dump_version: str
    entries: tuple[TocEntry, ...]

    def with_data(self) -> tuple[TocEntry, ...]:
        """The entries that have a data block, in the order of the blocks."""
        return tuple(entry for entry in self.entries if entry.has_data)


def parse_toc(raw: bytes) -> TableOfContents:
    """Read a table of contents. Raises `DamagedData` unless `raw` is exactly one."""
    source = Buffer(raw)
    toc = read_toc(source)
    if source.fill(1):
        raise damaged("bytes follow the end of its table of contents")
    return toc


def read_toc(source: Buffer) -> TableOfContents:
    """Read a table of contents and leave `source` at the first byte behind it."""
    return _TocParser(source).parse()


def fill_offsets(toc: TableOfContents, offsets: Mapping[int, int]) -> bytes:
    """The table of contents with the data offsets set, so that `pg_restore -j` can seek.

    It is as long as `toc.raw`, and so can take its place in a file.
    """
    raw = bytearray(toc.raw)
    positions = {entry.dump_id: entry.offset_position for entry in toc.with_data()}
    for dump_id, offset in offsets.items():
        field = bytes([_OFFSET_SET]) + offset.to_bytes(_OFFSET_BYTES, "little")
        raw[positions[dump_id] : positions[dump_id] + len(field)] = field
    return bytes(raw)


class Pipe(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, `size` at most; none at the end."""


class Buffer:
    """Bytes that are here, `data` from `position` on, and more behind them in a pipe."""

    def __init__(self, data: bytes = b"", pipe: Pipe | None = None) -> None:
        self.data = data
        self.position = 0
        self._pipe = pipe

    def fill(self, length_bytes: int) -> bool:
        """Read on until so many bytes are here; False where the pipe ends before."""
        while len(self.data) - self.position < length_bytes:
            more = self._pipe.read(READ_BYTES) if self._pipe else b""
            if not more:
                return False
            self.data = self.data[self.position :] + more
            self.position = 0
        return True

    def require(self, length_bytes: int) -> None:
        """The same, where less is damage."""
        if not self.fill(length_bytes):
            raise damaged("it ends in the middle")

    def take(self, length_bytes: int) -> bytes:
        """The next so many bytes."""
        self.require(length_bytes)
        start, self.position = self.position, self.position + length_bytes
        return self.data[start : self.position]


class _TocParser:
    """Reads header and entries, keeping every byte that it takes."""

    def __init__(self, source: Buffer) -> None:
        self._source = source
        self._raw = bytearray()
        self._version = (0, 0, 0)
        self._codec = "utf-8"

    def parse(self) -> TableOfContents:
        """Everything up to the first data block."""
        compressed = self._header()
        for _time_field in range(7):
            self._integer()
        names = [self._text() for _ in ("database", "server version", "pg_dump version")]
        found = [self._entry() for _ in range(self._integer())]
        for _numbers, texts, _dependencies in found:
            if texts[1] == b"ENCODING" and (match := _CLIENT_ENCODING.search(texts[2])):
                self._codec = _codec(match[1].decode())
        database, server_version, pg_dump_version = map(self._decoded, names)
        return TableOfContents(
            bytes(self._raw),
            self._version,
            compressed,
            database,
            server_version,
            pg_dump_version,
            tuple(self._decoded_entry(*one) for one in found),
        )

    def _header(self) -> bool:
        """Check that this is an archive to be read; say whether its data is compressed."""
        if self._take(len(_MAGIC)) != _MAGIC:
            raise damaged("it does not begin as one")
        self._version = (self._byte(), self._byte(), self._byte())
        if not _OLDEST <= self._version[:2] <= _NEWEST:
            raise DamagedData(
                f"archive version {'.'.join(map(str, self._version))} of pg_dump is not known",
                detail="known are 1.14 to 1.16, which PostgreSQL 12 to 18 write",
            )
        layout = (self._byte(), self._byte(), self._byte())
        if layout != (INTEGER.size - 1, _OFFSET_BYTES, _CUSTOM_FORMAT):
            raise damaged(f"its integers, offsets and format are {layout}")
        one_byte = self._version[:2] >= _COMPRESSION_BYTE_SINCE
        return (self._byte() if one_byte else self._integer()) != 0

    def _entry(self) -> tuple[tuple[int, ...], tuple[bytes, ...], tuple[int, ...]]:
        dump_id, has_data = self._integer(), self._integer()
        for _oid in ("of the catalogue", "of the object"):
            self._text()
        tag, description = self._text(), self._text()
        section = self._integer()
        definition, drop, copy = self._text(), self._text(), self._text()
        namespace, tablespace, _access_method = self._text(), self._text(), self._text()
        if self._version[:2] >= _RELATION_KIND_SINCE:
            self._integer()
        owner, _with_oids = self._text(), self._text()
        dependencies = []
        while dependency := self._text():
            if not dependency.isdigit():
                raise damaged(f"entry {dump_id} depends on {dependency!r}")
            dependencies.append(int(dependency))
        offset_position = len(self._raw)
        self._take(1 + _OFFSET_BYTES)
        texts = (tag, description, definition, drop, copy, namespace, tablespace, owner)
        return (dump_id, has_data, section, offset_position), texts, tuple(dependencies)

    def _decoded_entry(
        self, numbers: tuple[int, ...], texts: tuple[bytes, ...], dependencies: tuple[int, ...]
    ) -> TocEntry:
        dump_id, has_data, section, offset_position = numbers
        tag, description, definition, drop, copy, namespace, tablespace, owner = map(
            self._decoded, texts
        )
        return TocEntry(
            dump_id,
            bool(has_data),
            tag,
            description,
            section,
            definition,
            drop,
            copy,
            namespace,
            tablespace,
            owner,
            dependencies,
            offset_position,
        )

    def _decoded(self, text: bytes) -> str:
        # Databases in SQL_ASCII may name things in bytes of no known encoding.
        return text.decode(self._codec, "surrogateescape")

    def _take(self, length_bytes: int) -> bytes:
        taken = self._source.take(length_bytes)
        self._raw += taken
        return taken

    def _byte(self) -> int:
        return self._take(1)[0]

    def _integer(self) -> int:
        sign, value = INTEGER.unpack(self._take(INTEGER.size))
        return -int(value) if sign else int(value)

    def _text(self) -> bytes:
        length_bytes = self._integer()
        return self._take(length_bytes) if length_bytes > 0 else b""


def _codec(client_encoding: str) -> str:
    """Python's name of an encoding, or UTF-8 where PostgreSQL alone knows it."""
    name = client_encoding.lower()
    name = _CODECS.get(name, name.replace("win", "cp"))
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def damaged(detail: str) -> DamagedData:
    """The error for an archive that is not as `pg_dump` writes it."""
    return DamagedData("the archive of pg_dump is damaged", detail=detail)
