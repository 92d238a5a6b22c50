"""The source `postgres_dump`, against servers of 15 and 18: what goes wrong, and what it says."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from cellarer.domain.finding import Finding
from cellarer.errors import CellarerError, SourceFailed, ToolMissing, UsageError
from cellarer.postgres import binaries
from cellarer.postgres.catalogue import LEFT_BY_RESTORE
from cellarer.postgres.cluster import Cluster, sandbox_cluster
from cellarer.sources.postgres_dump import PostgresDumpSource

MORE_THAN_A_PIPE = "CREATE TABLE big AS SELECT repeat('x', 999) FROM generate_series(1, 20000)"


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def as_role(dsn: str, role: str) -> str:
    return dsn.replace("//postgres@", f"//{role}@")


def capture(dsn: str, *databases: str, lock_timeout_seconds: float = 20) -> dict[str, bytes]:
    source = PostgresDumpSource("db", dsn, databases, lock_timeout_seconds=lock_timeout_seconds)
    with source.capture() as streams:
        return {stream.path: b"".join(stream.blocks) for stream in streams}


def failure(dsn: str, *databases: str) -> SourceFailed:
    with pytest.raises(SourceFailed) as caught:
        capture(dsn, *databases)
    assert caught.value.hint
    return caught.value


def findings(dsn: str, *databases: str) -> dict[str, Finding]:
    found = PostgresDumpSource("db", dsn, databases).examine()
    assert all(one.subject == "sources.db" for one in found)
    return {one.id: one for one in found}


@pytest.fixture
def role(cluster: Cluster, database: str) -> Iterator[str]:
    """A user who may log in and nothing else."""
    name = f"role_{secrets.token_hex(6)}"
    run(database, f"CREATE ROLE {name} LOGIN")
    yield name
    run(database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture
def private(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that a test may break."""
    with sandbox_cluster(cluster.installation, tmp_path) as own:
        yield own


# -------------------------------------------------------------------------------- not getting in


def test_wrong_password(private: Cluster) -> None:
    run(private.dsn("postgres"), "CREATE ROLE guarded SUPERUSER LOGIN PASSWORD 'right'")
    rules = private.data_directory / "pg_hba.conf"
    rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
    run(private.dsn("postgres"), "SELECT pg_reload_conf()")
    right = as_role(private.dsn("postgres"), "guarded:right")
    assert "postgres/toc" in capture(right)
    wrong = as_role(private.dsn("postgres"), "guarded:wr0ng")
    error = failure(wrong)
    assert error.message.startswith("cannot connect to database postgres at")
    assert 'password authentication failed for user "guarded"' in error.detail
    assert "wr0ng" not in str(error.as_json())
    assert findings(wrong)["source-source"].hint == error.hint
    error = failure(as_role(private.dsn("postgres"), "guarded"))
    assert "no password supplied" in error.detail


def test_no_such_database(database: str) -> None:
    error = failure(database.replace(name_of(database), "nowhere"))
    assert error.message.startswith("cannot connect to database nowhere")
    assert 'database "nowhere" does not exist' in error.detail
    error = failure(database, name_of(database), "nowhere")
    assert 'database "nowhere" does not exist' in error.detail
    assert not error.retryable


def test_no_server_there(tmp_path: Path) -> None:
    dsn = f"postgresql://me@/somewhere?host={tmp_path}"
    error = failure(dsn)
    assert error.message == f"cannot connect to database somewhere at {tmp_path}"
    assert error.retryable
    assert findings(dsn)["source-source"].level == "error"


def test_a_malformed_dsn_is_not_repeated() -> None:
    dsn = "postgresql//me:hush@host/database"
    with pytest.raises(UsageError) as caught:
        capture(dsn)
    assert "hush" not in str(caught.value.as_json())
    assert "hush" not in str(findings(dsn))


def test_a_server_newer_than_every_pg_dump(
    postgres15: Cluster, postgres18: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "installations", lambda: (postgres15.installation,))
    with pytest.raises(ToolMissing) as caught:
        capture(postgres18.dsn("postgres"))
    assert "18" in caught.value.message
    assert "postgresql-client-18" in caught.value.hint
    assert findings(postgres18.dsn("postgres"))["source-tool_missing"].level == "error"
    assert "postgres/toc" in capture(postgres15.dsn("postgres"))


# ------------------------------------------------------------------------------- not seeing it all


@pytest.mark.parametrize(
    ("taken_away", "named"),
    [
        ("REVOKE ALL ON other FROM {}", "public.other"),
        ("REVOKE SELECT ON SEQUENCE numbers FROM {}", "public.numbers"),
        ("REVOKE ALL ON SCHEMA s FROM {}", "s.inside"),
    ],
)
def test_permission_denied(database: str, role: str, taken_away: str, named: str) -> None:
    run(
        database,
        "CREATE TABLE mine (id integer); CREATE TABLE other (id integer)",
        "CREATE SEQUENCE numbers; CREATE SCHEMA s; CREATE TABLE s.inside ()",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public, s TO {role}",
        f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}",
        f"GRANT USAGE ON SCHEMA s TO {role}",
    )
    dsn = as_role(database, role)
    assert "source-unreadable" not in findings(dsn)
    capture(dsn)
    run(database, taken_away.format(role))
    error = failure(dsn)
    assert error.detail == f"permission denied for {named}"
    assert error.hint == f'As superuser: GRANT pg_read_all_data TO "{role}".'
    assert findings(dsn)["source-unreadable"].message == str(error)
    run(database, f"GRANT pg_read_all_data TO {role}")
    assert "source-unreadable" not in findings(dsn)
    capture(dsn)


def test_permission_denied_on_a_large_object(database: str, role: str) -> None:
    run(database, f"GRANT pg_read_all_data TO {role}", "SELECT lo_from_bytea(776, 'x')")
    run(database, f"GRANT SELECT ON LARGE OBJECT 776 TO {role}")
    dsn = as_role(database, role)
    assert "source-unreadable" not in findings(dsn)
    run(database, "SELECT lo_from_bytea(777, 'x'), lo_from_bytea(778, 'x')")
    error = failure(dsn)
    assert "may not read all" in error.message  # seen before pg_dump has run
    assert error.detail == "permission denied for large object 777 and 1 more"
    assert "lo_compat_privileges" in error.hint
    found = findings(dsn)["source-unreadable"]
    assert (found.level, found.message, found.hint) == ("error", str(error), error.hint)


@pytest.mark.parametrize(
    "allowed",
    [
        "ALTER ROLE {} SET lo_compat_privileges = on",
        "ALTER LARGE OBJECT 777 OWNER TO {}",
        "GRANT SELECT ON LARGE OBJECT 777 TO PUBLIC",
        "ALTER ROLE {} SUPERUSER",
    ],
)
def test_ways_to_read_a_large_object(database: str, role: str, allowed: str) -> None:
    run(database, "SELECT lo_from_bytea(777, 'x')", f"GRANT pg_read_all_data TO {role}")
    assert "source-unreadable" in findings(as_role(database, role))
    run(database, allowed.format(role))
    assert "source-unreadable" not in findings(as_role(database, role))
    assert f"{name_of(database)}/tables.json" in capture(as_role(database, role))


def test_rows_hidden_by_policies(database: str, role: str) -> None:
    run(
        database,
        "CREATE TABLE letters (id integer); INSERT INTO letters VALUES (1)",
        "ALTER TABLE letters ENABLE ROW LEVEL SECURITY",
        f"GRANT pg_read_all_data TO {role}",
    )
    dsn = as_role(database, role)
    error = failure(dsn)
    assert error.message.startswith("row-level security hides rows")
    assert error.detail == "policies filter public.letters"
    assert "BYPASSRLS" in error.hint
    assert "BYPASSRLS" in findings(dsn)["source-unreadable"].hint
    run(database, f"ALTER ROLE {role} BYPASSRLS")
    assert f"{name_of(database)}/data/public/letters" in capture(dsn)


def test_a_user_who_cannot_read_passwords(database: str, role: str) -> None:
    run(database, f"ALTER ROLE {role} PASSWORD 'x'")
    streams = capture(as_role(database, role))
    assert json.loads(streams["server.json"])["role_passwords"] is False
    assert f"CREATE ROLE {role}".encode() in streams["roles.sql"]
    assert b"PASSWORD" not in streams["roles.sql"]
    assert findings(as_role(database, role))["source-role-passwords"].level == "warning"
    run(database, f"GRANT pg_read_all_data TO {role}")
    streams = capture(as_role(database, role))
    assert b"PASSWORD 'SCRAM-SHA-256$" in streams["roles.sql"]
    assert "source-role-passwords" not in findings(as_role(database, role))


def test_databases_closed_to_the_user(database: str, role: str) -> None:
    name = name_of(database)
    run(database, f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    elsewhere = as_role(database, role).replace(name, "postgres")
    assert name in findings(elsewhere, "*")["source-database-skipped"].message
    assert f"{name}/toc" not in capture(elsewhere, "*")
    error = failure(elsewhere, name)
    assert "permission denied for database" in error.detail
    assert "GRANT CONNECT" in error.hint


def test_what_a_restore_has_not_put_in_place_is_left_out(database: str) -> None:
    left, own = (f"{name_of(database)}_cellarer_{n * 8}" for n in "01")
    admin = database.replace(name_of(database), "postgres")
    run(admin, f"CREATE DATABASE {left} CONNECTION LIMIT {LEFT_BY_RESTORE}")
    run(admin, f"CREATE DATABASE {own}")
    try:
        streams = capture(admin, "*")
        assert left in findings(admin, "*")["source-database-left"].message
    finally:
        run(admin, f"DROP DATABASE {left}", f"DROP DATABASE {own}")
    assert f"{left}/toc" not in streams
    assert f"{own}/toc" in streams, "only the name is alike"


# ---------------------------------------------------------------------------------- half way


def test_a_lock_that_is_not_given(database: str) -> None:
    run(database, "CREATE TABLE t (id integer)")
    with psycopg.connect(database) as migration:
        migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceFailed) as caught:
            capture(database, lock_timeout_seconds=0.1)
    assert "lock timeout" in caught.value.detail
    assert "migration" in caught.value.hint
    assert caught.value.retryable


def test_limits_of_the_role_do_not_apply(database: str, role: str) -> None:
    run(
        database,
        f"GRANT pg_read_all_data TO {role}",
        f"ALTER ROLE {role} SET statement_timeout = '300ms'",
        f"ALTER ROLE {role} SET idle_in_transaction_session_timeout = '200ms'",
        "CREATE TABLE t (id integer)",
    )
    longer_than_either = "SELECT pg_sleep(0.5)"
    with psycopg.connect(database) as migration, ThreadPoolExecutor() as pool:
        migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        capturing = pool.submit(capture, as_role(database, role))
        migration.execute(longer_than_either)
        migration.rollback()
        assert f"{name_of(database)}/data/public/t" in capturing.result()
    with PostgresDumpSource("db", as_role(database, role)).capture() as streams:
        run(database, longer_than_either)
        assert all(b"".join(stream.blocks) for stream in streams)


def test_the_server_goes_half_way(private: Cluster) -> None:
    dsn = private.dsn("postgres")
    run(dsn, MORE_THAN_A_PIPE)

    def interrupted() -> None:
        with PostgresDumpSource("db", dsn).capture() as streams:
            for stream in streams:
                for _block in stream.blocks:
                    if stream.kind == "table" and private.pid is not None:
                        private.kill()

    with pytest.raises(SourceFailed) as caught:
        interrupted()
    assert caught.value.message == "pg_dump of database postgres failed"
    assert "server closed the connection" in caught.value.detail
    assert caught.value.retryable
    private.start()
    assert "postgres/tables.json" in capture(dsn)


def test_a_session_is_ended_half_way(database: str) -> None:
    """Only the one that holds the snapshot and counts; `pg_dump` itself succeeds."""
    run(database, MORE_THAN_A_PIPE)

    def interrupted() -> None:
        with PostgresDumpSource("db", database).capture() as streams:
            run(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{name_of(database)}' AND application_name = 'cellarer'"
                " AND state = 'idle in transaction'",
            )
            for stream in streams:
                for _block in stream.blocks:
                    pass

    with pytest.raises(SourceFailed) as caught:
        interrupted()
    assert "terminating connection" in caught.value.detail
    assert caught.value.retryable


def test_damaged_pages(private: Cluster) -> None:
    dsn = private.dsn("postgres")
    run(dsn, MORE_THAN_A_PIPE, "CHECKPOINT")
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT pg_relation_filepath('big')").fetchone()
    assert found is not None
    private.stop()
    with (private.data_directory / found[0]).open("r+b") as file:
        file.seek(8192 * 1000)
        file.write(b"\xff" * 8192)
    private.start()
    error = failure(dsn)
    assert "invalid page" in error.detail
    assert "damaged" in error.hint


def test_warnings_of_something_missing_are_errors(database: str) -> None:
    run(
        database,
        "CREATE DOMAIN lost AS text",
        "SET allow_system_table_mods = on",
        "UPDATE pg_type SET typtype = 'x' WHERE typname = 'lost'",
    )
    error = failure(database)
    assert error.message.startswith("pg_dump warns that the dump")
    assert "lost" in error.detail


def test_warnings_of_subscriptions_are_kept(database: str, role: str) -> None:
    run(
        database,
        f"GRANT pg_read_all_data TO {role}",
        "CREATE SUBSCRIPTION news CONNECTION 'dbname=elsewhere' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE)",
    )
    try:
        streams = capture(as_role(database, role))
        told = json.loads(streams[f"{name_of(database)}/tables.json"])
        assert "subscriptions not dumped" in told["warnings"][0]
        assert "news" in findings(as_role(database, role))["source-subscriptions"].message
        assert "source-subscriptions" not in findings(database)
    finally:
        run(database, "DROP SUBSCRIPTION news")


# ---------------------------------------------------------------------------------------- doctor


def test_findings_of_a_healthy_server(cluster: Cluster, database: str) -> None:
    run(database, "CREATE TABLE t ()")
    found = findings(database)
    assert set(found) == {"source-server", "source-database"}
    assert all(one.level == "info" for one in found.values())
    version = cluster.installation.version
    assert f"pg_dump {version}" in found["source-server"].message
    assert found["source-database"].message == f"database {name_of(database)}: 1 tables, readable"


def test_errors_have_the_exit_code_of_a_failure(tmp_path: Path) -> None:
    error: CellarerError = failure(f"postgresql://me@/somewhere?host={tmp_path}")
    assert error.exit_code == 1
