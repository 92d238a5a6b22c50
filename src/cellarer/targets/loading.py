"""Loads one database of a point: schema, then rows and indexes in parallel, then all the rest.

`pg_restore` does the work. The rows never touch a disk here: each worker gets an archive on its
standard input that is put together on the fly from the streams of its share of the tables.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from cellarer.ports import PointReader
from cellarer.postgres.archive import write_archive
from cellarer.postgres.contents import DATA, POST_DATA, DatabaseContents
from cellarer.postgres.emptying import with_tables_emptied
from cellarer.postgres.restore import run_pg_restore
from cellarer.postgres.selection import Selection
from cellarer.postgres.toc import TocEntry
from cellarer.targets.scratch import scratch_directory


class _AbandonedError(Exception):
    """Another worker failed; this one's work is of no use any more."""


@dataclass(frozen=True)
class Loader:
    """How to load. `advance` is told of every block of rows, from several threads, one at a time.

    `schema_jobs` is for what is made when all rows are there. `tablespaces` says whether the server
    has all tablespaces of the point; else everything goes to the default one.
    """

    program: Path
    jobs: int
    schema_jobs: int
    tablespaces: bool
    note: Callable[[str], None]
    advance: Callable[[int], None]

    def load(
        self, reader: PointReader, database: DatabaseContents, chosen: Selection | None, dsn: str
    ) -> int:
        """Load the database, or what was chosen of it, into the empty database of `dsn`.

        Returns the bytes of data read from the point. Raises `TargetFailed` with the errors that
        `pg_restore` met, and whatever the reader raises.
        """
        with scratch_directory() as directory:
            return self._load(reader, database, chosen, dsn, directory)

    def _load(
        self,
        reader: PointReader,
        database: DatabaseContents,
        chosen: Selection | None,
        dsn: str,
        directory: Path,
    ) -> int:
        toc_file = directory / "toc.dump"
        toc_file.write_bytes(database.toc.raw)
        options: list[str | Path] = [] if self.tablespaces else ["--no-tablespaces"]
        entries = _entries(database, chosen)
        listed = [] if chosen is None else _list_option(directory / "chosen.list", entries)
        self._run(dsn, [*options, *listed, "--section=pre-data", toc_file])
        shares = _shares(database, chosen, self.jobs)
        self._load_rows(reader, database, entries, shares, dsn, directory, options)
        # The list holds no entry of another section: what belongs to no section of its own, such
        # as a comment, is taken by pg_restore to that of the entry before it.
        built = {entry.dump_id for share in shares for entry in _indexes(database, entries, share)}
        rest = [
            entry
            for entry in entries
            if database.sections[entry.dump_id] == POST_DATA and entry.dump_id not in built
        ]
        listed = _list_option(directory / "rest.list", rest)
        parallel = [f"--jobs={self.schema_jobs}"] if self.schema_jobs > 1 else []
        self._run(dsn, [*options, *listed, *parallel, "--section=post-data", toc_file])
        return sum(
            database.streams[entry.dump_id].size_bytes
            for share in shares
            for entry in share
            if entry.dump_id in database.streams
        )

    def _load_rows(
        self,
        reader: PointReader,
        database: DatabaseContents,
        entries: Sequence[TocEntry],
        shares: Sequence[Sequence[TocEntry]],
        dsn: str,
        directory: Path,
        options: Sequence[str | Path],
    ) -> None:
        toc = with_tables_emptied(database.toc)
        stop = threading.Event()
        lock = threading.Lock()

        def blocks(entry: TocEntry) -> Iterator[bytes]:
            for block in reader.read(database.streams[entry.dump_id].path):
                if stop.is_set():
                    raise _AbandonedError
                yield block
                with lock:
                    self.advance(len(block))

        def work(number: int, share: Sequence[TocEntry]) -> list[str]:
            listed = _list_option(directory / f"rows-{number}.list", share)
            data = ((entry, blocks(entry)) for entry in share if entry.dump_id in database.streams)
            archive = write_archive(toc, data)
            arguments = [*options, *listed, "--section=data"]
            warnings = run_pg_restore(self.program, dsn, arguments, archive)
            # Whoever is done with its rows does not wait for the others.
            indexes = _indexes(database, entries, share)
            if indexes and not stop.is_set():
                listed = _list_option(directory / f"indexes-{number}.list", indexes)
                arguments = [*options, *listed, "--section=post-data", directory / "toc.dump"]
                warnings += run_pg_restore(self.program, dsn, arguments)
            return warnings

        with ThreadPoolExecutor(max_workers=max(len(shares), 1)) as pool:
            futures = [pool.submit(work, *numbered) for numbered in enumerate(shares)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # Also on Ctrl-C: the pool waits for its threads, so they must end.
                if not all(_succeeded(future) for future in futures):
                    stop.set()
        _raise_first(futures)
        for future in futures:
            for warning in future.result():
                self.note(warning)

    def _run(self, dsn: str, arguments: Sequence[str | Path]) -> None:
        for warning in run_pg_restore(self.program, dsn, arguments):
            self.note(warning)


def _entries(database: DatabaseContents, chosen: Selection | None) -> list[TocEntry]:
    entries = database.toc.entries
    return [entry for entry in entries if chosen is None or entry.dump_id in chosen.dump_ids]


def _indexes(
    database: DatabaseContents, entries: Sequence[TocEntry], share: Sequence[TocEntry]
) -> list[TocEntry]:
    """The indexes and keys of the share's tables, with what is said of them, that need no more.

    Those of partitioned tables, foreign keys and the like wait until all rows are there.
    """
    tables = {dump_id for entry in share for dump_id in entry.dependencies}
    later = {n for n, section in database.sections.items() if section == POST_DATA}
    found: dict[int, TocEntry] = {}
    for entry in entries:
        needed = later & set(entry.dependencies)
        index = entry.description in ("INDEX", "CONSTRAINT") and tables & set(entry.dependencies)
        said_of_one = entry.description == "COMMENT" and needed and needed <= found.keys()
        if entry.dump_id in later and (said_of_one or (index and not needed)):
            found[entry.dump_id] = entry
    return list(found.values())


def _shares(
    database: DatabaseContents, chosen: Selection | None, jobs: int
) -> list[list[TocEntry]]:
    """The entries of the data section, dealt to at most `jobs` workers, largest first.

    Everything but tables (large objects and what they need, positions of sequences) is one lot,
    because parts of it build on each other. Each share is in the archive's order, in which
    `pg_restore` reads from a pipe.
    """
    lots: list[list[TocEntry]] = [[]]
    for entry in _entries(database, chosen):
        if database.sections[entry.dump_id] == DATA:
            if entry.description == "TABLE DATA":
                lots.append([entry])
            else:
                lots[0].append(entry)

    def size_bytes(lot: list[TocEntry]) -> int:
        streams = database.streams
        return sum(streams[e.dump_id].size_bytes for e in lot if e.dump_id in streams)

    loads: list[tuple[int, int, list[TocEntry]]] = [(0, number, []) for number in range(jobs)]
    for lot in sorted((lot for lot in lots if lot), key=size_bytes, reverse=True):
        load, number, share = heapq.heappop(loads)
        heapq.heappush(loads, (load + size_bytes(lot) + 1, number, share + lot))
    order = {entry.dump_id: n for n, entry in enumerate(database.toc.entries)}
    return [sorted(share, key=lambda entry: order[entry.dump_id]) for _, _, share in loads if share]


def _list_option(file: Path, entries: Iterable[TocEntry]) -> list[str | Path]:
    file.write_text("".join(f"{entry.dump_id};\n" for entry in entries))
    return ["--use-list", file]


def _succeeded(future: Future[list[str]]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _raise_first(futures: Iterable[Future[list[str]]]) -> None:
    """Raise what went wrong first, not what was abandoned because of it."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, _AbandonedError):
            raise error
    if errors:
        raise errors[0]
