"""Base backups over the replication protocol, taken apart as they come, from real servers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cellarer.errors import SourceFailed
from cellarer.postgres.base_stream import BaseBackupStream, Member
from cellarer.postgres.cluster import Cluster

Content = dict[tuple[int | None, str], bytes | None]


@pytest.fixture
def own_cluster(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of each version in turn with a tablespace and some rows, at rest."""
    installation = cluster.installation
    made = Cluster.create(installation, tmp_path / "c", settings={"autovacuum": "off"})
    made.start()
    try:
        space = made.directory / "space"
        space.mkdir(mode=0o700)
        shutil.chown(space, made.data_directory.stat().st_uid)
        with psycopg.connect(made.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"create tablespace apart location '{space}'")
            connection.execute(
                "create table rows as select n, md5(n::text) from generate_series(1, 50000) n"
            )
            connection.execute("create table moved tablespace apart as select * from rows")
            connection.execute("checkpoint")
        yield made
    finally:
        made.remove()


def content(members: Iterator[Member]) -> Content:
    return {(m.tablespace, m.path): None if m.directory else b"".join(m.blocks) for m in members}


def test_every_file_comes_as_it_lies_on_the_disk(own_cluster: Cluster) -> None:
    stream = BaseBackupStream(own_cluster.dsn("postgres"), "it's a label")
    try:
        found = content(stream.members())
        [space] = stream.tablespaces
    finally:
        stream.close()
    data = own_cluster.data_directory
    relations = 0
    for (tablespace, path), sent in found.items():
        root = data if tablespace is None else data / "pg_tblspc" / str(tablespace)
        if sent is not None and path.rpartition("/")[2].isdecimal() and "/" in path:
            assert sent == (root / path).read_bytes(), path
            relations += 1
    assert relations > 500
    assert any(tablespace == space.oid for tablespace, _ in found)
    assert f"{space.oid} {space.path}".encode() in (found[None, "tablespace_map"] or b"")
    label = found[None, "backup_label"] or b""
    assert f"START WAL LOCATION: {stream.start_lsn}".encode() in label
    assert b"it's a label" in label
    assert len(found[None, "global/pg_control"] or b"") == 8192
    assert any(path.startswith("pg_wal/00000001") for _, path in found)
    assert found[None, "pg_notify"] is None
    assert stream.stop_lsn > stream.start_lsn
    assert stream.expected_bytes > 10_000_000


def test_blocks_that_nobody_reads_are_passed_over(own_cluster: Cluster) -> None:
    stream = BaseBackupStream(own_cluster.dsn("postgres"), "test")
    try:
        names = [(member.tablespace, member.path) for member in stream.members()]
    finally:
        stream.close()
    assert (None, "global/pg_control") in names
    assert stream.stop_lsn


def test_a_server_that_dies_is_an_error(own_cluster: Cluster) -> None:
    stream = BaseBackupStream(own_cluster.dsn("postgres"), "test")
    try:
        members = stream.members()
        next(members)
        own_cluster.kill()
        with pytest.raises(SourceFailed):
            content(members)
    finally:
        stream.close()
    assert not stream.stop_lsn


def test_a_user_without_the_right_is_told_what_it_takes(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute("create role reader login")
    dsn = psycopg.conninfo.make_conninfo(own_cluster.dsn("postgres"), user="reader")
    with pytest.raises(SourceFailed) as caught:
        BaseBackupStream(dsn, "test")
    assert "REPLICATION" in caught.value.hint


def test_a_role_with_replication_alone_suffices(own_cluster: Cluster) -> None:
    with psycopg.connect(own_cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute("create role copier login replication")
    stream = BaseBackupStream(
        psycopg.conninfo.make_conninfo(own_cluster.dsn("postgres"), user="copier"), "test"
    )
    try:
        assert sum(1 for _ in stream.members()) > 900
    finally:
        stream.close()


def test_the_same_files_as_those_of_pg_basebackup(own_cluster: Cluster, tmp_path: Path) -> None:
    stream = BaseBackupStream(own_cluster.dsn("postgres"), "test")
    try:
        ours = {
            p
            for (t, p), sent in content(stream.members()).items()
            if t is None and sent is not None
        }
    finally:
        stream.close()
    out, apart = tmp_path / "out", tmp_path / "apart"
    program = own_cluster.installation.program("pg_basebackup")
    mapping = f"--tablespace-mapping={own_cluster.directory / 'space'}={apart}"
    subprocess.run(
        [
            program,
            "-d",
            own_cluster.dsn("postgres"),
            "-D",
            out,
            mapping,
            "-X",
            "fetch",
            "-c",
            "fast",
        ],
        check=True,
    )
    theirs = {
        str(file.relative_to(out))
        for file in out.rglob("*")
        if file.is_file() and not file.is_symlink() and "pg_tblspc" not in file.parts
    }
    without = {"backup_manifest", "tablespace_map"}
    wal = {path for path in ours | theirs if path.startswith("pg_wal/")}
    assert ours - wal - without == theirs - wal - without
