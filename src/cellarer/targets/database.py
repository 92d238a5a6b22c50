"""One database of the target server: whether it holds anything, and making it anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from cellarer.errors import TargetFailed
from cellarer.postgres import connection as postgres_connection
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.complaints import advice
from cellarer.postgres.conninfo import described, for_database, parameters

# Whatever a person or a program made: not PostgreSQL's own objects, nor those of an extension.
_CONTENT = """
WITH own_schemas AS (
    SELECT oid, nspname FROM pg_namespace
    WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
), things AS (
    SELECT 'pg_namespace'::regclass AS class, oid, 'schema ' || nspname AS name
        FROM own_schemas WHERE nspname <> 'public'
    UNION ALL
    SELECT 'pg_class'::regclass, c.oid,
           CASE c.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view '
                WHEN 'S' THEN 'sequence ' ELSE 'table ' END || s.nspname || '.' || c.relname
        FROM pg_class c JOIN own_schemas s ON s.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, 'function ' || s.nspname || '.' || p.proname
        FROM pg_proc p JOIN own_schemas s ON s.oid = p.pronamespace
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid, 'type ' || s.nspname || '.' || t.typname
        FROM pg_type t JOIN own_schemas s ON s.oid = t.typnamespace
        WHERE t.typtype IN ('d', 'e', 'r') OR t.typtype = 'c' AND EXISTS (
            SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c')
    UNION ALL
    SELECT 'pg_largeobject'::regclass, oid, 'large object ' || oid FROM pg_largeobject_metadata
)
SELECT name FROM things
WHERE NOT EXISTS (
    SELECT FROM pg_depend d
    WHERE d.classid = things.class AND d.objid = things.oid AND d.deptype = 'e')
ORDER BY name LIMIT 4
"""

_UNHINDERED = """
SELECT set_config(name, CASE vartype WHEN 'bool' THEN 'off' ELSE '0' END, false) FROM pg_settings
WHERE name IN ('statement_timeout', 'transaction_timeout', 'lock_timeout', 'idle_session_timeout',
    'idle_in_transaction_session_timeout', 'default_transaction_read_only')
"""
# With one of these nothing could be loaded. They are set when all is there.
_HINDERING = ("default_transaction_read_only",)


def connect(dsn: str) -> Connection:
    """A connection to the target, in autocommit mode. Raises `TargetFailed` with the way out.

    No time limit and no read-only mode that a database or a role has by default is in force.
    """
    try:
        connection = postgres_connection.connect(dsn)
        connection.execute(_UNHINDERED)
        return connection
    except psycopg.OperationalError as error:
        text = str(error).strip()
        known = advice(text)
        raise TargetFailed(
            f"cannot connect to the target at {described(dsn)}",
            detail=text,
            hint=known.hint or "Check that the server runs and accepts connections from here.",
            retryable=known.retryable,
        ) from None


def maintenance_database(dsn: str, *, besides: set[str]) -> str:
    """A database to be connected to while others are made and dropped; none of `besides`."""
    named = parameters(dsn).get("dbname", "postgres")
    candidates = [name for name in ("postgres", "template1", named) if name not in besides]
    for name in candidates:
        try:
            connect(for_database(dsn, name)).close()
        except TargetFailed as error:
            if "does not exist" not in error.detail:
                raise
            continue
        return name
    raise TargetFailed(
        "the target has no database to work from",
        detail=f"looked for {', '.join(candidates)}",
        hint="Create a database named postgres, or restore under another name.",
    )


def content_of(dsn: str, name: str) -> list[str]:
    """Up to four names of what the database holds already; empty where it can be restored into."""
    with connect(for_database(dsn, name)) as connection:
        return [row[0] for row in connection.execute(_CONTENT)]


class DatabaseMaker:
    """Makes databases on the server that `connection` leads to, as a point describes them."""

    def __init__(
        self,
        connection: Connection,
        note: Callable[[str], None],
        any_locale: bool = False,
    ) -> None:
        self._connection = connection
        self._note = note
        self._any_locale = any_locale

    def exists(self, name: str) -> bool:
        """Whether the server has a database of this name."""
        query = "SELECT FROM pg_database WHERE datname = %s"
        return self._connection.execute(query, [name]).fetchone() is not None

    def drop(self, name: str) -> None:
        """Drop the database, if it is there, and end every session in it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._run(statement.format(sql.Identifier(name)), name)

    def create(self, name: str, properties: Mapping[str, Any], place: str = "") -> None:
        """Create it with the encoding, locale and owner of the point. Raises `TargetFailed`.

        `place` is what it is called for now, where that is not its name. A locale that the server
        lacks is an error, because another one changes the order of texts; with `any_locale` it is
        a note, and PostgreSQL's own locale takes its place.
        """
        place = place or name
        try:
            self._connection.execute(self._creation(place, properties, _locale(properties)))
        except _LOCALE_ERRORS as error:
            if not self._any_locale:
                raise self._failure(name, error, _LOCALE_HINT) from None
            own = "C.UTF-8" if properties["encoding"] == "UTF8" else "C"
            lacking = properties.get("icu_locale") or properties["collate"]
            self._note(f"database {name} has locale {own}, because this server lacks {lacking}")
            locale = {"LC_COLLATE": own, "LC_CTYPE": own}
            self._run(self._creation(place, properties, locale), name)
        except psycopg.Error as error:
            raise self._failure(name, error) from None

    def compare(self, name: str, properties: Mapping[str, Any]) -> None:
        """Note where an empty database that is there already differs from the point's."""
        row = self._connection.execute(
            "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database"
            " WHERE datname = %s",
            [name],
        ).fetchone()
        assert row is not None
        wanted = tuple(properties[key] for key in ("encoding", "collate", "ctype"))
        if row != wanted:
            self._note(f"database {name} is used as it is: {row}, at the source {wanted}")

    def configure(self, name: str, properties: Mapping[str, Any]) -> None:
        """Settings, comment and grants of the database itself, as far as it can be loaded then."""
        self._set(name, properties, hindering=False)
        database = sql.Identifier(name)
        if comment := properties.get("comment"):
            statement = sql.SQL("COMMENT ON DATABASE {} IS {}")
            self._run(statement.format(database, sql.Literal(comment)), name)
        if acl := properties.get("acl"):
            self._grant(name, acl)

    def close_up(self, name: str, properties: Mapping[str, Any]) -> None:
        """Settings of roles in it, and its own that it may have only when it is loaded."""
        self._set(name, properties, hindering=True)
        for role, settings in (properties.get("role_settings") or {}).items():
            altered = sql.SQL("ROLE {} IN DATABASE {}").format(
                sql.Identifier(role), sql.Identifier(name)
            )
            for setting in settings:
                try:
                    self._connection.execute(_setting(altered, setting))
                except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject) as e:
                    reason = e.diag.message_primary
                    self._note(f"left out: {setting} of role {role} in database {name}: {reason}")

    def _set(self, name: str, properties: Mapping[str, Any], *, hindering: bool) -> None:
        for setting in properties.get("settings") or ():
            if (setting.partition("=")[0].lower() in _HINDERING) is hindering:
                altered = sql.SQL("DATABASE {}").format(sql.Identifier(name))
                self._run(_setting(altered, setting), name)

    def _creation(
        self, name: str, properties: Mapping[str, Any], locale: Mapping[str, str]
    ) -> sql.Composed:
        parts = [
            sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)),
            sql.SQL("ENCODING {}").format(sql.Literal(properties["encoding"])),
            sql.SQL("OWNER {}").format(sql.Identifier(properties["owner"])),
        ]
        parts += [sql.SQL(key + " {}").format(sql.Literal(value)) for key, value in locale.items()]
        limit = properties.get("connection_limit", -1)
        if limit is not None and limit != -1:
            parts.append(sql.SQL("CONNECTION LIMIT {}").format(sql.Literal(limit)))
        return sql.SQL(" ").join(parts)

    def _grant(self, name: str, acl: Sequence[str]) -> None:
        """Replace the database's privileges by `acl`, the items as PostgreSQL writes them."""
        query = (
            "SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END,"
            " privilege_type, is_grantable FROM aclexplode(%s::text[]::aclitem[])"
        )
        try:
            grants = self._connection.execute(query, [list(acl)]).fetchall()
        except psycopg.errors.UndefinedObject as error:
            reason = error.diag.message_primary
            self._note(f"privileges of database {name} are left as they are: {reason}")
            return
        database = sql.Identifier(name)
        self._run(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database), name)
        for grantee, privilege, grantable in grants:
            statement = sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(privilege),
                database,
                sql.Identifier(grantee) if grantee is not None else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
            self._run(statement, name)

    def _run(self, statement: sql.Composed, name: str) -> None:
        try:
            self._connection.execute(statement)
        except psycopg.Error as error:
            raise self._failure(name, error) from None

    def _failure(self, name: str, error: psycopg.Error, hint: str = "") -> TargetFailed:
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "Connect as a user who may create databases for others, best a superuser."
        reason = error.diag.message_primary or str(error)
        if error.diag.message_detail:
            reason = f"{reason} ({error.diag.message_detail})"
        return TargetFailed(f"database {name} cannot be made", detail=reason, hint=hint)


# What servers answer to a locale that the system, or their build of ICU, does not know.
_LOCALE_ERRORS = (
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.FeatureNotSupported,
)
_LOCALE_HINT = (
    "Install the locale on the target's host, or create an empty database with the locale of your"
    " choice and restore into that, without --overwrite: it is used as it is."
)


def _locale(properties: Mapping[str, Any]) -> dict[str, str]:
    found = {"LC_COLLATE": properties["collate"], "LC_CTYPE": properties["ctype"]}
    provider = properties.get("locale_provider")
    if provider in ("icu", "builtin"):
        found["LOCALE_PROVIDER"] = provider
        found[f"{provider.upper()}_LOCALE"] = properties[f"{provider}_locale"]
    if rules := properties.get("icu_rules"):
        found["ICU_RULES"] = rules
    return found


def _setting(altered: sql.Composable, setting: str) -> sql.Composed:
    """`ALTER ... SET` of `key=value`. Lists of names are kept as the catalogue spells them."""
    key, _, value = setting.partition("=")
    # These hold lists that are already quoted item by item, as pg_dump knows too.
    lists = {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
        "createrole_self_grant",
    }
    shown = sql.SQL(value) if key.lower() in lists and value else sql.Literal(value)
    return sql.SQL("ALTER {} SET {} TO {}").format(
        altered, sql.SQL(".").join(sql.Identifier(part) for part in key.split(".")), shown
    )
