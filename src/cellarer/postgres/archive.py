"""The custom format of `pg_dump`, taken apart into streams and put together again.

An archive is a table of contents and one data block per entry that has data:

    table of contents   header, number of entries, entries
    data block          type byte, dump id, frames, terminator
    frame               an integer (the length), that many bytes
    integer             sign byte, 4 bytes little-endian

Table data has one frame per row of COPY text and a last one with the end marker `\\.`. A block of
large objects has, for each object, its oid as an integer and its frames up to a frame of length 0;
an oid 0 ends the block. Both kinds of block therefore end in five zero bytes.

Only what `pg_dump --format=custom --compress=0` of PostgreSQL 12 to 18 writes is read: archive
versions 1.14 to 1.16.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from struct import Struct

from cellarer.errors import DamagedData
from cellarer.postgres.toc import (
    INTEGER,
    READ_BYTES,
    Buffer,
    Pipe,
    TableOfContents,
    TocEntry,
    damaged,
    fill_offsets,
    parse_toc,
    read_toc,
)

__all__ = [
    "ArchiveReader",
    "TableOfContents",
    "TocEntry",
    "data_offsets",
    "data_paths",
    "decode_segment",
    "encode_segment",
    "fill_offsets",
    "parse_toc",
    "rows",
    "table_path",
    "tables_path",
    "toc_path",
    "write_archive",
]

_DATA, _LARGE_OBJECTS = 1, 3
_BLOCK_HEADER = Struct("<BBI")
_TERMINATOR = bytes(INTEGER.size)
_END_MARKER = b"\\.\n\n\n"

_UNSAFE = re.compile(r"[%/\x00-\x1f\x7f\udc80-\udcff]")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")


class ArchiveReader:
    """Reads an uncompressed archive once from front to back, such as from the pipe of `pg_dump`.

    Memory: the table of contents and about two reads of `READ_BYTES`. Raises `DamagedData` where
    the archive is none, is compressed, or ends before its last block does.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._source = Buffer(pipe=pipe)
        self.toc = read_toc(self._source)
        if self.toc.compressed:
            raise DamagedData("the archive is compressed", hint="Write it with pg_dump -Fc -Z0.")

    def blocks(self) -> Iterator[tuple[TocEntry, Iterator[bytes]]]:
        """Every data block with its content, without block header and terminator.

        What the caller leaves unread of a block is skipped when it asks for the next one.
        """
        missing = {entry.dump_id: entry for entry in self.toc.with_data()}
        while self._source.fill(1):
            kind, _sign, dump_id = _BLOCK_HEADER.unpack(self._source.take(_BLOCK_HEADER.size))
            entry = missing.pop(dump_id, None)
            if entry is None or kind != _block_kind(entry):
                raise damaged(f"a block of type {kind} for entry {dump_id} is out of place")
            content = self._large_objects() if entry.holds_large_objects else self._rows()
            yield entry, content
            for _unread in content:
                pass
        if missing:
            names = ", ".join(f"{one.namespace}.{one.tag}" for one in missing.values())
            raise damaged(f"it ends before the data of {names[:500]}")

    def _rows(self) -> Iterator[bytes]:
        """Table data up to its terminator, found without looking at single rows.

        COPY text holds no zero byte and no frame is empty, so within the rows at most four zero
        bytes follow each other: a sign and the three low bytes of a length. The first five are
        the terminator. Zeros at the end of a read may belong to it and wait for the next read.
        """
        source, last = self._source, b"\n"
        while True:
            start = source.position
            # From behind it takes a third of the time to see that there is none, as in most reads.
            found = source.data.rfind(_TERMINATOR, start) >= 0
            end = source.data.find(_TERMINATOR, start) if found else -1
            if not found:
                tail = source.data[max(start, len(source.data) - len(_TERMINATOR) + 1) :]
                end = len(source.data) - len(tail) + len(tail.rstrip(b"\0"))
            if end > start:
                last = source.data[end - 1 : end]
                source.position = end
                yield source.data[start:end]
            source.require(len(_TERMINATOR))
            if found:
                source.position += len(_TERMINATOR)
                break
        if last != b"\n":
            raise damaged("the data of a table does not end with a row")

    def _large_objects(self) -> Iterator[bytes]:
        """Large objects up to the oid 0. Their bytes are any, so the frames are walked."""
        source, pending = self._source, bytearray()
        while (oid := source.take(INTEGER.size)) != _TERMINATOR:
            pending += oid
            while True:
                frame = source.take(INTEGER.size)
                pending += frame
                sign, length_bytes = INTEGER.unpack(frame)
                if sign:
                    raise damaged("a frame of a large object has a negative length")
                if not length_bytes:
                    break
                pending += source.take(length_bytes)
                if len(pending) >= READ_BYTES:
                    yield bytes(pending)
                    pending.clear()
        if pending:
            yield bytes(pending)


def write_archive(
    toc: TableOfContents, blocks: Iterable[tuple[TocEntry, Iterable[bytes]]]
) -> Iterator[bytes]:
    """An archive again, as `pg_restore` reads it from a file or a pipe.

    The blocks may be some of the archive's, in the order of `toc.with_data()`: out of a pipe
    `pg_restore` reads them in that order and no other.
    """
    yield toc.raw
    for entry, content in blocks:
        yield _BLOCK_HEADER.pack(_block_kind(entry), 0, entry.dump_id)
        yield from content
        yield _TERMINATOR


def data_offsets(toc: TableOfContents, sizes: Iterable[tuple[TocEntry, int]]) -> dict[int, int]:
    """Where the blocks of `write_archive` begin in a file: dump id to offset in bytes.

    `sizes` holds the length in bytes of each block's content, in the order of the blocks.
    """
    offsets, position = {}, len(toc.raw)
    for entry, size_bytes in sizes:
        offsets[entry.dump_id] = position
        position += _BLOCK_HEADER.size + size_bytes + len(_TERMINATOR)
    return offsets


def rows(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of a table's block as COPY text, in pieces of whole rows, without end marker.

    Memory: one block and one row. Raises `DamagedData` where the content is not whole.
    """
    data, ended = bytearray(), False
    for block in blocks:
        data += block
        frames: list[bytes] = []
        position = 0
        while position + INTEGER.size <= len(data):
            sign, length_bytes = INTEGER.unpack_from(data, position)
            start, end = position + INTEGER.size, position + INTEGER.size + length_bytes
            if sign or ended:
                raise damaged("the data of a table is not framed as rows")
            if end > len(data):
                break
            frame = bytes(data[start:end])
            ended = frame == _END_MARKER
            if not ended:
                frames.append(frame)
            position = end
        del data[:position]
        if frames:
            yield b"".join(frames)
    if data or not ended:
        raise damaged("the data of a table ends before its end marker")


def encode_segment(name: str) -> str:
    """A name as one segment of a stream's path: no slash, no control character, never `..`.

    These, `%`, and bytes that are no text in the database's encoding become `%` and two digits.
    """
    if set(name) == {"."}:
        return "%2E" * len(name)
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", name)


def decode_segment(segment: str) -> str:
    """The name that `encode_segment` made `segment` of."""

    def character(match: re.Match[str]) -> str:
        byte = int(match[1], 16)
        return chr(byte if byte < 0x80 else 0xDC00 + byte)

    return _ESCAPE.sub(character, segment)


def toc_path(database: str) -> str:
    """The stream of a database's table of contents."""
    return f"{encode_segment(database)}/toc"


def tables_path(database: str) -> str:
    """The stream that says how many rows each table of a database has."""
    return f"{encode_segment(database)}/tables.json"


def table_path(database: str, schema: str, table: str) -> str:
    """The stream of one table's rows."""
    return "/".join((encode_segment(database), "data", *map(encode_segment, (schema, table))))


def data_paths(database: str, toc: TableOfContents) -> dict[int, str]:
    """The stream that holds the data of each entry: dump id to path, in the order of blocks."""
    paths: dict[int, str] = {}
    large_objects = 0
    for entry in toc.with_data():
        if entry.holds_large_objects:
            paths[entry.dump_id] = f"{encode_segment(database)}/large-objects/{large_objects}"
            large_objects += 1
        else:
            paths[entry.dump_id] = table_path(database, entry.namespace, entry.tag)
    return paths


def _block_kind(entry: TocEntry) -> int:
    return _LARGE_OBJECTS if entry.holds_large_objects else _DATA
