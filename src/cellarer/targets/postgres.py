"""Restores a point of kind `postgres_dump` into a PostgreSQL server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from cellarer.errors import TargetFailed, UsageError
from cellarer.ports import PointReader, Progress, Restored
from cellarer.postgres.binaries import client_for
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.conninfo import for_database, parameters
from cellarer.postgres.contents import (
    ROLES_PATH,
    Contents,
    DatabaseContents,
    is_dump,
    read_all,
    read_contents,
)
from cellarer.postgres.selection import Selection, no_match, select, table_names
from cellarer.targets.database import DatabaseMaker, connect, content_of, maintenance_database
from cellarer.targets.loading import Loader
from cellarer.targets.roles import RoleRestorer

# See the harmless errors in cellarer.postgres.restore.
_TRANSACTION_TIMEOUT_SINCE = 17


@dataclass(frozen=True)
class _Errand:
    """One database of the point, the name it gets, and the part of it that is wanted."""

    database: DatabaseContents
    name: str
    chosen: Selection | None


class PostgresTarget:
    """The server of `dsn`. Up to `jobs` processes work at once.

    A point with one database goes into the database that `dsn` names, or keeps its own name where
    `dsn` names none. Several databases always keep their names.

    `any_locale` is for throw-away servers: databases whose locale the server lacks get another.
    """

    def __init__(self, dsn: str, jobs: int, *, any_locale: bool = False) -> None:
        self._dsn = dsn
        self._jobs = jobs
        self._any_locale = any_locale
        self._overwrite = False

    def prepare(self, overwrite: bool) -> None:
        """Check that the server answers, and that the database named is empty or may be dropped.

        The other databases of a point with several are looked at when the point is known, before
        anything is changed.
        """
        self._overwrite = overwrite
        name = parameters(self._dsn).get("dbname")
        with connect(for_database(self._dsn, self._maintenance({name} if name else set()))) as link:
            # These are also named just to get to the server; restore() looks into them.
            if name in (None, "postgres", "template1") or overwrite:
                return
            if DatabaseMaker(link, _ignore).exists(name):
                self._refuse_content(name)

    def restore(self, reader: PointReader, only: str | None, progress: Progress) -> Restored:
        """Restore roles and databases, or with `only` the tables that match it.

        Every error that `pg_restore` reports makes the restore fail, unless it is known to be
        harmless. Raises `TargetFailed`, `UsageError` where `only` matches nothing, and
        `DamagedData` where the point is not whole.
        """
        began = time.monotonic()
        contents = _contents(reader)
        errands = self._errands(contents, only, progress)
        names = {errand.name for errand in errands}
        with connect(for_database(self._dsn, self._maintenance(names))) as link:
            self._refuse_older(link, contents)
            maker = DatabaseMaker(link, progress.note, self._any_locale)
            present = {name for name in names if maker.exists(name)}
            self._look(present, errands)
            RoleRestorer(link, self._overwrite, progress.note).restore(read_all(reader, ROLES_PATH))
            _say_missing_passwords(contents, progress)
            loader = self._loader(link, contents, progress)
            restored_bytes = 0
            for errand in errands:
                self._make(maker, errand, errand.name in present)
                dsn = for_database(self._dsn, errand.name)
                restored_bytes += loader.load(reader, errand.database, errand.chosen, dsn)
                _analyse(dsn)
        return Restored(restored_bytes, time.monotonic() - began, contents.captured_at)

    def _maintenance(self, names: set[str]) -> str:
        return maintenance_database(self._dsn, besides=names)

    def _errands(
        self, contents: Contents, only: str | None, progress: Progress
    ) -> Sequence[_Errand]:
        chosen: dict[str, Selection | None] = {}
        for database in contents.databases:
            selection = select(database.name, database.toc, only) if only else None
            if selection is not None or only is None:
                chosen[database.name] = selection
            for note in selection.notes if selection else ():
                progress.note(note)
        if not chosen and only is not None:
            raise no_match(only, [n for one in contents.databases for n in table_names(one.toc)])
        named = parameters(self._dsn).get("dbname")
        alone = len(contents.databases) == 1
        names = [database.name for database in contents.databases]
        if not alone and named not in (None, "postgres", *names):
            raise UsageError(
                f"the point holds several databases, and none of them is {named}",
                detail=f"it holds {', '.join(names)}; each keeps its name",
                hint="Name a server only, as postgresql://HOST/postgres, or one table with --only.",
            )
        return [
            _Errand(database, named if alone and named else database.name, chosen[database.name])
            for database in contents.databases
            if database.name in chosen
        ]

    def _refuse_older(self, link: Connection, contents: Contents) -> None:
        major = _major(link)
        if major < contents.server_major:
            raise TargetFailed(
                f"the target runs PostgreSQL {major}, older than the source's"
                f" {contents.server_major}",
                detail="a dump of a newer server is not made for older ones",
                hint=f"Restore into PostgreSQL {contents.server_major} or newer.",
            )

    def _look(self, present: set[str], errands: Sequence[_Errand]) -> None:
        """Refuse what must not be overwritten, before anything is changed."""
        for errand in errands:
            if errand.name not in present:
                continue
            if errand.chosen is not None and self._overwrite:
                # Dropping everything to bring back a part is never what was meant.
                self._refuse_content(errand.name, of_a_part=True)
            elif not self._overwrite:
                self._refuse_content(errand.name, of_a_part=errand.chosen is not None)

    def _refuse_content(self, name: str, of_a_part: bool = False) -> None:
        content = content_of(self._dsn, name)
        if not content:
            return
        shown = ", ".join(content[:3]) + (", ..." if len(content) > 3 else "")
        hint = f"Name a new database, such as {name}_restored"
        hint += ", and copy the rows from there." if of_a_part else ", or add --overwrite."
        raise TargetFailed(f"database {name} is not empty", detail=f"it holds {shown}", hint=hint)

    def _make(self, maker: DatabaseMaker, errand: _Errand, present: bool) -> None:
        properties: Mapping[str, object] = errand.database.properties
        # An empty one of its name may have another encoding or settings; nothing is lost with it.
        if present and self._overwrite and errand.chosen is None:
            maker.drop(errand.name)
            present = False
        if present:
            maker.compare(errand.name, properties)
        else:
            maker.create(errand.name, properties)
        if errand.chosen is None:
            maker.configure(errand.name, properties)

    def _loader(self, link: Connection, contents: Contents, progress: Progress) -> Loader:
        wanted = {
            entry.tablespace
            for database in contents.databases
            for entry in database.toc.entries
            if entry.tablespace
        }
        present = {row[0] for row in link.execute("SELECT spcname FROM pg_tablespace")}
        if missing := sorted(wanted - present):
            progress.note(
                f"the target lacks tablespace {', '.join(missing)}: all goes to the default one"
            )
        major = _major(link)
        client = client_for(max(major, contents.pg_dump_major))
        # The newer program meets one harmless error in each connection to the older server. Of
        # several processes the words may mingle, so that nobody could tell it from a real one.
        alone = major < _TRANSACTION_TIMEOUT_SINCE <= client.major
        return Loader(
            client.program("pg_restore"),
            self._jobs,
            1 if alone else self._jobs,
            not missing,
            progress.note,
            progress.advance,
        )


def _contents(reader: PointReader) -> Contents:
    if not is_dump(reader):
        raise UsageError(
            f"restore point {reader.point} holds no PostgreSQL database",
            hint="Restore it into a directory.",
        )
    return read_contents(reader)


def _say_missing_passwords(contents: Contents, progress: Progress) -> None:
    if not contents.server.get("role_passwords", True):
        progress.note(
            "new roles have no password: the source could not read them. Set them with ALTER ROLE."
        )


def _major(link: Connection) -> int:
    return link.info.server_version // 10000


def _analyse(dsn: str) -> None:
    """Give the planner its statistics, or the first queries after a disaster would crawl."""
    with connect(dsn) as link:
        link.execute(sql.SQL("ANALYZE"))


def _ignore(_text: str) -> None:
    """For a look that changes nothing and so has nothing to say."""
