"""The source `postgres_base`, against real servers of 15 and 18, in both ways of reading."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Entry, RestorePoint
from cellarer.errors import SourceFailed, UsageError
from cellarer.flows.backup import back_up
from cellarer.ports import Stream
from cellarer.postgres.account import service_account
from cellarer.postgres.basebackup import BackupFacts
from cellarer.postgres.cluster import Cluster
from cellarer.sources.postgres_base import PostgresBaseSource, Way
from cellarer.vault.reader import SnapshotReader
from stand_ins import Founded, found
from targets.recorded_points import Listener

PAGE = 8192
WAYS: tuple[Way, ...] = ("direct", "replication")


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of each version in turn, with checksums and with a tablespace."""
    options = {"autovacuum": "off", "max_wal_size": "1GB", "fsync": "off"}
    made = Cluster.create(cluster.installation, tmp_path / "c", settings=options)
    account = service_account()
    program = cluster.installation.program("pg_checksums")
    if cluster.installation.major < 18:
        answer = account.run([program, "--enable", "-D", made.data_directory], made.directory)
        assert answer.returncode == 0, answer.stdout
    made.start()
    try:
        space = made.directory / "space"
        space.mkdir(mode=0o700)
        account.own(space)
        run(
            made,
            f"CREATE TABLESPACE apart LOCATION '{space}'",
            "CREATE TABLE rows AS SELECT n, md5(n::text) AS m FROM generate_series(1, 40000) n",
            "CREATE TABLE moved TABLESPACE apart AS SELECT * FROM rows",
            "CREATE UNLOGGED TABLE visits AS SELECT * FROM rows",
        )
        yield made
    finally:
        made.remove()


def run(cluster: Cluster, *statements: str, user: str = "postgres") -> None:
    dsn = psycopg.conninfo.make_conninfo(cluster.dsn("postgres"), user=user)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def ask(cluster: Cluster, query: str) -> str:
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def source(
    cluster: Cluster, tmp_path: Path, way: Way = "direct", **more: object
) -> PostgresBaseSource:
    dsn = psycopg.conninfo.make_conninfo(
        cluster.dsn("postgres"), user=str(more.pop("user", "postgres"))
    )
    return PostgresBaseSource("cluster", dsn, tmp_path / "state", way=way, **more)  # type: ignore[arg-type]


def captured(each: PostgresBaseSource) -> dict[str, tuple[Stream, bytes | None]]:
    """Every stream with its content; None where it was left unread as the source allows."""
    with each.capture() as streams:
        return {s.path: (s, None if s.unchanged else b"".join(s.blocks)) for s in streams}


def facts(found: dict[str, tuple[Stream, bytes | None]]) -> BackupFacts:
    return BackupFacts.parse(found["backup.json"][1] or b"")


def remembered(
    each: PostgresBaseSource, point: str = "p"
) -> dict[str, tuple[Stream, bytes | None]]:
    """A capture that was committed."""
    found = captured(each)
    each.remember(
        point,
        [
            Entry(path, s.kind, s.unchanged.size_bytes, s.unchanged.sum, s.mode)
            if s.unchanged
            else Entry(path, s.kind, len(content or b""), f"sum of {path}", s.mode)
            for path, (s, content) in found.items()
        ],
    )
    return found


def relation(cluster: Cluster, table: str) -> str:
    return f"data/{ask(cluster, f'''SELECT pg_relation_filepath('{table}')''')}"


# ------------------------------------------------------------------------------ what a point holds


@pytest.mark.parametrize("way", WAYS)
def test_the_streams_are_the_files_of_the_cluster(
    server: Cluster, tmp_path: Path, way: Way
) -> None:
    run(server, "CHECKPOINT")
    found = captured(source(server, tmp_path, way))
    told = facts(found)
    visits = relation(server, "visits")
    names = [path for path in found if path.startswith("data/base/") or "/PG_" in path]
    assert len(names) > 800
    for path in names:
        below = path.removeprefix("data/")
        if path.startswith("tablespaces/"):
            below = f"pg_tblspc/{path.removeprefix('tablespaces/')}"
        assert found[path][1] == (server.data_directory / below).read_bytes(), path
        assert found[path][0].kind == (
            "relation" if below[-1].isdigit() or "_" in below else "file"
        ) or (below.endswith(("PG_VERSION", "pg_filenode.map")))
    assert visits not in found
    assert f"{visits}_init" in found
    assert list(found)[-2:] == ["data/global/pg_control", "backup.json"]
    assert told.read == way
    assert told.checksums
    assert [(t.name, t.path) for t in told.tablespaces] == [
        ("apart", str(server.directory / "space"))
    ]
    assert any(path.startswith(f"tablespaces/{told.tablespaces[0].oid}/PG_") for path in found)
    assert {"data/pg_wal", "data/pg_notify", "data/pg_replslot"} <= set(told.directories)
    assert f"wal/{told.start_segment}" in found
    assert len(found[f"wal/{told.start_segment}"][1] or b"") == told.wal_segment_size
    assert not [path for path in found if "postmaster.pid" in path or "pg_internal" in path]


def test_both_ways_give_the_same_files(server: Cluster, tmp_path: Path) -> None:
    run(server, "CHECKPOINT")
    direct = captured(source(server, tmp_path, "direct"))
    sent = captured(source(server, tmp_path, "replication"))
    whole = {p for p in direct if not p.startswith("wal/")}
    assert whole == {p for p in sent if not p.startswith("wal/")}
    assert facts(direct).directories == facts(sent).directories
    for path in whole:
        assert direct[path][0].mode == sent[path][0].mode, path
        assert direct[path][0].page_bytes == sent[path][0].page_bytes, path


def test_auto_reads_directly_where_it_can(server: Cluster, tmp_path: Path) -> None:
    assert facts(captured(source(server, tmp_path, "auto"))).read == "direct"
    run(server, "CREATE ROLE copier LOGIN REPLICATION")
    assert facts(captured(source(server, tmp_path, "auto", user="copier"))).read == "replication"


def test_another_clusters_directory_is_not_read(
    server: Cluster, cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="another cluster"):
        captured(source(server, tmp_path, "direct", data_directory=cluster.data_directory))


# ---------------------------------------------------------------------- what need not be read again


def test_the_next_backup_reads_what_changed(server: Cluster, tmp_path: Path) -> None:
    remembered(source(server, tmp_path))
    # Only what lay still before the first backup began is left unread in the second.
    remembered(source(server, tmp_path), "q")
    run(server, "UPDATE rows SET m = 'changed' WHERE n = 7", "CHECKPOINT")
    found = captured(source(server, tmp_path))
    read = {path for path, (_, content) in found.items() if content is not None}
    unread = {path for path, (_, content) in found.items() if content is None}
    assert relation(server, "rows") in read
    assert len(unread) > 800
    assert all(s.unchanged.point == "q" for s, _ in found.values() if s.unchanged)


def test_everything_is_read_on_request_and_without_memory(server: Cluster, tmp_path: Path) -> None:
    remembered(source(server, tmp_path))
    everything = captured(source(server, tmp_path, full_read=True))
    assert all(content is not None for _, content in everything.values())
    (tmp_path / "state" / "cluster.json").write_text("{")
    again = captured(source(server, tmp_path))
    assert all(content is not None for _, content in again.values())


def test_what_is_remembered_is_for_its_owner_alone(server: Cluster, tmp_path: Path) -> None:
    remembered(source(server, tmp_path))
    assert stat.S_IMODE((tmp_path / "state" / "cluster.json").stat().st_mode) == 0o600


def test_a_write_of_the_same_moment_is_not_hidden(server: Cluster, tmp_path: Path) -> None:
    remembered(source(server, tmp_path))
    known = json.loads((tmp_path / "state" / "cluster.json").read_text())["files"]
    began = (server.data_directory / "global" / "pg_control").stat().st_mtime_ns
    assert known
    assert all(max(stamp[1], stamp[2]) < began for stamp in known.values())


# ------------------------------------------------------------------------------ damage and trouble


def spoil(cluster: Cluster, path: str, page: int) -> None:
    """Flip a bit of a page behind the server's back."""
    run(cluster, "CHECKPOINT")
    with (cluster.data_directory / path.removeprefix("data/")).open("r+b") as file:
        file.seek(page * PAGE + 5000)
        byte = file.read(1)
        file.seek(page * PAGE + 5000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_page_is_told_with_its_relation(
    server: Cluster, tmp_path: Path, way: Way
) -> None:
    path = relation(server, "rows")
    spoil(server, path, 11)
    each = source(server, tmp_path, way)
    found = captured(each)
    [page] = facts(found).damaged_pages
    assert (page.path, page.block, page.relation, page.database) == (path, 11, "rows", "postgres")
    assert each.flaws() == [f"block 11 of rows in database postgres, file {path}"]


def interrupted(each: PostgresBaseSource, act: Callable[[], object]) -> list[str]:
    """The paths of a capture during which something happens."""
    paths = []
    with each.capture() as streams:
        for number, stream in enumerate(streams):
            if number == 3:
                act()
            b"".join(stream.blocks)
            paths.append(stream.path)
    return paths


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_dies_in_between_makes_no_backup(
    server: Cluster, tmp_path: Path, way: Way
) -> None:
    with pytest.raises(SourceFailed):
        interrupted(source(server, tmp_path, way), server.kill)


def test_a_server_restarted_in_between_makes_no_backup(server: Cluster, tmp_path: Path) -> None:
    def restart() -> None:
        server.stop()
        server.start()

    with pytest.raises(SourceFailed, match="does not end"):
        interrupted(source(server, tmp_path), restart)


def test_tables_dropped_and_truncated_meanwhile_are_no_error(
    server: Cluster, tmp_path: Path
) -> None:
    run(server, *(f"CREATE TABLE t{n} AS SELECT * FROM rows LIMIT 3000" for n in range(20)))

    def change() -> None:
        run(server, *(f"DROP TABLE t{n}" for n in range(10)))
        run(server, *(f"TRUNCATE t{n}" for n in range(10, 20)), "VACUUM FULL rows", "CHECKPOINT")

    assert "backup.json" in interrupted(source(server, tmp_path), change)


def test_wal_that_was_written_meanwhile_is_there(server: Cluster, tmp_path: Path) -> None:
    def write() -> None:
        for _ in range(4):
            run(server, "INSERT INTO rows SELECT * FROM rows LIMIT 1", "SELECT pg_switch_wal()")
        run(server, "CHECKPOINT")

    paths = interrupted(source(server, tmp_path), write)
    assert len([path for path in paths if path.startswith("wal/")]) >= 5
    assert ask(server, "SELECT count(*) FROM pg_replication_slots") == "0"


# ------------------------------------------------------------------------------------------ doctor


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.id: finding.level for finding in findings}


def test_doctor_says_what_a_user_lacks(server: Cluster, tmp_path: Path) -> None:
    run(server, "CREATE ROLE reader LOGIN IN ROLE pg_read_all_settings")
    found = source(server, tmp_path, "auto", user="reader").examine()
    assert [f.level for f in found if "pg_backup_start" in f.hint] == ["error"]
    run(
        server,
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO reader",
        "GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO reader",
        "ALTER ROLE reader REPLICATION",
    )
    each = source(server, tmp_path, "direct", user="reader")
    assert set(levels(each.examine()).values()) == {"info"}
    captured(each)


def test_doctor_of_a_server_that_is_away(server: Cluster, tmp_path: Path) -> None:
    each = source(server, tmp_path)
    server.stop()
    [finding] = each.examine()
    assert finding.level == "error"


# --------------------------------------------------------------------- a point that starts a server


def restored(found: dict[str, tuple[Stream, bytes | None]], directory: Path) -> None:
    """What a restore does, in short: files where they were, WAL in pg_wal."""
    for path in facts(found).directories:
        if path.startswith("data/"):
            (directory / path.removeprefix("data/")).mkdir(parents=True, exist_ok=True, mode=0o700)
    for space in facts(found).tablespaces:
        elsewhere = directory.parent / f"space{space.oid}"
        elsewhere.mkdir(mode=0o700)
        (directory / "pg_tblspc" / str(space.oid)).symlink_to(elsewhere)
    for path, (_, content) in found.items():
        name = path.removeprefix("data/")
        if path.startswith("wal/"):
            name = f"pg_wal/{path.removeprefix('wal/')}"
        elif path.startswith("tablespaces/"):
            name = f"pg_tblspc/{path.removeprefix('tablespaces/')}"
        if path not in ("backup.json", "tablespace_map"):
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.write_bytes(content or b"")


def amcheck(cluster: Cluster) -> None:
    program = cluster.installation.program("pg_amcheck")
    where = ["-h", str(cluster.socket_directory), "-p", str(cluster.port), "-U", "postgres"]
    command: list[str | Path] = [program, "--install-missing", *where, "postgres"]
    answer = service_account().run(command, cluster.directory)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("way", WAYS)
def test_a_server_recovers_from_the_files(
    server: Cluster, tmp_path: Path, way: Way, writing: Callable[[Cluster], None]
) -> None:
    writing(server)
    found = captured(source(server, tmp_path, way))
    directory = tmp_path / "again"
    directory.mkdir(mode=0o700)
    again = Cluster(server.installation, directory, service_account(), "postgres")
    again.data_directory.mkdir(mode=0o700)
    restored(found, again.data_directory)
    again.socket_directory.mkdir(mode=0o700)
    with (again.data_directory / "postgresql.auto.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{again.socket_directory}'\n")
    account = service_account()
    for place in (directory, *directory.rglob("*")):
        account.own(place)
        if place.is_dir():
            place.chmod(0o700)
    try:
        again.start()
        assert int(ask(again, "SELECT count(*) FROM rows")) >= 40000
        assert ask(again, "SELECT count(*) FROM moved") == "40000"
        if ask(again, "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'") == "1":
            amcheck(again)
    finally:
        again.remove()


@pytest.fixture
def writing() -> Iterator[Callable[[Cluster], None]]:
    """Keeps a server busy until the test is over."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(cluster: Cluster) -> None:
        program = cluster.installation.program("pgbench")
        script = cluster.directory / "script.sql"
        script.write_text(
            "INSERT INTO rows VALUES (40001, 'new'); UPDATE rows SET m = 'x' WHERE n = 5;\n"
        )
        started.append(
            subprocess.Popen(
                [program, "-n", "-c", "2", "-T", "60", "-f", script, cluster.dsn("postgres")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ,
            )
        )

    yield begin
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()


# ----------------------------------------------------------------- what was left unread is the same


def sums(scene: Founded, point: str) -> dict[str, str]:
    """The sum of each file of a point, all of it read; but for what every backup has of its own."""
    vault = scene.open()
    commit = next(commit for commit in vault.commits() if commit.session == point)
    reader = SnapshotReader(vault, commit)
    for entry in reader.entries():
        for _ in reader.read(entry.path):
            pass
    return {e.path: e.sum for e in reader.entries() if e.path.startswith(("data/", "tablespaces/"))}


def test_what_is_left_unread_is_what_reading_it_would_give(
    server: Cluster, tmp_path: Path, writing: Callable[[Cluster], None]
) -> None:
    """Backups under load, then two of the server at rest: one by memory, one by reading all."""
    scene = found()

    def backed_up(*, full_read: bool = False) -> RestorePoint:
        each = source(server, tmp_path, full_read=full_read)
        return back_up(scene.open(), each, Listener(), scene.now)

    writing(server)
    for _ in range(4):
        backed_up()
        run(server, "UPDATE moved SET m = 'again' WHERE n % 100 = 1", "VACUUM moved")
    stop_writing(server)
    run(server, "CHECKPOINT")
    by_memory, by_reading = backed_up(), backed_up(full_read=True)
    assert by_memory.added_bytes < by_reading.read_bytes / 4
    remembered_sums, read_sums = sums(scene, by_memory.id), sums(scene, by_reading.id)
    del remembered_sums["data/global/pg_control"], read_sums["data/global/pg_control"]
    assert remembered_sums == read_sums


def stop_writing(cluster: Cluster) -> None:
    """End every session but our own, and wait until they are gone."""
    others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
    while (
        ask(
            cluster, f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}"
        )
        != "0"
    ):
        pass
