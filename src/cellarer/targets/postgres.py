"""Restores a point of kind `postgres_dump` into a PostgreSQL server."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import psycopg

from cellarer.errors import TargetFailed, UsageError
from cellarer.ports import Outlook, PointReader, Progress, Restored
from cellarer.postgres.archive import encode_segment
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
from cellarer.postgres.selection import Selection, select
from cellarer.targets.counts import shortfalls
from cellarer.targets.database import DatabaseMaker, connect, content_of, maintenance_database
from cellarer.targets.loading import Loader
from cellarer.targets.roles import RoleRestorer
from cellarer.targets.staging import (
    Stage,
    refuse_irreplaceable,
    refuse_without_createdb,
    sweep,
)
from cellarer.targets.statistics import gather_statistics

# See the harmless errors in cellarer.postgres.restore.
_TRANSACTION_TIMEOUT_SINCE = 17
_NAMED = 5


@dataclass(frozen=True)
class _Errand:
    """One database of the point, the name it gets, and the part of it that is wanted.

    `keeps_name` says that it cannot be given another name: it is one of several.
    """

    database: DatabaseContents
    name: str
    chosen: Selection | None
    keeps_name: bool

    @property
    def restore_bytes(self) -> int:
        """The size of the streams that are to be read."""
        return sum(
            stream.size_bytes
            for dump_id, stream in self.database.streams.items()
            if self.chosen is None or dump_id in self.chosen.dump_ids
        )

    @property
    def other_place(self) -> str:
        """Where it can go instead, as a hint."""
        if not self.keeps_name:
            return f"Or restore into a database such as {self.name}_restored."
        return (
            "Databases of a point with several keep their names: or restore into another server, or"
            " into a directory, from which pg_restore brings one back under any name."
        )


class PostgresTarget:
    """The server of `dsn`. Up to `jobs` processes work at once.

    A point with one database, or what is chosen of one, goes into the database that `dsn` names, or
    keeps its own name where `dsn` names none. Several databases always keep their names.

    What is there already stays until everything is loaded beside it (`cellarer.targets.staging`).
    Only an empty database that is not to be replaced is loaded as it is.

    `throw_away` is for servers that hold nothing of worth: what is there is dropped first, and
    databases whose locale the server lacks get another.
    """

    def __init__(self, dsn: str, jobs: int, *, throw_away: bool = False) -> None:
        self._dsn = dsn
        self._jobs = jobs
        self._throw_away = throw_away
        self._overwrite = throw_away

    def prepare(self, overwrite: bool) -> None:
        """Check that the server answers. What it holds is looked at when the point is known."""
        self._overwrite = overwrite or self._throw_away
        name = parameters(self._dsn).get("dbname")
        connect(for_database(self._dsn, self._maintenance({name} if name else set()))).close()

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        """What `restore` would read and replace. Raises what it refuses before any change.

        With `only` nothing is replaced: a part never takes the place of a database.
        """
        contents = _contents(reader)
        errands = self._errands(contents, only, _ignore)
        with connect(for_database(self._dsn, self._maintenance(_names(errands)))) as link:
            present, staged = self._survey(link, contents, errands)
        return Outlook(
            restore_bytes=sum(errand.restore_bytes for errand in errands),
            replaces=tuple(one.name for one in errands if one.name in staged & present),
            as_verified=not only,
        )

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        """Restore roles and databases, or with `only` the tables that match it.

        Every error that `pg_restore` reports makes the restore fail, unless it is known to be
        harmless. Raises `TargetFailed`, `UsageError` where `only` matches nothing, and
        `DamagedData` where the point is not whole.
        """
        began = time.monotonic()
        contents = _contents(reader)
        errands = self._errands(contents, only, progress.note)
        maintenance = self._maintenance(_names(errands))
        with connect(for_database(self._dsn, maintenance)) as link:
            maker = DatabaseMaker(link, progress.note, any_locale=self._throw_away)
            present, staged = self._survey(link, contents, errands)
            if staged:
                sweep(link, self._dsn, progress.note)
            roles = read_all(reader, ROLES_PATH)
            # Those that are there already change together with the databases, not hours before.
            replacing = self._overwrite and not only and not self._throw_away
            note = _ignore if replacing else progress.note
            RoleRestorer(link, overwrite=False, note=note).restore(roles)
            loader = self._loader(link, contents, progress)
            with Stage(self._dsn, maintenance, progress.note) as stage:
                restored_bytes = 0
                for errand in errands:
                    place = self._make(maker, stage if errand.name in staged else None, errand)
                    restored_bytes += self._load(loader, reader, errand, place, present)
                    if errand.chosen is None:
                        maker.close_up(place, errand.database.properties)

                def replace_roles(link: Connection) -> None:
                    if replacing:
                        RoleRestorer(link, overwrite=True, note=progress.note).restore(roles)

                stage.put_in_place(staged & present, replace_roles)
        _say_missing_passwords(contents, progress)
        return Restored(restored_bytes, time.monotonic() - began, contents.captured_at)

    def _maintenance(self, names: set[str]) -> str:
        return maintenance_database(self._dsn, besides=names)

    def _errands(
        self, contents: Contents, only: tuple[str, ...], note: Callable[[str], None]
    ) -> Sequence[_Errand]:
        selections = select(contents, only)
        for selection in selections.values():
            for text in selection.notes:
                note(text)
        wanted = [one for one in contents.databases if not only or one.name in selections]
        named = parameters(self._dsn).get("dbname")
        alone = len(wanted) == 1
        if not alone:
            _refuse_one_place_for_all(named, [one.name for one in wanted], bool(only))
        several = len(contents.databases) > 1
        return [
            _Errand(
                database,
                named if alone and named else database.name,
                selections.get(database.name),
                keeps_name=several and not only,
            )
            for database in wanted
        ]

    def _survey(
        self, link: Connection, contents: Contents, errands: Sequence[_Errand]
    ) -> tuple[set[str], set[str]]:
        """The names that are taken, and those that get a database made beside their place.

        Raises `TargetFailed` for whatever would not work or must not be done.
        """
        self._refuse_older(link, contents)
        names = _names(errands)
        maker = DatabaseMaker(link, _ignore)
        present = {name for name in names if maker.exists(name)}
        self._refuse_occupied(present, errands)
        staged = {errand.name for errand in errands if self._is_staged(errand, present)}
        if staged:
            refuse_without_createdb(link)
            for errand in errands:
                if errand.name in staged & present:
                    refuse_irreplaceable(link, errand.name, errand.other_place)
        return present, staged

    def _refuse_older(self, link: Connection, contents: Contents) -> None:
        major = _major(link)
        if major < contents.server_major:
            raise TargetFailed(
                f"the target runs PostgreSQL {major}, older than the source's"
                f" {contents.server_major}",
                detail="a dump of a newer server is not made for older ones",
                hint=f"Restore into PostgreSQL {contents.server_major} or newer.",
            )

    def _refuse_occupied(self, present: set[str], errands: Sequence[_Errand]) -> None:
        """Refuse what must not be overwritten, before anything is changed."""
        for errand in errands:
            if errand.name not in present:
                continue
            if errand.chosen is not None and self._overwrite:
                # Dropping everything to bring back a part is never what was meant.
                self._refuse_content(errand)
            elif not self._overwrite:
                self._refuse_content(errand)

    def _refuse_content(self, errand: _Errand) -> None:
        name = errand.name
        content = content_of(self._dsn, name)
        if not content:
            return
        shown = ", ".join(content[:3]) + (", ..." if len(content) > 3 else "")
        hint = f"Name a new database, such as {name}_restored, and copy the rows from there."
        if errand.chosen is None:
            hint = f"Add --overwrite. {errand.other_place}"
        raise TargetFailed(f"database {name} is not empty", detail=f"it holds {shown}", hint=hint)

    def _is_staged(self, errand: _Errand, present: Collection[str]) -> bool:
        """Whether it is loaded beside its place. Else the place is an empty database."""
        if self._throw_away:
            return False
        # An empty one may have another encoding or settings than the point's: it is replaced too.
        return errand.name not in present or (self._overwrite and errand.chosen is None)

    def _make(self, maker: DatabaseMaker, stage: Stage | None, errand: _Errand) -> str:
        """Make an empty database to load into, as the point describes it; its name for now."""
        properties, place = errand.database.properties, errand.name
        if stage is not None:
            place = stage.make(maker, errand.name, properties)
        elif self._throw_away:
            maker.drop(errand.name)
            maker.create(errand.name, properties)
        else:
            maker.compare(errand.name, properties)
        if errand.chosen is None:
            maker.configure(place, properties)
        return place

    def _load(
        self,
        loader: Loader,
        reader: PointReader,
        errand: _Errand,
        place: str,
        present: Collection[str],
    ) -> int:
        """Load it, and judge what is there now before it replaces anything."""
        dsn = for_database(self._dsn, place)
        try:
            restored_bytes = loader.load(reader, errand.database, errand.chosen, dsn)
            gather_statistics(dsn, self._jobs)
            if place != errand.name and errand.name in present:
                _judge(reader, errand.database.name, dsn)
        except TargetFailed as error:
            error.hint = f"{error.hint} {self._state(errand, place)}".strip()
            raise
        return restored_bytes

    def _state(self, errand: _Errand, place: str) -> str:
        """How a restore that failed has left its database."""
        if self._throw_away:
            return ""
        if place != errand.name:
            return f"Nothing was put in place: {errand.name} is as it was. Then run again."
        if errand.chosen is not None:
            return f"Database {place} holds a part: drop it, or name a new one, then run again."
        return f"Database {place} holds a part of the point: run again with --overwrite."

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


def _names(errands: Sequence[_Errand]) -> set[str]:
    return {errand.name for errand in errands}


def _refuse_one_place_for_all(named: str | None, wanted: Sequence[str], a_part: bool) -> None:
    """Raise `UsageError` where one database is named for what comes from several."""
    if named in (None, "postgres") or (named in wanted and not a_part):
        return
    if a_part:
        raise UsageError(
            f"tables of several databases match, and only {named} is named for them",
            detail=f"there are some in {', '.join(wanted)}",
            hint=f"Name one database in each pattern, as '{encode_segment(wanted[0])}/*' does, or"
            " only the server, as postgresql://HOST/postgres: then each keeps its name.",
        )
    raise UsageError(
        f"the point holds several databases, and none of them is {named}",
        detail=f"it holds {', '.join(wanted)}; each keeps its name",
        hint="Name a server only, as postgresql://HOST/postgres, or choose tables of one database:"
        f" --only '{encode_segment(wanted[0])}/*'.",
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


def _judge(reader: PointReader, database: str, dsn: str) -> None:
    """Raise `TargetFailed` unless every table has the rows that the source counted."""
    try:
        lacking = list(shortfalls(reader, database, dsn))
    except psycopg.Error as error:
        raise TargetFailed(
            "the restored rows cannot be counted", detail=" ".join(str(error).split())
        ) from None
    if lacking:
        raise TargetFailed(
            "the restored database is not what the point says",
            detail="; ".join(lacking[:_NAMED]) + ("; ..." if len(lacking) > _NAMED else ""),
            hint="Take an older point, and verify this one.",
        )


def _ignore(_text: str) -> None:
    """For a look that changes nothing and so has nothing to say."""
