"""Finds the rows and the large objects in which a restored database differs from its point."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from struct import Struct

from cellarer.errors import DamagedData
from cellarer.postgres.archive import rows
from cellarer.postgres.toc import TocEntry
from cellarer.targets.difference import Item, difference

Content = Callable[[], Iterator[bytes]]

_INTEGER = Struct("<BI")
_COLUMN = re.compile(r'"((?:[^"]|"")+)"|([^\s,()"]+)')
_VALUE_CHARACTERS = 60


def rows_differ(
    entry: TocEntry, primary_key: Sequence[str], expected: Content, found: Content
) -> str:
    """Which rows of a table differ, by primary key where it has one; empty where at most the
    order does.

    `expected` and `found` give the content of the table's block and are called twice. Memory is
    bounded whatever the table's size.
    """
    columns = copied_columns(entry.copy_statement)
    # A generated column may be part of the key; it is not in the dump.
    places = [columns.index(name) for name in primary_key if name in columns]
    if len(places) < len(primary_key):
        places = []

    def items(content: Content) -> Iterator[Item]:
        for piece in rows(content()):
            for row in piece.split(b"\n")[:-1]:
                if places:
                    values = row.split(b"\t")
                    yield b"\t".join([values[place] for place in places]), row
                else:
                    yield None, row

    def name(key: bytes | None, number: int) -> str:
        if key is None:
            return f"row {number}"
        values = map(_shown, key.split(b"\t"))
        return ", ".join(f"{one}={value}" for one, value in zip(primary_key, values, strict=True))

    result = difference(lambda: items(expected), lambda: items(found), name)
    return result.described("row") if result.count else ""


def large_objects_differ(expected: Content, found: Content) -> str:
    """Which large objects differ; empty where only their order does."""
    result = difference(
        lambda: large_objects(expected()),
        lambda: large_objects(found()),
        lambda key, _number: f"oid {key.decode() if key else 0}",
    )
    return result.described("large object") if result.count else ""


def copied_columns(copy_statement: str) -> list[str]:
    """The columns that `COPY schema.table (columns) FROM stdin;` names, in their order."""
    listed = copy_statement.rpartition(" FROM stdin")[0].rstrip()
    if not listed.endswith(")"):
        return []
    # From the end, because the table's name may hold parentheses; names in quotes come whole.
    start = _list_start(listed)
    return [
        (quoted.replace('""', '"') if quoted else plain)
        for quoted, plain in _COLUMN.findall(listed[start + 1 : -1])
    ]


def large_objects(blocks: Iterable[bytes]) -> Iterator[Item]:
    """Oid and digest of each large object in the content of blocks of large objects."""
    data, position = bytearray(), 0
    source = iter(blocks)

    def take(length_bytes: int) -> bytes:
        nonlocal position
        while len(data) - position < length_bytes:
            del data[:position]
            position = 0
            more = next(source, b"")
            if not more:
                raise DamagedData("the large objects of the point end in the middle")
            data.extend(more)
        position += length_bytes
        return bytes(data[position - length_bytes : position])

    while len(data) > position or _more(source, data):
        oid = _INTEGER.unpack(take(_INTEGER.size))[1]
        digest = blake2b()
        while length_bytes := _INTEGER.unpack(take(_INTEGER.size))[1]:
            digest.update(take(length_bytes))
        yield str(oid).encode(), digest.digest()


def _more(source: Iterator[bytes], data: bytearray) -> bool:
    more = next(source, b"")
    data.extend(more)
    return bool(more)


def _list_start(listed: str) -> int:
    """Where the last list in parentheses begins; parentheses in quoted names do not count."""
    quoted = False
    for place in range(len(listed) - 1, -1, -1):
        if listed[place] == '"':
            quoted = not quoted
        elif listed[place] == "(" and not quoted:
            return place
    return -1


def _shown(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "..."
