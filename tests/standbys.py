"""A server whose log is streamed into a vault, and standbys of it that `cellarer standby` keeps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.processes import kill_server, server_pid
from wal_places import Place, ask, wait_for


@dataclass
class Warm:
    """A primary, its vault, and the place of a standby."""

    place: Place
    primary: Cluster
    name: str = "warm"
    stream: subprocess.Popen[str] | None = None

    @property
    def data(self) -> Path:
        return self.place.directory / f"standby-{self.name}"

    @property
    def sockets(self) -> Path:
        return self.place.directory / f"standby-s-{self.name}"

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}&port=6543"

    @property
    def log(self) -> str:
        path = self.place.directory / f"{self.name}.log"
        return path.read_text() if path.exists() else ""

    def arguments(self, *more: str, source: str = "base") -> list[str]:
        if not self.sockets.exists():
            self.sockets.mkdir(mode=0o700)
            service_account().own(self.sockets)
        settings = ("port=6543", f"unix_socket_directories={self.sockets}", *_LIKE_LIFE)
        options = [part for each in settings for part in ("--set", each)]
        return ["standby", source, "--to", f"pgdata:{self.data}", *options, *more]

    @contextmanager
    def kept(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """`cellarer standby` while the block runs."""
        with self.place.running(f"{self.name}.log", *self.arguments(*more)) as process:
            yield process

    def status(self) -> dict[str, Any]:
        done = self.place.run(*self.arguments("--status", "--json"))
        assert done.returncode in (0, 3), done.stderr + done.stdout
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def promote(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.place.run(*self.arguments("--promote", "--json", *more))

    def ask(self, query: str) -> Any:
        """The standby's answer; None while it does not answer."""
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                row = connection.execute(query.encode()).fetchone()
        except psycopg.Error:
            return None
        return row[0] if row else None

    def wait_for_rows(self, rows: object, seconds: float = 90) -> None:
        wait_for(lambda: self.ask(ROWS) == rows, seconds)

    def end_stream(self) -> None:
        """The stream is ended, so that another server's log may be streamed."""
        assert self.stream is not None
        self.stream.terminate()
        self.stream.wait(60)

    def end(self) -> None:
        if server_pid(self.data) is not None:
            kill_server(self.data, 10)


ROWS = "SELECT md5(string_agg(id || filler, ',' ORDER BY id)) FROM t"
_LIKE_LIFE = ("wal_keep_size=0",)


def write(server: Cluster, rows: int = 100) -> Any:
    """More rows, and what all of them come to."""
    return ask(
        server,
        "SET synchronous_commit = on",  # what is flushed cannot be lost
        "CREATE TABLE IF NOT EXISTS t (id serial, filler text)",
        f"INSERT INTO t (filler) SELECT repeat('x', 200) FROM generate_series(1, {rows})",
        ROWS,
    )


def configure(place: Place, dsn: str) -> None:
    place.write_config(
        f'[sources.base]\nkind = "postgres_base"\ndsn = "{dsn}"\n'
        f'[sources.log]\nkind = "wal"\ndsn = "{dsn}"\nflush_every = "1s"\n'
        f'spool = "{place.directory}/spool"\n'
    )
