"""Restores a point into a directory: databases as archives for `pg_restore`, files as files."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from cellarer.domain.snapshot import Entry
from cellarer.errors import CellarerError, DamagedData, TargetFailed, UsageError
from cellarer.ports import Outlook, PointReader, Progress, Restored, phase
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
from cellarer.postgres.selection import Selection, select
from cellarer.postgres.toc import TocEntry, fill_offsets
from cellarer.targets.files import create_file, open_below, sweep_partials

_LISTED = 5


@dataclass(frozen=True)
class _File:
    """One file to write, below the target directory. `read_bytes` is what it takes of the point."""

    path: str
    blocks: Iterable[bytes]
    read_bytes: int
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
        """Check that nothing but a directory is there. It is made when the first file comes."""
        self._overwrite = overwrite
        if os.path.lexists(self._path) and not self._path.is_dir():
            reason = OSError(errno.ENOTDIR, "that is no directory")
            raise _failure(self._path, reason)

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        """What `restore` would read, and the files that it would replace."""
        files, _ = _files(reader, only)
        present = self._present(files)
        read_bytes = sum(file.read_bytes for file in files)
        # What is there is not replaced before all of the new has been read once.
        return Outlook(read_bytes * (2 if present else 1), tuple(present), as_verified=False)

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        """Write the files, each complete and on the disk before it gets its name.

        Raises `TargetFailed` where one exists already, unless overwriting was asked for. An error
        in the middle says which files are there by then.
        """
        began = time.monotonic()
        files, recovered_to = _files(reader, only)
        self._sweep(files)
        if self._present(files):
            # What cannot be read must not cost what is there, nor leave half of it replaced.
            _read_through(_files(reader, only)[0], progress)
        self._make()
        restored_bytes = 0
        with _state_told(self._path, files, progress) as written:
            for file in files:
                restored_bytes += self._write(file, progress)
                written.append(file.path)
        return Restored(restored_bytes, time.monotonic() - began, recovered_to)

    def _sweep(self, files: Sequence[_File]) -> None:
        """Remove what killed restores have left unfinished where these files go."""
        for parents in sorted({(), *(tuple(file.path.split("/")[:-1]) for file in files)}):
            if self._path.joinpath(*parents).is_dir():
                with suppress(OSError), open_below(self._path, parents) as directory:
                    sweep_partials(directory)

    def _make(self) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(self._path, error) from error

    def _present(self, files: Sequence[_File]) -> list[str]:
        """The files that are there already. Raises `TargetFailed` where they must stay."""
        present = [file.path for file in files if os.path.lexists(self._path / file.path)]
        if present and not self._overwrite:
            raise TargetFailed(
                f"{self._path} holds files of these names already",
                detail=_listed(present),
                hint="Name another directory, or add --overwrite.",
            )
        return present

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


@contextmanager
def _state_told(path: Path, files: Sequence[_File], progress: Progress) -> Iterator[list[str]]:
    """Yields a list for the names of the files that are written, and says them where not all are.

    They stay: each is whole, and may be all that can still be read.
    """
    written: list[str] = []
    try:
        yield written
    except BaseException as error:
        missing = [file.path for file in files[len(written) :]]
        state = (
            f"{path} is incomplete: {len(written)} of {len(files)} files were written"
            f" ({_listed(written) or 'none'}), not {_listed(missing)}"
        )
        if isinstance(error, CellarerError):
            error.detail = "\n".join(part for part in (error.detail, state) if part)
            if written:
                again = "Those written are whole; --overwrite replaces them when you run it again."
                hint = error.hint.rstrip(".")
                error.hint = f"{hint}. {again}" if hint else again
        else:
            progress.note(state)
        raise


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _files(reader: PointReader, only: tuple[str, ...]) -> tuple[list[_File], str]:
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


def _dump_files(reader: PointReader, contents: Contents, only: tuple[str, ...]) -> list[_File]:
    if only:
        selections = select(contents, only)
        return [
            file
            for database in contents.databases
            if database.name in selections
            for file in _table_files(reader, database, selections[database.name])
        ]
    sizes = {entry.path: entry.size_bytes for entry in reader.entries()}

    def as_it_is(path: str, name: str) -> _File:
        return _File(name, reader.read(path), sizes.get(path, 0))

    files = [as_it_is(path, path) for path in (ROLES_PATH, SERVER_PATH)]
    for database in contents.databases:
        name = encode_segment(database.name)
        data_bytes = sum(stream.size_bytes for stream in database.streams.values())
        files.append(_File(f"{name}.dump", _archive(reader, database), data_bytes))
        files.append(as_it_is(tables_path(database.name), f"{name}.tables.json"))
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


def _table_files(
    reader: PointReader, database: DatabaseContents, selection: Selection
) -> Iterator[_File]:
    chosen = {(table.namespace, table.tag) for table in selection.tables}
    for entry in database.toc.with_data():
        if not entry.holds_large_objects and (entry.namespace, entry.tag) in chosen:
            path = "/".join(map(encode_segment, (database.name, entry.namespace, entry.tag)))
            size_bytes = database.streams[entry.dump_id].size_bytes
            yield _File(f"{path}.sql", _script(reader, database, entry), size_bytes)


def _script(reader: PointReader, database: DatabaseContents, table: TocEntry) -> Iterator[bytes]:
    """The table's rows behind the statement that reads them, for `psql`."""
    # The names come in UTF-8, the rows in the encoding of their database.
    encoding = database.properties["encoding"]
    copy = table.copy_statement.rstrip().removesuffix(";")
    head = f"SET client_encoding = 'UTF8';\n{copy} (ENCODING '{encoding}');\n"
    yield head.encode("utf-8", "surrogateescape")
    yield from rows(reader.read(database.streams[table.dump_id].path))
    yield b"\\.\n"


def _plain_files(reader: PointReader, only: tuple[str, ...]) -> list[_File]:
    entries = reader.entries()
    for pattern in only:
        if not any(_matches(entry, pattern) for entry in entries):
            raise UsageError(
                f"nothing in restore point {reader.point} matches {pattern}",
                hint="`cellarer show` lists what it holds.",
            )
    chosen = [e for e in entries if not only or any(_matches(e, pattern) for pattern in only)]
    if not chosen:
        raise UsageError(f"restore point {reader.point} is empty", hint="Choose another one.")
    for entry in chosen:
        _refuse_escape(entry.path)
    return [
        _File(
            entry.path,
            reader.read(entry.path),
            entry.size_bytes,
            0o600 if entry.mode is None else entry.mode & 0o7777,
            entry.mtime,
        )
        for entry in chosen
    ]


def _matches(entry: Entry, pattern: str) -> bool:
    return (
        entry.path == pattern
        or entry.path.startswith(f"{pattern.rstrip('/')}/")
        or fnmatchcase(entry.path, pattern)
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
