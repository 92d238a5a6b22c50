"""Pages that a base backup leaves unread by WAL summaries: real servers of PostgreSQL 18."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import RestorePoint
from cellarer.flows.backup import back_up
from cellarer.ports import Stream
from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.pages import checksums
from cellarer.sources.postgres_base import PostgresBaseSource
from cellarer.vault.reader import SnapshotReader
from sources.base_servers import PAGE, ask, relation, run, source
from stand_ins import Founded, found
from targets.recorded_points import Listener

PAGES = 1000
"""Of `rows`, about."""


@pytest.fixture
def server(postgres18: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that summarises its log, with a table of a thousand pages and another elsewhere."""
    settings = {"autovacuum": "off", "fsync": "off", "max_wal_size": "1GB", "summarize_wal": "on"}
    made = Cluster.create(postgres18.installation, tmp_path / "c", settings=settings)
    made.start()
    try:
        space = made.directory / "space"
        space.mkdir(mode=0o700)
        service_account().own(space)
        run(
            made,
            f"CREATE TABLESPACE apart LOCATION '{space}'",
            "CREATE TABLE rows AS SELECT n, repeat(md5(n::text), 10) AS m, n % 7 AS few"
            " FROM generate_series(1, 21000) n",
            "CREATE TABLE moved TABLESPACE apart AS SELECT * FROM rows LIMIT 3000",
            "CREATE SEQUENCE counted",
            "CREATE INDEX rows_n ON rows (n)",
            "CREATE TABLE spread AS SELECT point(n, n) AS p FROM generate_series(1, 500) n",
            "CREATE INDEX spread_p ON spread USING spgist (p)",
        )
        yield made
    finally:
        made.remove()


class Backups:
    """Backups of one server into one vault, and what was read for each."""

    def __init__(self, server: Cluster, directory: Path) -> None:
        self._server, self.directory = server, directory
        self.scene: Founded = found()

    def take(self, *, full_read: bool = False) -> RestorePoint:
        return back_up(self.scene.open(), self.source(full_read), Listener(), self.scene.now)

    def source(self, full_read: bool = False) -> PostgresBaseSource:
        return source(self._server, self.directory, full_read=full_read)

    def claims(self) -> dict[str, int]:
        """How many pages would be read of each file that is patched, for the next backup."""
        with self.source().capture() as streams:
            return {stream.path: _pages(stream) for stream in streams if stream.patched}

    def content(self, point: RestorePoint) -> dict[str, bytes]:
        """Every file of a point, compared with its sum on the way."""
        vault = self.scene.open()
        commit = next(commit for commit in vault.commits() if commit.session == point.id)
        reader = SnapshotReader(vault, commit)
        wanted = ("data/", "tablespaces/")
        return {
            entry.path: b"".join(reader.read(entry.path))
            for entry in reader.entries()
            if entry.path.startswith(wanted) and not entry.path.endswith("pg_control")
        }

    def both_ways(self) -> RestorePoint:
        """A backup by memory, of which nothing differs from one that reads everything after it."""
        run(self._server, "CHECKPOINT")
        by_memory, by_reading = self.take(), self.take(full_read=True)
        remembered, read = self.content(by_memory), self.content(by_reading)
        assert remembered.keys() == read.keys()
        assert [path for path in read if remembered[path] != read[path]] == []
        return by_memory


def _pages(stream: Stream) -> int:
    assert stream.patched
    return sum(len(pieces.numbers) for pieces in stream.patched.pieces)


@pytest.fixture
def backups(server: Cluster, tmp_path: Path) -> Backups:
    """A server with two backups behind it, so that it knows what to compare with."""
    made = Backups(server, tmp_path)
    made.take()
    made.take()
    return made


def test_only_pages_that_changed_are_read(server: Cluster, backups: Backups) -> None:
    run(server, "UPDATE rows SET few = 9 WHERE n % 2100 = 1")
    claims = backups.claims()
    assert 1 <= claims[relation(server, "rows")] <= 25
    assert 1 <= claims[relation(server, "rows_n")] <= 12
    assert all(number < PAGES / 4 for number in claims.values())
    backups.both_ways()


CHANGES = {
    "rows": ["UPDATE rows SET few = 8 WHERE n % 300 = 1", "DELETE FROM rows WHERE n % 301 = 1"],
    "longer": ["INSERT INTO rows SELECT n, 'new', 1 FROM generate_series(30000, 60000) n"],
    "shorter": ["DELETE FROM rows WHERE n > 9000", "VACUUM (FREEZE) rows"],
    "shorter and longer": [
        "DELETE FROM rows WHERE n > 9000",
        "VACUUM rows",
        "INSERT INTO rows SELECT n, 'grown again ' || n, 1 FROM generate_series(1, 40000) n",
    ],
    "emptied": ["TRUNCATE rows", "INSERT INTO rows VALUES (1, 'alone', 1)"],
    "in one go": ["BEGIN; TRUNCATE moved; INSERT INTO moved SELECT * FROM rows LIMIT 5000; COMMIT"],
    "written anew": ["VACUUM FULL rows", "CLUSTER moved USING moved_n"],
    "elsewhere": ["ALTER TABLE moved SET TABLESPACE pg_default", "UPDATE moved SET few = 3"],
    "new": [
        "CREATE TABLE fresh AS SELECT * FROM rows",
        "CREATE INDEX ON fresh USING gin (to_tsvector('simple', m))",
        "CREATE INDEX ON fresh USING brin (n)",
        "CREATE INDEX ON fresh USING hash (few)",
        "DROP TABLE moved",
    ],
    "hints": ["DELETE FROM rows WHERE n % 97 = 3", "CHECKPOINT", "SELECT count(*) FROM rows"],
    "many transactions": [
        "DO $$ BEGIN FOR i IN 1..300 LOOP PERFORM nextval('counted'); "
        "UPDATE rows SET few = i WHERE n = i * 61; COMMIT; END LOOP; END $$",
        "REINDEX TABLE rows",
    ],
    "notes without log": [
        "INSERT INTO spread SELECT point(n % 50, n) FROM generate_series(1, 2000) n",
        "DELETE FROM spread WHERE p[0] = 3",
        "VACUUM spread",
    ],
    "a copied database": [
        "CREATE DATABASE copied TEMPLATE template1 STRATEGY file_copy",
        "CREATE DATABASE logged TEMPLATE template1 STRATEGY wal_log",
    ],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_point_with_pages_left_unread_is_what_reading_all_gives(
    server: Cluster, backups: Backups, name: str
) -> None:
    run(server, "CREATE INDEX moved_n ON moved (n)")
    backups.take()
    run(server, *CHANGES[name])
    backups.both_ways()
    run(server, "UPDATE rows SET few = 5 WHERE n % 500 = 1")
    assert backups.claims()
    backups.both_ways()


def test_a_database_made_anew_from_files_is_read_as_a_whole(
    server: Cluster, backups: Backups
) -> None:
    """Its files have the names and sizes of those before, and the log tells of none of them."""
    made = "CREATE DATABASE same OID = 30000 STRATEGY file_copy TEMPLATE"
    run(server, "CREATE DATABASE one")
    run(server, "CREATE TABLE t AS SELECT generate_series(1, 9000) n", database="one")
    run(server, "CREATE DATABASE other TEMPLATE one STRATEGY file_copy")
    run(server, "UPDATE t SET n = 0 WHERE n % 500 = 1", "VACUUM FREEZE t", database="other")
    run(server, f"{made} one")
    backups.take()
    backups.take()
    run(server, "DROP DATABASE same", f"{made} other")
    backups.both_ways()


def offline(server: Cluster, backups: Backups) -> None:
    """Another content of a page, written while the server is stopped, with its checksum."""
    place = server.data_directory / relation(server, "rows").removeprefix("data/")
    server.stop()
    content = bytearray(place.read_bytes())
    page = content[5 * PAGE : 6 * PAGE]
    page[4000] ^= 1
    number = np.array([5])
    words = np.frombuffer(bytes(page), "<u4").reshape(1, -1)
    page[8:10] = int(checksums(words, number)[0]).to_bytes(2, "little")
    content[5 * PAGE : 6 * PAGE] = page
    place.write_bytes(content)
    server.start()


def restarted(server: Cluster, backups: Backups) -> None:
    server.stop()
    server.start()


def one_summary_less(server: Cluster, backups: Backups) -> None:
    run(server, "CHECKPOINT", "CREATE TABLE more AS SELECT 1 AS n", "CHECKPOINT")
    backups.claims()  # so that all there is is summarised
    newest = sorted((server.data_directory / "pg_wal" / "summaries").iterdir())[-2]
    newest.unlink()


def a_damaged_summary(server: Cluster, backups: Backups) -> None:
    backups.claims()
    newest = max((server.data_directory / "pg_wal" / "summaries").iterdir())
    newest.write_bytes(newest.read_bytes()[:-3] + b"abc")


def switched_off(server: Cluster, backups: Backups) -> None:
    run(server, "ALTER SYSTEM SET summarize_wal = off", "SELECT pg_reload_conf()")
    while ask(server, "SHOW summarize_wal") != "off":
        pass


@pytest.mark.parametrize(
    "act",
    [offline, restarted, one_summary_less, a_damaged_summary, switched_off],
)
def test_a_file_is_read_as_a_whole_where_its_pages_may_have_changed_unseen(
    server: Cluster, backups: Backups, act: Callable[[Cluster, Backups], None]
) -> None:
    run(server, "UPDATE rows SET few = 9 WHERE n % 2100 = 1")
    act(server, backups)
    assert backups.claims() == {}
    backups.both_ways()


def place_of(server: Cluster, table: str) -> Path:
    return server.data_directory / relation(server, table).removeprefix("data/")


def written(place: Path, page: int, content: bytes, at: int = 0) -> bytes:
    """Write into a page behind the server's back; what was there."""
    with place.open("r+b") as file:
        file.seek(page * PAGE + at)
        before = file.read(len(content))
        file.seek(page * PAGE + at)
        file.write(content)
    return before


def test_a_page_that_was_empty_when_it_was_read_is_read_again(
    server: Cluster, backups: Backups
) -> None:
    """As a new index may be: it is logged first and written then, and no checkpoint waits."""
    touch = "UPDATE rows SET few = 9 WHERE (ctid::text::point)[0] = 7"
    run(server, touch, "SELECT count(*) FROM rows", "CHECKPOINT")
    place = place_of(server, "rows")
    content = written(place, 7, bytes(PAGE))
    for _ in range(2):
        point = backups.take()
        assert backups.content(point)[relation(server, "rows")][7 * PAGE :][:PAGE] == bytes(PAGE)
    written(place, 7, content)
    backups.both_ways()


def test_a_damaged_page_that_claims_to_be_newer_than_the_server_is_told(
    server: Cluster, backups: Backups
) -> None:
    """As garbage does: nearly every number is a larger LSN."""
    run(server, "UPDATE rows SET few = 9 WHERE n = 4711", "SELECT count(*) FROM rows", "CHECKPOINT")
    page = int(ask(server, "SELECT (ctid::text::point)[0]::int FROM rows WHERE n = 4711"))
    written(place_of(server, "rows"), page, b"\xa5" * PAGE)
    assert [backups.take().flaws, backups.take(full_read=True).flaws] == [1, 1]


def test_many_small_tables_need_few_open_files(server: Cluster, backups: Backups) -> None:
    run(server, *(f"CREATE TABLE small{n} AS SELECT 1 AS n" for n in range(300)))
    run(server, *(f"CREATE TABLE empty{n} (n integer)" for n in range(300)))
    backups.take()
    assert len(backups.claims()) > 300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 100, hard))
    try:
        backups.take()
        backups.take(full_read=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("most", [1500, 400])
def test_pieces_of_several_pages(
    server: Cluster, backups: Backups, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A large cluster is cut into such."""
    monkeypatch.setattr("cellarer.postgres.base_readings._MOST_PAGES", most)
    backups.take(full_read=True)
    run(server, "UPDATE rows SET few = 9 WHERE n % 2100 = 1", "DELETE FROM moved WHERE n > 2000")
    run(server, "VACUUM moved")
    assert 1 <= backups.claims()[relation(server, "rows")] <= 25
    backups.both_ways()


def test_pages_are_compared_with_those_of_the_newest_point_alone(
    server: Cluster, backups: Backups
) -> None:
    """What this host remembers may be of an older one."""
    memory = backups.directory / "state" / "cluster.json"
    kept = memory.read_text()
    run(server, "UPDATE rows SET few = 6 WHERE n % 2100 = 2")
    backups.take()
    memory.write_text(kept)
    run(server, "UPDATE rows SET few = 9 WHERE n % 2100 = 1")
    assert backups.claims()
    backups.both_ways()


def test_a_torn_or_damaged_page_that_is_read_is_still_told(
    server: Cluster, backups: Backups
) -> None:
    """The page that changed is the one that is looked at, by its number in its file."""
    run(server, "UPDATE rows SET few = 9 WHERE n = 4711")
    page = int(ask(server, "SELECT (ctid::text::point)[0]::int FROM rows WHERE n = 4711"))
    run(server, "CHECKPOINT")
    place = server.data_directory / relation(server, "rows").removeprefix("data/")
    with place.open("r+b") as file:
        file.seek(page * PAGE + 5000)
        file.write(b"\x55\xaa\x55")
    each = backups.source()
    with each.capture() as streams:
        for stream in streams:
            for _ in stream.patched.pieces if stream.patched else stream.blocks:
                pass
    [flaw] = each.flaws()
    assert flaw.startswith(f"block {page} of rows in database postgres")


def test_doctor_says_whether_pages_can_be_left_unread(server: Cluster, backups: Backups) -> None:
    def told() -> list[Finding]:
        return [f for f in backups.source().examine() if f.id.endswith("pages")]

    [finding] = told()
    assert finding.level == "info"
    switched_off(server, backups)
    [finding] = told()
    assert "summarize_wal = on" in finding.hint
