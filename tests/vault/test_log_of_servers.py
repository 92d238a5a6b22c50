"""WAL of real servers: its names, its first page, and the way into the vault and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path

import psycopg
import pytest

from cellarer.domain.retention import Policy
from cellarer.domain.wal import Segment, first_page, parse_lsn, segment_at
from cellarer.errors import SourceFailed, UsageError
from cellarer.flows.backup import back_up
from cellarer.flows.points import survey
from cellarer.flows.retain import Rules, retain
from cellarer.flows.windows import look_at_logs, read_logs
from cellarer.postgres.cluster import Cluster, sandbox_cluster
from cellarer.sources.postgres_base import PostgresBaseSource
from cellarer.vault.log import LogReader, LogWriter
from cellarer.vault.vault import Vault
from scrubbing import Silent
from stand_ins import found


@pytest.fixture
def archiving(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A server of each version that writes enough WAL for base backups."""
    settings = {"wal_level": "replica", "max_wal_senders": "4"}
    with sandbox_cluster(cluster.installation, tmp_path / "s", settings=settings) as running:
        yield running


@pytest.fixture
def files(cluster: Cluster) -> tuple[str, dict[str, bytes]]:
    """The system identifier of a server of each version, and its segments that are complete."""
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:

        def ask(query: str) -> str:
            row = connection.execute(query).fetchone()
            assert row is not None
            return str(row[0])

        system = ask("SELECT system_identifier FROM pg_control_system()")
        names = []
        for number in range(3):
            ask(f"SELECT pg_logical_emit_message(false, 'filler', repeat('x', {number + 1}000))")
            names.append(ask("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"))
            ask("SELECT pg_switch_wal()")
        directory = Path(ask("SHOW data_directory")) / "pg_wal"
        return system, {name: (directory / name).read_bytes() for name in names}


def test_names_and_first_pages_are_read(
    files: tuple[str, dict[str, bytes]], cluster: Cluster
) -> None:
    system, found_files = files
    for name, data in found_files.items():
        page = first_page(data)
        assert page is not None
        assert (page.system, page.segment_bytes) == (system, len(data))
        segment = Segment.parse(name, len(data))
        assert (segment.start(len(data)), segment.timeline) == (page.lsn, page.timeline)
    with psycopg.connect(cluster.dsn("postgres")) as connection:
        row = connection.execute(
            "SELECT l::text, pg_walfile_name(l) FROM pg_current_wal_insert_lsn() l"
        ).fetchone()
    assert row is not None
    assert segment_at(1, parse_lsn(row[0]) - 1).name() == row[1]


def test_real_wal_goes_in_and_out(files: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    system, found_files = files
    made = found(replicas=2)
    vault = Vault.open(made.replicas(), made.write_key, None)
    writer = LogWriter(vault, system, tmp_path, made.now)
    for name, data in found_files.items():
        assert writer.put(name, data).new
    reader = LogReader(made.open(), system)
    for name, data in found_files.items():
        read = reader.read(name)
        assert hashlib.sha256(read).digest() == hashlib.sha256(data).digest()
    (window,) = reader.continuity().windows
    assert not window.gaps
    first, *_, last = found_files
    with pytest.raises(SourceFailed):
        writer.put(Segment(1, 99_999).name(), found_files[first])
    with pytest.raises(UsageError, match="another cluster"):
        LogWriter(vault, "7000000000000000001", tmp_path, made.now).put(last, found_files[last])
    # Three segments that were hardly filled: what is empty costs next to nothing.
    stored = sum(len(d) for k, d in made.stores["a"].objects.items() if k.startswith("wal/"))
    assert stored < 3 << 20


def test_a_base_backup_and_the_wal_behind_it_make_a_window(
    archiving: Cluster, tmp_path: Path
) -> None:
    made = found()
    source = PostgresBaseSource("cluster", archiving.dsn("postgres"), tmp_path / "base")
    point = back_up(made.open(), source, Silent(), made.now)
    wal = source.wal_range()
    with psycopg.connect(archiving.dsn("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000))")
        connection.execute("SELECT pg_switch_wal()")
        row = connection.execute(
            "SELECT current_setting('data_directory'), pg_walfile_name(pg_switch_wal())"
        ).fetchone()
    assert row is not None
    names = sorted(path.name for path in (Path(row[0]) / "pg_wal").iterdir() if path.is_file())
    first = segment_at(wal.timeline, wal.start_lsn).name()
    vault = Vault.open(made.replicas(), made.write_key, None)
    writer = LogWriter(vault, wal.system, tmp_path / "state", made.now)
    # The server has made files for what it will write: those are no WAL yet.
    for name in [name for name in names if first <= name < row[1] and len(name) == 24]:
        writer.put(name, (Path(row[0]) / "pg_wal" / name).read_bytes())
    logs = read_logs(vault, survey(vault).points, LogReader)
    assert look_at_logs(logs) == []
    (window,) = logs[0].windows
    assert window.source == "cluster"
    assert window.since == point.time + timedelta(seconds=point.seconds)
    reach = logs[0].reach(wal)
    assert reach is not None
    assert reach.lsn == window.window.to_lsn > wal.stop_lsn
    done = retain(made.open(), Rules(Policy(last=1), {}, UTC), made.now, Silent())
    assert [decision.before for decision in done.wal] == [wal.start_lsn]
    assert done.wal_removal["a"].objects == 0
