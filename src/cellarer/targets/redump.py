"""Dumps a restored database again, to be compared with the archive that it came from."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cellarer.errors import DamagedData, TargetFailed
from cellarer.ports import Hasher
from cellarer.postgres.archive import ArchiveReader, data_paths
from cellarer.postgres.binaries import Installation
from cellarer.postgres.conninfo import for_programs
from cellarer.postgres.toc import READ_BYTES, TableOfContents, TocEntry

_DETAIL_CHARACTERS = 1000


@dataclass(frozen=True)
class Redump:
    """The table of contents of the new dump, and the sum of each stream by its path."""

    toc: TableOfContents
    sums: Mapping[str, str]


@dataclass(frozen=True)
class Dumper:
    """Dumps one database of a server as `client`'s `pg_dump` does."""

    client: Installation
    dsn: str
    database: str

    def redump(
        self, kind: str, hasher: Callable[[str], Hasher], advance: Callable[[int], None]
    ) -> Redump:
        """Dump everything; keep sums only, made by the hash function `kind`.

        `advance` is told of the bytes as they pass.
        """
        sums: dict[str, str] = {}
        with self._dump() as reader:
            paths = data_paths(self.database, reader.toc)
            for entry, blocks in reader.blocks():
                digest = hasher(kind)
                for block in blocks:
                    digest.update(block)
                    advance(len(block))
                sums[paths[entry.dump_id]] = f"{kind}:{digest.hexdigest()}"
            return Redump(reader.toc, sums)

    def schema(self) -> TableOfContents:
        """The table of contents of a dump without any rows."""
        with self._dump("--schema-only") as reader:
            for _entry, _blocks in reader.blocks():
                pass
            return reader.toc

    def table(self, schema: str, table: str) -> Iterator[bytes]:
        """The content of one table's block."""
        # In double quotes a pattern of pg_dump means what it says.
        name = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))
        yield from self._contents(
            ["--data-only", f"--table={name}"],
            lambda entry: (entry.namespace, entry.tag) == (schema, table),
        )

    def large_objects(self) -> Iterator[bytes]:
        """The contents of all blocks of large objects, one after the other."""
        yield from self._contents(
            ["--data-only", "--exclude-table=*.*"], lambda entry: entry.holds_large_objects
        )

    def _contents(
        self, options: Sequence[str], wanted: Callable[[TocEntry], bool]
    ) -> Iterator[bytes]:
        with self._dump(*options) as reader:
            for entry, blocks in reader.blocks():
                if wanted(entry):
                    yield from blocks

    @contextmanager
    def _dump(self, *options: str) -> Iterator[ArchiveReader]:
        conninfo, environment = for_programs(self.dsn)
        command: list[str | Path] = [
            *(self.client.program("pg_dump"), "--format=custom", "--compress=0"),
            *("--no-password", f"--dbname={conninfo}", *options),
        ]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=READ_BYTES,
            ) as process,
        ):
            broken: DamagedData | None = None
            try:
                yield ArchiveReader(cast(BinaryIO, process.stdout))
            except DamagedData as error:
                # What is broken here is the sandbox's own dump, never the vault.
                broken = error
                process.kill()
            except BaseException:
                process.kill()
                raise
            if process.wait() != 0 or broken is not None:
                errors.seek(0)
                said = errors.read(_DETAIL_CHARACTERS).decode("utf-8", "replace").strip()
                raise TargetFailed(
                    f"the restored database {self.database} cannot be dumped for comparison",
                    detail=said or str(broken or ""),
                ) from broken
