"""Blocks of a cluster's files, with the pages in them looked at on their way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cellarer.errors import SourceFailed
from cellarer.postgres.base_files import segment_of
from cellarer.postgres.pages import Suspect, suspects

BLOCK_BYTES = 1 << 20
_PAUSES_SECONDS = (0.0, 0.1, 0.4)

PageReader = Callable[[int], bytes]
"""A page of a file, read once more: by its number in the file."""


@dataclass(frozen=True)
class Layout:
    """How a server lays out its files. `start_lsn` is where the backup starts.

    What was written since is written again by recovery, so a page that is newer may be torn.
    """

    page_bytes: int
    segment_bytes: int
    checksums: bool
    start_lsn: int


@dataclass
class PageCheck:
    """Looks at the pages of one backup and gathers those that are damaged: path, page of file."""

    layout: Layout
    damaged: list[tuple[str, int]] = field(default_factory=list)

    def checked(self, path: str, offset: int, block: bytes, again: PageReader) -> bytes:
        """A block of a relation's file, beginning at a page; a page that was torn, as it is now.

        Raises whatever `again` does.
        """
        layout = self.layout
        if not layout.checksums:
            return block
        first_in_file = offset // layout.page_bytes
        before = segment_of(path) * (layout.segment_bytes // layout.page_bytes)
        patched: bytearray | None = None
        for suspect in suspects(block, layout.page_bytes, before + first_in_file):
            if self._excused(suspect):
                continue
            number = suspect.page - before
            page = self._settled(suspect.page, number, again)
            if page is None:
                self.damaged.append((path, number))
            else:
                patched = patched or bytearray(block)
                at = number * layout.page_bytes - offset
                patched[at : at + len(page)] = page
        return bytes(patched) if patched else block

    def _settled(self, page: int, number: int, again: PageReader) -> bytes | None:
        """The page once it is in order, None if it does not get so: it may be in the writing."""
        for pause in _PAUSES_SECONDS:
            time.sleep(pause)
            data = again(number)
            if len(data) < self.layout.page_bytes:
                return data  # truncated meanwhile
            found = suspects(data, self.layout.page_bytes, page)
            if not found or self._excused(found[0]):
                return data
        return None

    def _excused(self, suspect: Suspect) -> bool:
        return not suspect.new and suspect.lsn >= self.layout.start_lsn


def file_blocks(
    place: Path, path: str, size_bytes: int, check: PageCheck | None
) -> Iterator[bytes]:
    """A file up to a size, which it may not reach any more. Raises `SourceFailed`."""
    try:
        with place.open("rb", buffering=0) as file:
            for offset in range(0, size_bytes, BLOCK_BYTES):
                block = read_block(file.fileno(), path, offset, size_bytes, check)
                if not block:
                    return
                yield block
    except FileNotFoundError:
        return  # a relation that was dropped meanwhile; recovery drops it as well
    except OSError as error:
        raise SourceFailed(f"{place} cannot be read", detail=error.strerror or "") from error


def read_block(
    descriptor: int, path: str, offset: int, size_bytes: int, check: PageCheck | None
) -> bytes:
    """One block of a file; empty behind its end. Raises `OSError`."""
    wanted = min(BLOCK_BYTES, size_bytes - offset)
    block = os.pread(descriptor, wanted, offset)
    while (
        block
        and len(block) < wanted
        and (more := os.pread(descriptor, wanted - len(block), offset + len(block)))
    ):
        block += more
    if check is None or not block:
        return block
    page = check.layout.page_bytes
    return check.checked(path, offset, block, lambda n: os.pread(descriptor, page, n * page))
