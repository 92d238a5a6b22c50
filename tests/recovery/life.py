"""The life of a server that was backed up and streamed all the while, with all that happened when.

One session writes: its transactions are numbered, and end in the order of their log. So what was
committed by a moment is known exactly, from the times that the server itself kept of the commits.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cellarer.cli.main import run
from cellarer.postgres.binaries import Installation
from cellarer.postgres.cluster import Cluster, sandbox_cluster
from targets.base_points import digests, serving
from wal.test_streaming import caught_up, streaming
from wal_places import Place, ask, wait_for

_SETTINGS = {
    "wal_level": "replica",
    "max_wal_senders": "8",
    "max_replication_slots": "4",
    "fsync": "off",
    "autovacuum": "off",
    "track_commit_timestamp": "on",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "wal_keep_size": "256MB",
}


def settings_of(installation: Installation) -> dict[str, str]:
    """How a server is set up. From 17 on it can tell which pages it wrote, and is asked to."""
    told = {"summarize_wal": "on"} if installation.major >= 17 else {}
    return _SETTINGS | told


_TABLES = """
CREATE TABLE rows (id integer PRIMARY KEY, filler text NOT NULL);
CREATE TABLE state (one integer PRIMARY KEY, last integer NOT NULL);
INSERT INTO state VALUES (1, 0);
CREATE TABLE still AS SELECT n, md5(n::text) AS m FROM generate_series(1, 20000) n;
"""


@dataclass(frozen=True)
class Committed:
    """A row that was committed, by which transaction and when."""

    number: int
    xid: str
    time: datetime


@dataclass
class Life:
    """A vault, and what is known of the server that it came from.

    `points` are the base backups by the way of reading, with the `first` one, `ready` is when the
    one of those that was read directly was done, `lsn` a position behind the last one, after which
    more was written.
    """

    place: Place
    installation: Installation
    points: dict[str, str]
    ready: datetime
    committed: list[Committed]
    lsn: str

    @property
    def wishes(self) -> tuple[str, ...]:
        """A recovery from the first base backup to the position, through all the log between."""
        return ("--point", self.points["direct"], "--lsn", self.lsn)

    def by(self, moment: datetime) -> list[int]:
        """The rows that were committed by a moment."""
        return [each.number for each in self.committed if each.time <= moment]

    def instants(self, chance: random.Random, count: int) -> list[datetime]:
        """Moments after the first base backup and before the last commit: of commits, and between.

        At the last one PostgreSQL finds nothing later that would tell it that it is there.
        """
        later = [each.time for each in self.committed if each.time >= self.ready]
        found = []
        for _ in range(count):
            at = chance.randrange(later.index(later[-1]))
            between = chance.choice([0.0, 0.0, chance.random()])
            found.append(later[at] + (later[at + 1] - later[at]) * between)
        return found


def commanded(place: Place, *arguments: object) -> tuple[int, dict[str, Any]]:
    """A command in this process, with --json: its exit code and its document.

    What the host remembers is the place's own: of a vault and its copy each has its history.
    """
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patched.setenv(name, place.environment[name])
        code = run(["--config", str(place.config), *map(str, arguments), "--json"])
    return code, json.loads(said.getvalue())


def restored(place: Place, out: Path, *wishes: object) -> dict[str, Any]:
    """A restore of the cluster that has to work; its result."""
    code, document = commanded(place, "restore", "cluster", "--to", f"pgdata:{out}", *wishes)
    assert code == 0, document
    result: dict[str, Any] = document["result"]
    return result


def rows_of(dsn: str) -> tuple[list[int], int]:
    """The numbers of all rows, and the last that is told beside them."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT id FROM rows ORDER BY id").fetchall()
        (last,) = connection.execute("SELECT last FROM state").fetchone() or (None,)
    assert last is not None
    return [number for (number,) in rows], last


@contextmanager
def served(life: Life, out: Path, **settings: str) -> Iterator[str]:
    """The dsn of an ordinary server on a restored data directory."""
    with serving(life.installation, out, **settings) as dsn:
        yield dsn.replace("chief@", "postgres@", 1)


def state_of(life: Life, out: Path) -> dict[str, str]:
    """A digest of every table of a restored cluster, after every index was looked at."""
    with served(life, out) as dsn:
        check_indexes(life.installation, dsn)
        return digests(dsn)


def check_indexes(installation: Installation, dsn: str) -> None:
    """`pg_amcheck`, where the server comes with the extension."""
    offered = "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute(offered).fetchone() != (1,):
            assert installation.major == 18  # its wheel comes without extensions
            return
        connection.execute("CREATE SCHEMA looked")
        connection.execute("CREATE EXTENSION amcheck SCHEMA looked")
        heaps = "SELECT count(*) FROM pg_class c, LATERAL looked.verify_heapam(c.oid)"
        assert connection.execute(f"{heaps} WHERE c.relkind IN ('r', 't')").fetchone() == (0,)
        connection.execute(
            "SELECT looked.bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid ="
            " c.relam WHERE c.relkind = 'i' AND a.amname = 'btree'"
        )
        connection.execute("DROP SCHEMA looked CASCADE")


class Writer:
    """A session that commits numbered rows, and now and then gives one up, until it is stopped."""

    def __init__(self, dsn: str, chance: random.Random) -> None:
        self._dsn, self._chance = dsn, chance
        self._stop = threading.Event()
        self.number = 0
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write no more; what was begun is ended."""
        self._stop.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until so many more rows were committed."""
        goal = self.number + count
        wait_for(lambda: self.number >= goal)

    def _write(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stop.is_set():
                self._transaction(connection)

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        count = self._chance.choice([1, 1, 1, 7])
        given_up = self._chance.random() < 0.2
        filler = self._chance.randbytes(self._chance.choice([10, 600, 3000])).hex()
        with connection.transaction(force_rollback=given_up):
            for number in range(self.number + 1, self.number + count + 1):
                connection.execute("INSERT INTO rows VALUES (%s, %s)", [number, filler])
            with connection.transaction(force_rollback=self._chance.random() < 0.3):
                connection.execute("INSERT INTO still VALUES (0, %s)", [filler])
            last = self.number + count
            connection.execute("UPDATE state SET last = %s", [last])
        if not given_up:
            self.number = last
        # As much as a server does, not as much as it can: the log stays small.
        self._stop.wait(0.002)


@contextmanager
def lived(installation: Installation, directory: Path) -> Iterator[Life]:
    """Base backups by each way of reading, taken while rows are written and streamed.

    Of the files on the host the second one reads only what changed since the first.
    """
    place = Place(directory)
    place.write_config()
    done = place.run("init")
    assert done.returncode == 0, done.stderr
    with sandbox_cluster(installation, directory, settings=settings_of(installation)) as server:
        dsn = server.dsn("postgres")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(_TABLES)
        _configure(place, dsn, "direct")
        with streaming(place):
            life = _written(place, server)
            caught_up(place, server)
    yield life


def _written(place: Place, server: Cluster) -> Life:
    dsn, points, ready = server.dsn("postgres"), {}, {}
    writer = Writer(dsn, random.Random(1))
    for name in ("first", "direct", "replication"):
        _configure(place, dsn, "direct" if name == "first" else name)
        writer.wait_for(50)
        points[name] = place.document("backup", "cluster")["points"][0]["id"]
        ready[name] = ask(server, "SELECT clock_timestamp()")
        ask(server, "SELECT pg_switch_wal()", "CHECKPOINT")
    writer.wait_for(50)
    lsn = str(ask(server, "SELECT pg_current_wal_insert_lsn()::text"))
    writer.wait_for(50)
    writer.stop()
    return Life(place, server.installation, points, ready["direct"], _committed(server), lsn)


def _configure(place: Place, dsn: str, way: str) -> None:
    place.write_config(
        f'[sources.cluster]\nkind = "postgres_base"\ndsn = "{dsn}"\nread = "{way}"\n'
        f'[sources.log]\nkind = "wal"\ndsn = "{dsn}"\nflush_every = "1s"\n'
        f'spool = "{place.directory}/spool"\n'
    )


def _committed(server: Cluster) -> list[Committed]:
    with psycopg.connect(server.dsn("postgres")) as connection:
        rows = connection.execute(
            "SELECT id, xmin::text, pg_xact_commit_timestamp(xmin) FROM rows ORDER BY id"
        ).fetchall()
    found = [Committed(*row) for row in rows]
    assert [each.time for each in found] == sorted(each.time for each in found)
    return found


def copy_of(life: Life, directory: Path) -> Place:
    """The vault once more, to be damaged: with a config of its own, and nothing remembered."""
    for name in ("one", "two", "write.key", "identity.age"):
        source = life.place.directory / name
        if source.is_dir():
            shutil.copytree(source, directory / name)
        else:
            shutil.copy2(source, directory / name)
    copy = Place(directory)
    copy.config.write_text(
        life.place.config.read_text().replace(str(life.place.directory), str(directory))
    )
    return copy


def killed_restore(place: Place, out: Path, *wishes: object, when: Any) -> bool:
    """SIGKILL a restore once `when` holds; whether it was still at work then."""
    command = [*place.command("restore", "cluster", "--to", f"pgdata:{out}"), *map(str, wishes)]
    process = subprocess.Popen(
        command, env=place.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: process.poll() is not None or when())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL
