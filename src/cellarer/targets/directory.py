"""Restores a point into a directory: databases as archives for `pg_restore`, files as files."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from cellarer.domain.snapshot import Entry
from cellarer.errors import DamagedData, TargetFailed, UsageError
from cellarer.ports import PointReader, Progress, Restored, phase
from cellarer.postgres.archive import (
    data_offsets,
    encode_segment,
    rows,
    tables_path,
    write_archive,
)
from cellarer.postgres.contents import (
    ROLES_PATH,
    SERVER_PATH,
    Contents,
    DatabaseContents,
    is_dump,
    read_contents,
)
from cellarer.postgres.selection import no_match, select, table_names
from cellarer.postgres.toc import TocEntry, fill_offsets
from cellarer.targets.files import create_file, open_below


@dataclass(frozen=True)
class _File:
    """One file to write, below the target directory."""

    path: str
    blocks: Iterable[bytes]
    mode: int = 0o600
    mtime: datetime | None = None


class DirectoryTarget:
    """Writes what a point holds below `path`.

    A point of databases becomes `DATABASE.dump` for each, a standard archive that `pg_restore -j`
    reads, beside `roles.sql`, `server.json` and `DATABASE.tables.json` with the counts of rows.
    With `only`, each matching table becomes `DATABASE/SCHEMA/TABLE.sql`, a script for `psql` that
    fills the table. Any other point becomes its files, with their modes and times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._overwrite = False

    def prepare(self, overwrite: bool) -> None:
        """Make the directory where it is missing. Single files are looked at before any write."""
        self._overwrite = overwrite
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(self._path, error) from error

    def restore(self, reader: PointReader, only: str | None, progress: Progress) -> Restored:
        """Write the files, each complete and on the disk before it gets its name.

        Raises `TargetFailed` where one exists already, unless overwriting was asked for.
        """
        began = time.monotonic()
        files, recovered_to = _files(reader, only)
        present = self._present(files)
        if present and not self._overwrite:
            raise TargetFailed(
                f"{self._path} holds files of these names already",
                detail=", ".join(present[:3]) + (", ..." if len(present) > 3 else ""),
                hint="Name another directory, or add --overwrite.",
            )
        if present:
            # What cannot be read must not cost what is there, nor leave half of it replaced.
            _read_through(_files(reader, only)[0], progress)
        restored_bytes = 0
        for file in files:
            restored_bytes += self._write(file, progress)
        return Restored(restored_bytes, time.monotonic() - began, recovered_to)

    def replaces(self, reader: PointReader, only: str | None) -> Sequence[str]:
        """The files that are there and that restoring with overwriting replaces."""
        return self._present(_files(reader, only)[0])

    def _present(self, files: Sequence[_File]) -> list[str]:
        return [file.path for file in files if os.path.lexists(self._path / file.path)]

    def _write(self, file: _File, progress: Progress) -> int:
        written_bytes = 0

        def counted() -> Iterator[bytes]:
            nonlocal written_bytes
            for block in file.blocks:
                yield block
                written_bytes += len(block)
                progress.advance(len(block))

        *parents, name = file.path.split("/")
        try:
            with open_below(self._path, parents) as directory:
                create_file(directory, name, counted(), file.mode, file.mtime)
        except OSError as error:
            raise _failure(self._path / file.path, error) from error
        return written_bytes


def _files(reader: PointReader, only: str | None) -> tuple[list[_File], str]:
    """The files to write, none of them read yet, and the moment that they show."""
    if is_dump(reader):
        contents = read_contents(reader)
        return _dump_files(reader, contents, only), contents.captured_at
    return _plain_files(reader, only), reader.point


def _read_through(files: Sequence[_File], progress: Progress) -> None:
    """Read every byte of the files. Raises `DamagedData`."""
    with phase(progress, "reading everything first", None):
        for file in files:
            for block in file.blocks:
                progress.advance(len(block))


def _dump_files(reader: PointReader, contents: Contents, only: str | None) -> list[_File]:
    if only is not None:
        files = [file for one in contents.databases for file in _table_files(reader, one, only)]
        if not files:
            raise no_match(only, [n for one in contents.databases for n in table_names(one.toc)])
        return files
    files = [_File(path, reader.read(path)) for path in (ROLES_PATH, SERVER_PATH)]
    for database in contents.databases:
        name = encode_segment(database.name)
        files.append(_File(f"{name}.dump", _archive(reader, database)))
        files.append(_File(f"{name}.tables.json", reader.read(tables_path(database.name))))
    return files


def _archive(reader: PointReader, database: DatabaseContents) -> Iterator[bytes]:
    """The archive as `pg_dump` itself writes it into a file, where it can go back and fill in
    where the data of each entry begins."""
    toc = database.toc
    streams = [(entry, database.streams[entry.dump_id]) for entry in toc.with_data()]
    offsets = data_offsets(toc, ((entry, stream.size_bytes) for entry, stream in streams))
    content = ((entry, reader.read(stream.path)) for entry, stream in streams)
    blocks = write_archive(toc, content)
    next(blocks)
    yield fill_offsets(toc, offsets)
    yield from blocks


def _table_files(reader: PointReader, database: DatabaseContents, only: str) -> Iterator[_File]:
    selection = select(database.name, database.toc, only)
    chosen = {(table.namespace, table.tag) for table in selection.tables} if selection else set()
    for entry in database.toc.with_data():
        if not entry.holds_large_objects and (entry.namespace, entry.tag) in chosen:
            path = "/".join(map(encode_segment, (database.name, entry.namespace, entry.tag)))
            yield _File(f"{path}.sql", _script(reader, database, entry))


def _script(reader: PointReader, database: DatabaseContents, table: TocEntry) -> Iterator[bytes]:
    """The table's rows behind the statement that reads them, for `psql`."""
    # The names come in UTF-8, the rows in the encoding of their database.
    encoding = database.properties["encoding"]
    copy = table.copy_statement.rstrip().removesuffix(";")
    head = f"SET client_encoding = 'UTF8';\n{copy} (ENCODING '{encoding}');\n"
    yield head.encode("utf-8", "surrogateescape")
    yield from rows(reader.read(database.streams[table.dump_id].path))
    yield b"\\.\n"


def _plain_files(reader: PointReader, only: str | None) -> list[_File]:
    chosen = [entry for entry in reader.entries() if only is None or _matches(entry, only)]
    if not chosen:
        raise UsageError(
            f"nothing in restore point {reader.point} matches {only}"
            if only
            else f"restore point {reader.point} is empty",
            hint="`cellarer show` lists what it holds.",
        )
    for entry in chosen:
        _refuse_escape(entry.path)
    return [
        _File(
            entry.path,
            reader.read(entry.path),
            0o600 if entry.mode is None else entry.mode & 0o7777,
            entry.mtime,
        )
        for entry in chosen
    ]


def _matches(entry: Entry, only: str) -> bool:
    return (
        entry.path == only
        or entry.path.startswith(f"{only.rstrip('/')}/")
        or fnmatchcase(entry.path, only)
    )


def _refuse_escape(path: str) -> None:
    """A path must stay below the directory, whoever made the point."""
    if any(segment in ("", ".", "..") for segment in path.split("/")) or "\0" in path:
        raise DamagedData(
            "the restore point names a file outside of the directory",
            detail=repr(path),
            hint="Nothing has been written. No source names files like that: trust this point not.",
        )


def _failure(path: Path, error: OSError) -> TargetFailed:
    hint = "Choose a directory that you may write to."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free space there, or choose another directory."
    elif error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        hint = "A link or something else is in the way: choose an empty directory."
    return TargetFailed(f"cannot write {path}", detail=error.strerror or str(error), hint=hint)
