"""Lets `pg_restore` empty each table in the transaction that fills it.

PostgreSQL then appends the rows in the order in which they come, instead of looking for gaps in
the pages so far, so that a dump of the restored table has the same bytes again. And it writes no
WAL for them where `wal_level` is `minimal`. `pg_restore --jobs` does the same to the tables that
it has created, but only when it reads from a file.
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct

from cellarer.postgres.toc import TableOfContents, TocEntry

_LENGTH = Struct("<BI")


def with_tables_emptied(toc: TableOfContents) -> TableOfContents:
    """The same table of contents, with a TRUNCATE before every COPY into a table that it creates.

    Sent as one query, both are one transaction. Tables that the archive does not create, such as
    those of an extension, keep what is in them. Only `raw` differs, so offsets do not fit any more.
    """
    created = {entry.dump_id for entry in toc.entries if entry.description == "TABLE"}
    parts: list[bytes] = []
    position = 0
    for entry in toc.with_data():
        if not entry.copy_statement or not created & set(entry.dependencies):
            continue
        old = _text(entry.copy_statement)
        # No text of the archive can hold another one's length, which has zero bytes. A name in an
        # encoding other than UTF-8 is not found: its table is filled the slower way.
        start = toc.raw.find(old, position)
        if start >= 0:
            parts += [toc.raw[position:start], _text(_truncation(entry) + entry.copy_statement)]
            position = start + len(old)
    return replace(toc, raw=b"".join([*parts, toc.raw[position:]]))


def _truncation(entry: TocEntry) -> str:
    name = ".".join('"' + part.replace('"', '""') + '"' for part in (entry.namespace, entry.tag))
    return f"TRUNCATE TABLE ONLY {name}; "


def _text(text: str) -> bytes:
    """A text as it stands in an archive: sign, length, bytes."""
    encoded = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(0, len(encoded)) + encoded
