"""Pages of a base backup that the server sends: a doubtful one is asked for once more."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from cellarer.postgres.base_pages import BLOCK_BYTES, PageCheck
from cellarer.postgres.catalogue import Connection


def checked_blocks(
    connection: Connection, server_path: str, path: str, blocks: Iterator[bytes], check: PageCheck
) -> Iterator[bytes]:
    """The blocks of a relation's file, made larger, with their pages looked at.

    `server_path` is where the file lies, below the data directory. A page is read again with
    `pg_read_binary_file`, if the user may do that; else the first reading decides.
    """
    size = check.layout.page_bytes

    def again(number: int) -> bytes:
        try:
            row = connection.execute(
                "SELECT pg_read_binary_file(%s, %s, %s, true)", [server_path, number * size, size]
            ).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            start = number * size - offset
            return block[start : start + size]
        return bytes(row[0]) if row and row[0] is not None else b""

    offset = 0
    for block in _regrouped(blocks):
        yield check.checked(path, offset // size, block, again)
        offset += len(block)


def _regrouped(blocks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        parts.append(block)
        held += len(block)
        while held >= BLOCK_BYTES:
            joined = b"".join(parts)
            yield joined[:BLOCK_BYTES]
            parts, held = [joined[BLOCK_BYTES:]], held - BLOCK_BYTES
    if held:
        yield b"".join(parts)
