"""Roles come first, whole where they are new and untouched where they are not."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.errors import TargetFailed
from cellarer.postgres.catalogue import Connection
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.connection import connect
from cellarer.targets.roles import RoleRestorer, statements

# Any two keys of 32 bytes make a hash that the server takes for one.
KEY = base64.b64encode(bytes(32)).decode()
HASH = f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}"


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from("ab;'\"-\\ \n/*"), max_size=8),
            st.text(st.sampled_from("ab;'\"-\\ \n/*"), min_size=1, max_size=8),
        )
    )
)
def test_statements_are_split_whatever_names_and_texts_hold(pairs: list[tuple[str, str]]) -> None:
    made = [
        f'COMMENT ON ROLE "{name.replace(chr(34), chr(34) * 2)}" IS {quoted(text)}'
        for text, name in pairs
    ]
    script = "--\n-- a comment; it's\n--\n\n\\restrict x;y'\n\n" + "".join(
        f"{one};\n\n-- more\n" for one in made
    )
    assert list(statements(script + "\\unrestrict x\n")) == made


@pytest.fixture
def prefix(cluster: Cluster) -> Iterator[str]:
    """Roles of this prefix are dropped at the end: they belong to the whole shared cluster."""
    prefix = f"r{secrets.token_hex(5)}"
    yield prefix
    with connect(cluster.dsn("postgres")) as connection:
        query = "SELECT rolname FROM pg_roles WHERE rolname LIKE %s"
        for (name,) in connection.execute(query, [f"{prefix}%"]).fetchall():
            owned = psycopg.sql.Identifier(name)
            connection.execute(psycopg.sql.SQL("DROP OWNED BY {} CASCADE").format(owned))
            connection.execute(psycopg.sql.SQL("DROP ROLE {}").format(owned))


def restore(connection: Connection, script: str, overwrite: bool = False) -> list[str]:
    notes: list[str] = []
    RoleRestorer(connection, overwrite, notes.append).restore(script.encode())
    return notes


def password(cluster: Cluster, name: str) -> str | None:
    with connect(cluster.dsn("postgres")) as connection:
        row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [name])
        found = row.fetchone()
    assert found is not None
    value: str | None = found[0]
    return value


def test_new_roles_come_whole(cluster: Cluster, prefix: str) -> None:
    script = f"""\
CREATE ROLE {prefix}_group;
ALTER ROLE {prefix}_group WITH NOSUPERUSER INHERIT CREATEDB NOLOGIN CONNECTION LIMIT 3;
CREATE ROLE "{prefix} é; odd";
ALTER ROLE "{prefix} é; odd" WITH LOGIN PASSWORD '{HASH}' VALID UNTIL 'infinity';
COMMENT ON ROLE "{prefix} é; odd" IS 'it''s; odd';
ALTER ROLE "{prefix} é; odd" SET search_path TO 'a', 'b';
GRANT {prefix}_group TO "{prefix} é; odd" WITH ADMIN OPTION GRANTED BY somebody_not_here;
"""
    with connect(cluster.dsn("postgres")) as connection:
        restore(connection, script)
        row = connection.execute(
            "SELECT rolcanlogin, rolpassword, shobj_description(a.oid, 'pg_authid'),"
            " (SELECT setconfig FROM pg_db_role_setting s WHERE s.setrole = a.oid),"
            " (SELECT array_agg(m.roleid::regrole::text || m.admin_option) FROM pg_auth_members m"
            "  WHERE m.member = a.oid) FROM pg_authid a WHERE rolname = %s",
            [f"{prefix} é; odd"],
        ).fetchone()
    assert row == (True, HASH, "it's; odd", ["search_path=a, b"], [f"{prefix}_grouptrue"])


@pytest.mark.parametrize("overwrite", [False, True])
def test_present_roles_keep_their_password_unless_overwritten(
    cluster: Cluster, prefix: str, overwrite: bool
) -> None:
    script = f"CREATE ROLE {prefix};\nALTER ROLE {prefix} WITH LOGIN PASSWORD '{HASH}';\n"
    with connect(cluster.dsn("postgres")) as connection:
        connection.execute(f"CREATE ROLE {prefix} NOLOGIN PASSWORD 'own'".encode())
        own = password(cluster, prefix)
        notes = restore(connection, script, overwrite)
    assert password(cluster, prefix) == (HASH if overwrite else own)
    assert notes == [f"roles kept as they are on the server: {prefix}"] * (not overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_present_roles_get_no_new_rights_unless_overwritten(
    cluster: Cluster, prefix: str, overwrite: bool
) -> None:
    old, chief, new = f"{prefix}_old", f"{prefix}_chief", f"{prefix}_new"
    script = (
        f"CREATE ROLE {old};\nCREATE ROLE {chief};\nCREATE ROLE {new};\n"
        f"GRANT {chief} TO {old};\nGRANT {old} TO {new};\nALTER ROLE {old} WITH CREATEDB;\n"
    )
    with connect(cluster.dsn("postgres")) as connection:
        connection.execute(f"CREATE ROLE {old}; CREATE ROLE {chief}".encode())
        restore(connection, script, overwrite)
        held = connection.execute(
            "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members"
            " WHERE member::regrole::text LIKE %s ORDER BY 1",
            [f"{prefix}%"],
        ).fetchall()
        query = "SELECT rolcreatedb FROM pg_roles WHERE rolname = %s"
        assert connection.execute(query, [old]).fetchone() == (overwrite,)
    assert held == [(chief, old)] * overwrite + [(old, new)]


def test_the_role_of_the_connection_is_never_changed(cluster: Cluster) -> None:
    before = password(cluster, "postgres")
    script = f"CREATE ROLE postgres;\nALTER ROLE postgres WITH NOLOGIN PASSWORD '{HASH}';\n"
    with connect(cluster.dsn("postgres")) as connection:
        assert restore(connection, script, overwrite=True) == []
    assert password(cluster, "postgres") == before


def test_an_ordinary_user_is_told_what_only_a_superuser_may(cluster: Cluster, prefix: str) -> None:
    script = f"""\
CREATE ROLE {prefix}_app;
ALTER ROLE {prefix}_app WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION \
NOBYPASSRLS PASSWORD '{HASH}';
CREATE ROLE {prefix}_chief;
ALTER ROLE {prefix}_chief WITH SUPERUSER INHERIT LOGIN REPLICATION NOBYPASSRLS;
"""
    with connect(cluster.dsn("postgres")) as connection:
        connection.execute(f"CREATE ROLE {prefix}_admin LOGIN CREATEROLE CREATEDB".encode())
    with connect(cluster.dsn("postgres").replace("postgres@", f"{prefix}_admin@")) as connection:
        notes = restore(connection, script)
        # It can hand objects over to the role it made.
        connection.execute(f"SET ROLE {prefix}_app".encode())
    assert notes == [
        f"role {prefix}_chief comes without SUPERUSER, REPLICATION: only a superuser may"
    ]
    assert password(cluster, f"{prefix}_app") == HASH


def test_an_error_names_the_statement_and_no_password(cluster: Cluster, prefix: str) -> None:
    script = f"CREATE ROLE {prefix};\nALTER ROLE {prefix} WITH NONSENSE PASSWORD '{HASH}';\n"
    with connect(cluster.dsn("postgres")) as connection, pytest.raises(TargetFailed) as caught:
        restore(connection, script)
    assert f"ALTER ROLE {prefix}" in caught.value.detail
    assert "SCRAM" not in str(caught.value.as_json())
