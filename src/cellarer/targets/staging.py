"""Databases that are loaded beside the ones they take the place of, and put in place at once.

A database gets its name only when it is whole. Until then it is called `NAME_cellarer_RANDOM`; what
has the name stays as it is and serves. Then one transaction renames all of them, the old aside and
the new into place, and the old ones are dropped.

What a killed restore leaves is known by its name together with a connection limit that nobody
sets: a database has it from the moment that it exists, and one that was replaced from the moment
that it is no longer the user's. A lock in the database says that its restore is still at work.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from cellarer.errors import TargetFailed
from cellarer.postgres.catalogue import LEFT_BY_RESTORE, STAGED_NAME, Connection
from cellarer.postgres.conninfo import for_database
from cellarer.targets.database import DatabaseMaker, connect

MARK = LEFT_BY_RESTORE
_INVALID = -2  # PostgreSQL's own mark of a database that was being dropped
_LOCK = 4_911_563_217_206_938
_NAME_BYTES = 63
# The server may take a moment to notice that the process of a session was killed.
_DYING_MILLISECONDS = 5000
_POLL_SECONDS = 0.1

_LEFT = """
SELECT datname::text, datconnlimit FROM pg_database
WHERE datname ~ %s AND datconnlimit IN (%s, %s)
ORDER BY datname
"""


@dataclass(frozen=True)
class _Staged:
    """`place` is what it is called until it gets its `name`."""

    name: str
    place: str
    connection_limit: int


class Stage:
    """The databases of one restore. What is not put in place by the end of the context is dropped.

    `maintenance` is a database of the server that is none of those to be replaced.
    """

    def __init__(self, dsn: str, maintenance: str, note: Callable[[str], None]) -> None:
        self._dsn = for_database(dsn, maintenance)
        self._note = note
        self._staged: list[_Staged] = []
        self._guards: list[Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_guards()
        if not self._staged:
            return
        places = [one.place for one in self._staged]
        try:
            with closing(connect(self._dsn)) as link:
                for place in places:
                    _drop(link, place)
        except (psycopg.Error, TargetFailed) as reason:
            self._note(
                f"{', '.join(places)} cannot be dropped now; the next restore does it: {reason}"
            )

    def make(self, maker: DatabaseMaker, name: str, properties: Mapping[str, Any]) -> str:
        """Make an empty database that is to get `name`; returns what it is called until then.

        Raises `TargetFailed`.
        """
        limit = properties.get("connection_limit")
        staged = _Staged(name, beside(name), -1 if limit is None else limit)
        self._staged.append(staged)
        maker.create(name, dict(properties) | {"connection_limit": MARK}, staged.place)
        guard = connect(for_database(self._dsn, staged.place))
        self._guards.append(guard)
        if not _lock(guard):
            raise TargetFailed(
                "another restore on this server has just begun",
                hint="Nothing was replaced. Run again.",
                retryable=True,
            )
        return staged.place

    def put_in_place(
        self, present: Collection[str], beforehand: Callable[[Connection], None]
    ) -> None:
        """Give every database its name in one transaction, and drop those that had it.

        `present` are the names that are taken. Their sessions are ended, and new ones have to wait.
        `beforehand` does what belongs to the same transaction. Raises `TargetFailed`; then
        everything is as it was.
        """
        if not self._staged:
            return
        asides = {one.name: beside(one.name) for one in self._staged if one.name in present}
        self._end_guards()
        with (
            closing(connect(self._dsn)) as link,
            closing(connect(self._dsn)) as other,
            ThreadPoolExecutor(1) as pool,
        ):
            with _explained(self._staged), link.transaction():
                beforehand(link)
                renaming = pool.submit(_rename, link, self._staged, asides)
                _end_sessions(other, [*present, *(one.place for one in self._staged)], renaming)
                renaming.result()
            self._staged = []
            for aside in asides.values():
                try:
                    _drop(link, aside)
                except psycopg.Error as error:
                    self._note(f"what was replaced is still there as {aside}: {_reason(error)}")

    def _end_guards(self) -> None:
        for guard in self._guards:
            guard.close()
        self._guards = []


def beside(name: str) -> str:
    """A new name for a database next to `name`, within PostgreSQL's limit."""
    suffix = f"_cellarer_{secrets.token_hex(4)}"
    return name.encode()[: _NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix


def sweep(link: Connection, dsn: str, note: Callable[[str], None]) -> None:
    """Drop what restores that were killed have left on the server, and nothing else."""
    for name, limit in link.execute(_LEFT, [STAGED_NAME, MARK, _INVALID]).fetchall():
        try:
            if limit == _INVALID:
                _drop(link, name)
            else:
                with closing(connect(for_database(dsn, name))) as inside:
                    if not _lock(inside, _DYING_MILLISECONDS):
                        continue  # its restore is at work
                    _drop(link, name)
        except (psycopg.Error, TargetFailed) as error:
            note(f"database {name}, which a killed restore left, cannot be dropped: {error}")
        else:
            note(f"database {name}, which a killed restore left, was dropped")


def refuse_irreplaceable(link: Connection, name: str, other_place: str) -> None:
    """Say now what would hinder the replacing of this database later. Raises `TargetFailed`.

    `other_place` tells a person where else its new content could go.
    """
    query = """
        SELECT datistemplate, pg_get_userbyid(datdba)::text,
            pg_has_role(current_user, datdba, 'USAGE'), current_user::text,
            ARRAY(SELECT s.subname::text FROM pg_subscription s WHERE s.subdbid = d.oid)
        FROM pg_database d WHERE datname = %s
    """
    for template, owner, owned, user, subscriptions in link.execute(query, [name]):
        problem, hint = "", ""
        if template:
            problem = "new databases are copied from it"
            hint = "Name another database."
        elif not owned:
            problem = f"it belongs to {owner}, and {user} may not act as that"
            hint = f'As superuser: GRANT "{owner}" TO "{user}"; or connect as the owner.'
        elif subscriptions:
            problem = f"it subscribes to other servers: {', '.join(subscriptions)}"
            hint = "Drop the subscriptions in it first: DROP SUBSCRIPTION."
        if problem:
            raise TargetFailed(
                f"database {name} cannot be replaced",
                detail=problem,
                hint=f"{hint} {other_place}",
            )


def refuse_without_createdb(link: Connection) -> None:
    """Raise `TargetFailed` where the user may not make databases at all."""
    row = link.execute(
        "SELECT rolsuper OR rolcreatedb, rolname FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    assert row is not None
    if not row[0]:
        raise TargetFailed(
            f"user {row[1]} may not make databases",
            detail="what is restored is loaded into a new database, and then put in place",
            hint=f'As superuser: ALTER ROLE "{row[1]}" CREATEDB. Or have an empty database'
            f" made that belongs to {row[1]}, and restore into that without --overwrite.",
        )


def _rename(link: Connection, staged: Sequence[_Staged], asides: Mapping[str, str]) -> None:
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
    for one in staged:
        name, place = sql.Identifier(one.name), sql.Identifier(one.place)
        if one.name in asides:
            aside = sql.Identifier(asides[one.name])
            link.execute(rename.format(name, aside))
            link.execute(limit.format(aside, sql.Literal(MARK)))
        link.execute(rename.format(place, name))
        link.execute(limit.format(name, sql.Literal(one.connection_limit)))


def _end_sessions(link: Connection, names: Sequence[str], renaming: Future[None]) -> None:
    """End the sessions in these databases while a renaming waits for that.

    It holds a lock on the database that lets nobody in, and waits five seconds for those inside.
    """
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY (%s)"
    while not renaming.done():
        try:
            link.execute(query, [list(names)])
        except psycopg.errors.InsufficientPrivilege:
            return  # the renaming says whose sessions they are not
        wait([renaming], _POLL_SECONDS)


@contextmanager
def _explained(staged: Sequence[_Staged]) -> Iterator[None]:
    names = ", ".join(one.name for one in staged)
    message = f"the restored database {names} cannot be put in place"
    try:
        yield
    except psycopg.OperationalError as error:
        if not isinstance(error, psycopg.errors.ObjectInUse):
            raise TargetFailed(
                message,
                detail=_reason(error),
                hint="The server went away in that moment. When it is back, look which of the two"
                " is there: it is either the old one or the new one, whole. Run again if need be.",
                retryable=True,
            ) from None
        raise TargetFailed(
            message,
            detail=_reason(error),
            hint="Nothing was replaced. End the sessions and prepared transactions in it, or"
            " connect as a superuser, who may; then run again.",
            retryable=True,
        ) from None
    except psycopg.Error as error:
        hint = "Nothing was replaced. Remove the cause, then run again."
        raise TargetFailed(message, detail=_reason(error), hint=hint) from None


def _lock(inside: Connection, patience_milliseconds: int = 1) -> bool:
    inside.execute(f"SET lock_timeout = {patience_milliseconds}")
    try:
        inside.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def _drop(link: Connection, name: str) -> None:
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    link.execute(statement.format(sql.Identifier(name)))


def _reason(error: psycopg.Error) -> str:
    reason = error.diag.message_primary or str(error).strip()
    return f"{reason} ({error.diag.message_detail})" if error.diag.message_detail else reason
