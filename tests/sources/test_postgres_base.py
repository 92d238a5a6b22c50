"""The source `postgres_base`, against real servers of 15 and 18, in both ways of reading."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cellarer.domain.finding import Finding
from cellarer.errors import SourceFailed, UsageError
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.data_directory import CONTROL_FILE, control_is_whole
from cellarer.sources.postgres_base import PostgresBaseSource, Way
from sources.base_servers import (
    PAGE,
    WAYS,
    ask,
    captured,
    facts,
    relation,
    remembered,
    run,
    server,
    source,
)

__all__ = ["server"]

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


def test_a_copy_of_the_clusters_directory_is_not_read(server: Cluster, tmp_path: Path) -> None:
    """It has the same system identifier, as a standby has, and may be older than the start."""
    copy = tmp_path / "copy"
    server.stop()
    shutil.copytree(server.data_directory, copy, symlinks=True)
    server.start()
    with pytest.raises(UsageError, match="a copy of the cluster"):
        captured(source(server, tmp_path, "direct", data_directory=copy))
    found = captured(source(server, tmp_path, "auto", data_directory=copy))
    assert facts(found).read == "replication"


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


def test_a_damaged_page_is_told_of_by_every_point(server: Cluster, tmp_path: Path) -> None:
    spoil(server, relation(server, "rows"), 11)
    told = []
    for point in ("p", "q", "r"):
        each = source(server, tmp_path)
        remembered(each, point)
        told.append(len(each.flaws()))
    assert told == [1, 1, 1]


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_control_file_makes_no_backup(server: Cluster, tmp_path: Path, way: Way) -> None:
    """No server would start with it."""
    control = server.data_directory / CONTROL_FILE
    whole: list[bytes] = []

    def spoil_it() -> None:
        whole.append(control.read_bytes())
        damaged = bytearray(whole[0])
        damaged[100] ^= 1
        control.write_bytes(damaged)

    try:
        with pytest.raises(SourceFailed, match="damaged"):
            interrupted(source(server, tmp_path, way), spoil_it)
    finally:
        control.write_bytes(whole[0])


def test_no_flipped_bit_of_a_control_file_goes_unnoticed(server: Cluster) -> None:
    content = (server.data_directory / CONTROL_FILE).read_bytes()
    assert control_is_whole(content)
    for at in range(8 * len(content.rstrip(b"\0"))):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        assert not control_is_whole(bytes(damaged)), at


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
