"""Measures how fast write-ahead log is replayed out of the vault, against `cp` from a directory.

    .venv/bin/python benchmarks/wal.py [--segments 60] [--rounds 3] [--directory DIR]

PostgreSQL 15. A base backup, then so many segments of inserts and updates. A server on a copy
of the base backup that asks `cp`, from its start to its promotion, and `cellarer restore`, which
restores the base backup as well and stops in order at its end. What it makes is removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from cellarer.postgres.account import service_account
from cellarer.postgres.binaries import SERVER_PROGRAMS, installations
from cellarer.postgres.cluster import Cluster
from measuring import middle

MAJOR = 15
SEGMENT_BYTES = 16 << 20


class Bench:
    """A cluster whose log goes to a directory and to a vault, and a base backup of it."""

    def __init__(self, scratch: Path, segments: int) -> None:
        installation = next(
            one for one in installations() if one.major == MAJOR and one.has(SERVER_PROGRAMS)
        )
        self.scratch, self.installation = scratch, installation
        self.archive = scratch / "archive"
        self.archive.mkdir()
        self.archive.chmod(0o777)
        settings = {
            "archive_mode": "on",
            "archive_command": f'cp "%p" {self.archive}/%f',
            "max_wal_size": "4GB",
            "autovacuum": "off",
        }
        cluster = Cluster.create(installation, scratch / "cluster", settings=settings)
        cluster.start()
        try:
            self.config = self._make_vault(cluster)
            self._cellarer("backup")
            with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
                self._write(connection, segments)
            self.system = self._store()
        finally:
            cluster.stop()
        self.cluster = cluster
        out = scratch / "restored"
        self._cellarer("restore", "cluster", "--to", f"pgdata:{out}", "--no-recover")
        self.base = out

    def _make_vault(self, cluster: Cluster) -> Path:
        config = self.scratch / "cellarer.toml"
        config.write_text(
            '[product]\nname = "bench"\n[vault]\nwrite_key = { file = "write.key" }\n'
            'identity = { file = "identity.age" }\n[[vault.replicas]]\nname = "local"\n'
            f'url = "file://{self.scratch}/vault"\n[sources.cluster]\nkind = "postgres_base"\n'
            f'dsn = "{cluster.dsn("postgres")}"\nread = "direct"\n'
        )
        self.config = config
        self._cellarer("init", "--json")
        return config

    def _cellarer(self, *words: str) -> None:
        command = [sys.executable, "-m", "cellarer", "--config", str(self.config), *words]
        subprocess.run(command, check=True, capture_output=True)

    def _write(self, connection: psycopg.Connection[tuple[object, ...]], segments: int) -> None:
        connection.execute("CREATE TABLE t (id bigint PRIMARY KEY, note text)")
        start = _position(connection)
        while _position(connection) - start < segments * SEGMENT_BYTES:
            connection.execute(
                "INSERT INTO t SELECT coalesce((SELECT max(id) FROM t), 0) + n, md5(n::text)"
                " FROM generate_series(1, 20000) n"
            )
            connection.execute("UPDATE t SET note = md5(note) WHERE id % 50 = 7")
        row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
        while not (self.archive / str(row[0])).exists():
            time.sleep(0.1)

    def _store(self) -> str:
        from cellarer import bootstrap
        from cellarer.config import load

        names = sorted(path.name for path in self.archive.iterdir())
        first = next(path for path in sorted(self.archive.iterdir()) if len(path.name) == 24)
        system = str(int.from_bytes(first.read_bytes()[24:32], "little"))
        vault = bootstrap.open_vault(load(self.config))
        writer = bootstrap.open_log_writer(vault, system)
        for name in names:
            writer.put(name, (self.archive / name).read_bytes())
        return system

    def recover(self, restore_command: str) -> float:
        """Seconds from the start of a server on a copy of the base to its promotion."""
        data = self._copy()
        conf = data / "postgresql.auto.conf"
        lines = [line for line in conf.read_text().splitlines() if "restore_command" not in line]
        quoted = restore_command.replace("'", "''")
        conf.write_text("\n".join([*lines, f"restore_command = '{quoted}'", ""]))
        log = self.cluster.directory / "copy.log"
        place = self.cluster.socket_directory
        options = f"-c unix_socket_directories={place} -c listen_addresses= -c archive_mode=off"
        program = self.installation.program("pg_ctl")
        command: list[str | Path] = [program, "-D", data, "-o", options, "-l", log, "-t", "600"]
        began = time.monotonic()
        account = service_account()
        answer = account.run([*command, "-w", "start"], self.scratch)
        assert answer.returncode == 0, answer.stdout
        dsn = f"host={place} port=5432 user=postgres dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                time.sleep(0.02)
        seconds = time.monotonic() - began
        account.run([program, "-D", data, "-m", "immediate", "stop"], self.scratch)
        return seconds

    def restore(self) -> float:
        """Seconds that `cellarer restore` takes, base backup and recovery together."""
        shutil.rmtree(self.scratch / "copy", ignore_errors=True)
        began = time.monotonic()
        self._cellarer("restore", "cluster", "--to", f"pgdata:{self.scratch / 'copy'}")
        return time.monotonic() - began

    def _copy(self) -> Path:
        copy = self.scratch / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        subprocess.run(["cp", "-a", self.base, copy], check=True)
        return copy


def _position(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    row = connection.execute("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()
    assert row is not None
    return int(str(row[0]))


def main() -> None:
    """Make the log, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--segments", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellarer-bench-", dir=arguments.directory) as name:
        scratch = Path(name)
        scratch.chmod(0o711)
        os.environ["XDG_STATE_HOME"] = str(scratch / "state")
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        bench = Bench(scratch, arguments.segments)
        runs: dict[str, list[float]] = {"cp": [], "cellarer restore": []}
        for _ in range(arguments.rounds):
            runs["cp"].append(bench.recover(f'cp {bench.archive}/%f "%p"'))
            runs["cellarer restore"].append(bench.restore())
        segments = len([path for path in bench.archive.iterdir() if len(path.name) == 24])
        print(f"\n{segments} segments, medians of {arguments.rounds}\n")
        print("| what | seconds | ratio to cp |")
        print("| --- | --- | --- |")
        for what, seconds in runs.items():
            ratios = [one / cp for one, cp in zip(seconds, runs["cp"], strict=True)]
            print(f"| {what} | {middle(seconds):.1f} | {middle(ratios):.2f} |")
        bench.cluster.remove()


if __name__ == "__main__":
    main()
