"""What a server's catalogue says: tables, sequences, databases, settings.

All queries name their functions' and tables' schema through an empty `search_path`, which
`quiet_settings` sets: nothing that users define is ever called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from cellarer.postgres.toc import INTEGER

Connection = psycopg.Connection[tuple[Any, ...]]

_LOCALE_PROVIDERS = {"b": "builtin", "c": "libc", "d": "default", "i": "icu"}


@dataclass(frozen=True, order=True)
class Table:
    """A table whose rows a dump holds, or a partitioned one, which has none of its own.

    `condition` is a WHERE clause, set for tables of an extension of which a part is the user's.
    """

    schema: str
    name: str
    oid: int
    partitioned: bool
    readable: bool
    filtered_by_policies: bool
    primary_key: tuple[str, ...]
    condition: str

    @property
    def identifier(self) -> sql.Identifier:
        """The name as SQL writes it."""
        return sql.Identifier(self.schema, self.name)


def quiet_settings(connection: Connection) -> None:
    """Prepare the open transaction for long reading: no time limits, and every row or an error.

    These are settings of the transaction, so that a pooled connection keeps none of them.
    """
    settings = {
        "search_path": "",
        "row_security": "off",
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
    if connection.info.server_version >= 170000:
        settings["transaction_timeout"] = "0"
    statements = [
        sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in settings.items()
    ]
    connection.execute(sql.SQL("; ").join(statements))


def list_tables(connection: Connection) -> tuple[Table, ...]:
    """Every table that belongs in a dump, sorted by name. Waits for no lock."""
    query = """
        SELECT n.nspname::text, c.relname::text, c.oid::int8, c.relkind = 'p',
            coalesce(has_table_privilege(c.oid, 'SELECT'), false)
                AND has_schema_privilege(n.oid, 'USAGE'),
            coalesce(row_security_active(c.oid), false),
            ARRAY(
                SELECT a.attname::text
                FROM pg_index i
                CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
                ORDER BY k.place
            ),
            coalesce(x.extcondition[array_position(x.extconfig, c.oid)], '')
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.objsubid = 0 AND d.deptype = 'e'
        LEFT JOIN pg_extension x ON x.oid = d.refobjid
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
            AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
            AND (x.oid IS NULL OR c.oid = ANY (x.extconfig))
    """
    found = []
    for *facts, primary_key, condition in connection.execute(query).fetchall():
        schema, name, oid, partitioned, readable, filtered = facts
        found.append(
            Table(schema, name, oid, partitioned, readable, filtered, tuple(primary_key), condition)
        )
    return tuple(sorted(found))


def unreadable_sequences(connection: Connection) -> list[str]:
    """Sequences whose state the user may not read, as `schema.name`."""
    query = """
        SELECT n.nspname || '.' || c.relname
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
            AND NOT CASE  -- the order of other conditions is the planner's choice
                WHEN c.relkind = 'S' THEN coalesce(has_sequence_privilege(c.oid, 'SELECT'), true)
            END
            AND NOT EXISTS (
                SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
            )
        ORDER BY 1
    """
    return [name for (name,) in connection.execute(query)]


def unreadable_large_objects(connection: Connection) -> tuple[int, int]:
    """The least id of the large objects that the user may not read, and how many those are."""
    # `pg_read_all_data` means them in some versions only, and one function alone knows of it.
    readable = (
        "has_largeobject_privilege(m.oid, 'SELECT')"
        if connection.info.server_version >= 180000
        else """(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
            OR pg_has_role(m.lomowner, 'USAGE')
            OR EXISTS (
                SELECT FROM aclexplode(m.lomacl) a
                WHERE a.privilege_type = 'SELECT'
                    AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))
            )"""
    )
    query = f"""
        SELECT coalesce(min(m.oid::int8), 0), count(*)
        FROM pg_largeobject_metadata m
        WHERE current_setting('lo_compat_privileges') = 'off' AND NOT ({readable})
    """
    first, count = connection.execute(query).fetchall()[0]
    return int(first), int(count)


def dump_sizes(connection: Connection, tables: Iterable[Table]) -> dict[tuple[str, str], int]:
    """About how many bytes a dump has of each table; waits for locks unless they are held.

    A large table's rows take from half to twice as much text as they take on disk, so some of its
    pages are copied out to see. Elsewhere it is the bytes on disk, long values included.
    """
    known = {table.oid: table for table in tables if not table.partitioned}
    query = """
        SELECT t.oid, pg_table_size(t.oid::oid), pg_relation_size(t.oid::oid),
            current_setting('block_size')::int,
            ARRAY(
                SELECT attname::text FROM pg_attribute
                WHERE attrelid = t.oid::oid AND attnum > 0 AND NOT attisdropped
                    AND attgenerated = ''
                ORDER BY attnum
            )
        FROM unnest(%s::int8[]) AS t (oid)
    """
    sizes = {}
    for oid, size, heap, page_bytes, columns in connection.execute(query, [list(known)]).fetchall():
        table = known[oid]
        sizes[table.schema, table.name] = (
            _sampled_size(connection, table, columns, heap // page_bytes)
            if columns and (heap or 0) >= _SAMPLED_FROM_BYTES and size <= 2 * heap
            else size or 0
        )
    return sizes


def large_objects_size(connection: Connection) -> int:
    """About how many bytes a dump has of all large objects."""
    return int(_value(connection, "SELECT pg_table_size('pg_largeobject')"))


_SAMPLED_FROM_BYTES = 1 << 20
_SAMPLED_PAGES = 64
_ROWS_PER_PAGE = 291
"""The most that PostgreSQL puts on a page of 8 KiB (`MaxHeapTuplesPerPage`)."""


def _sampled_size(connection: Connection, table: Table, columns: Sequence[str], pages: int) -> int:
    """The text of all rows, by that of some evenly spaced pages."""
    query = sql.SQL(
        "COPY (SELECT {} FROM ONLY {} WHERE ctid = ANY (ARRAY("
        " SELECT format('(%s,%s)', page, line)::tid"
        " FROM generate_series(0, {}, {}) page, generate_series(1, {}) line))) TO STDOUT"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        table.identifier,
        pages - 1,
        step := pages // _SAMPLED_PAGES,
        _ROWS_PER_PAGE,
    )
    with connection.cursor() as cursor, cursor.copy(query) as rows:
        copied = sum(len(row) + INTEGER.size for row in rows)  # with the frame of each row
    sampled = (pages - 1) // step + 1
    return copied * pages // sampled


def unlogged_relations(connection: Connection) -> dict[str, str]:
    """`schema.name` of every unlogged table and sequence, with `TABLE` or `SEQUENCE`."""
    query = """
        SELECT n.nspname || '.' || c.relname,
            CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'S') AND c.relpersistence = 'u'
            AND NOT EXISTS (
                SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
            )
        ORDER BY 1
    """
    return dict(connection.execute(query).fetchall())


def count_rows(connection: Connection, tables: Sequence[Table]) -> list[int]:
    """The number of rows in each table itself, without those of its children."""
    counts = []
    for table in tables:
        query = sql.SQL("SELECT count(*) FROM ONLY {} {}").format(
            table.identifier,
            sql.SQL(table.condition),
        )
        row = connection.execute(query).fetchone()
        assert row is not None
        counts.append(int(row[0]))
    return counts


def server_version(connection: Connection) -> str:
    """The server's version, as it writes it itself."""
    return str(_value(connection, "SELECT current_setting('server_version')"))


def role_passwords_readable(connection: Connection) -> bool:
    """Whether the user may read the hashes of all roles' passwords."""
    query = "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')"
    return bool(_value(connection, query))


def is_standby(connection: Connection) -> bool:
    """Whether the server replays another server's changes."""
    return bool(_value(connection, "SELECT pg_is_in_recovery()"))


def hidden_subscriptions(connection: Connection) -> list[str]:
    """Subscriptions of this database that `pg_dump` leaves out because the user is no superuser."""
    query = """
        SELECT s.subname::text
        FROM pg_subscription s
        JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
        WHERE NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user)
        ORDER BY 1
    """
    return [name for (name,) in connection.execute(query)]


LEFT_BY_RESTORE = 2_061_209_877
"""The connection limit of a database that a restore has made and not yet put in place, or that it
has replaced. Nobody else sets it; see `cellarer.targets.staging`."""

STAGED_NAME = "_cellarer_[0-9a-f]{8}$"
"""How the name of such a database ends, as a regular expression."""


def list_left_by_restores(connection: Connection) -> list[str]:
    """The databases of restores at work, or killed: none of them belongs to the user's data."""
    query = "SELECT datname::text FROM pg_database WHERE datname ~ %s AND datconnlimit = %s"
    found = connection.execute(f"{query} ORDER BY 1", [STAGED_NAME, LEFT_BY_RESTORE])
    return [row[0] for row in found]


def list_databases(connection: Connection) -> dict[str, bool]:
    """Every database that takes connections and is no template: may the user connect to it?"""
    query = """
        SELECT datname::text, has_database_privilege(oid, 'CONNECT')
        FROM pg_database
        WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2
        ORDER BY 1
    """
    return dict(connection.execute(query).fetchall())


def changed_settings(connection: Connection) -> dict[str, str]:
    """The server's settings that differ from its defaults, those of this session aside."""
    # primary_conninfo belongs to this one host, and may hold a password.
    query = """
        SELECT name, current_setting(name)
        FROM pg_settings
        WHERE source NOT IN ('default', 'override', 'client', 'session', 'database', 'user',
                'database user', 'interactive')
            AND name <> 'primary_conninfo'
        ORDER BY name
    """
    return dict(connection.execute(query).fetchall())


def database_facts(connection: Connection) -> dict[str, object]:
    """What it takes to create the connected database again; no extension's own content."""
    query = """
        SELECT to_jsonb(d), pg_get_userbyid(d.datdba)::text, pg_encoding_to_char(d.encoding)::text,
            t.spcname::text, shobj_description(d.oid, 'pg_database'), d.datacl::text[],
            ARRAY(
                SELECT unnest(s.setconfig) FROM pg_db_role_setting s
                WHERE s.setdatabase = d.oid AND s.setrole = 0
            ),
            (
                SELECT jsonb_object_agg(r.rolname, to_jsonb(s.setconfig))
                FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
                WHERE s.setdatabase = d.oid
            )
        FROM pg_database d
        JOIN pg_tablespace t ON t.oid = d.dattablespace
        WHERE d.datname = current_database()
    """
    row = connection.execute(query).fetchone()
    assert row is not None
    raw, owner, encoding, tablespace, comment, acl, settings, role_settings = row
    provider = _LOCALE_PROVIDERS.get(raw.get("datlocprovider", "c"), raw.get("datlocprovider"))
    # The column of the locale was named anew in PostgreSQL 17.
    locale = raw.get("datlocale", raw.get("daticulocale"))
    facts: dict[str, object] = {
        "name": raw["datname"],
        "owner": owner,
        "encoding": encoding,
        "collate": raw["datcollate"],
        "ctype": raw["datctype"],
        "locale_provider": provider,
        "icu_locale": locale if provider == "icu" else None,
        "tablespace": tablespace,
        "connection_limit": raw["datconnlimit"],
        "settings": settings,
    }
    optional = {
        "builtin_locale": locale if provider == "builtin" else None,
        "icu_rules": raw.get("daticurules"),
        "comment": comment,
        "acl": acl,
        "role_settings": role_settings,
    }
    facts |= {name: value for name, value in optional.items() if value is not None}
    extensions = connection.execute("SELECT extname::text, extversion FROM pg_extension ORDER BY 1")
    return facts | {"extensions": dict(extensions.fetchall())}


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
