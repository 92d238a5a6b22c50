"""Measures base backups of a PostgreSQL cluster against pgBackRest, pg_basebackup and a plain copy.

    .venv/bin/python benchmarks/base.py [--data pgbench|pourtrait] [--scale 100] [--size 2GB]
                                        [--rounds 2] [--directory DIR]

PostgreSQL 15. A first backup, one after a change (1 % of the rows, scattered), a restore, and one
into a directory that has most of it already. All contenders encrypt and compress with zstd and two
processes or threads, write to the same disk, and run in turn; ratios to pgBackRest are taken within
a round. The server's own CPU time is not counted, nor is recovery. What it makes is removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from cellarer.demo import pourtrait
from cellarer.domain.quantity import about_size, parse_size
from cellarer.postgres.binaries import SERVER_PROGRAMS, installations
from cellarer.postgres.cluster import Cluster
from measuring import Measured, measure, middle

MAJOR = 15
RIVAL = "pgBackRest"
STEPS = ("full", "after a change", "restore", "delta restore")


@dataclass(frozen=True)
class Contender:
    """Shell commands: make a repository, back up, restore into an empty `$O`, and over it."""

    make: str
    first: str
    again: str
    restore: str
    delta: str = ""


@dataclass
class Bench:
    """The cluster under test, and a scratch directory beside it."""

    cluster: Cluster
    scratch: Path
    database: str
    runs: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)

    def contenders(self) -> dict[str, Contender]:
        """Everybody who is installed."""
        found = {"pg_basebackup, zstd -3": self._plain()}
        if shutil.which("pgbackrest"):
            found[RIVAL] = self._pgbackrest()
        return found | {"cellarer": self._cellarer()}

    def _plain(self) -> Contender:
        program = self.cluster.installation.program("pg_basebackup")
        dsn = self.cluster.dsn("postgres")
        backup = f"'{program}' -d '{dsn}' -c fast -D - -Ft -X fetch | zstd -3 -T2 -q -f"
        restore = f'zstd -dqc \'{self.scratch}/repository/all\' | tar -xf - -C "$O" && sync -f "$O"'
        to = f"-o '{self.scratch}/repository/all'"
        return Contender("true", f"{backup} {to}", f"{backup} {to}", restore)

    def _pgbackrest(self) -> Contender:
        settings = {
            "repo1-path": f"{self.scratch}/repository",
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": "bench",
            "compress-type": "zst",
            "compress-level": "3",
            "process-max": "2",
            "archive-check": "n",
            "start-fast": "y",
            "log-level-file": "off",
            "log-level-console": "error",
            "log-level-stderr": "off",
            **{f"{what}-path": f"{self.scratch}/rival/{what}" for what in ("log", "lock", "spool")},
        }
        cluster = {
            "pg1-path": str(self.cluster.data_directory),
            "pg1-socket-path": str(self.cluster.socket_directory),
            "pg1-port": str(self.cluster.port),
            "pg1-user": self.cluster.superuser,
        }
        config = self.scratch / "pgbackrest.conf"
        sections = {"global": settings, "bench": cluster}
        config.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
                for name, values in sections.items()
            )
        )
        run = f"pgbackrest --config='{config}' --stanza=bench"
        restore = f'{run} --pg1-path="$O" restore && sync -f "$O"'
        return Contender(
            f"{run} --no-online stanza-create",
            f"{run} --type=full backup",
            f"{run} --type=diff backup",
            restore,
            restore.replace(" restore ", " --delta restore "),
        )

    def _cellarer(self) -> Contender:
        config = self.scratch / "cellarer.toml"
        config.write_text(
            '[product]\nname = "bench"\n[vault]\nwrite_key = { file = "write.key" }\n'
            'identity = { file = "identity.age" }\n[[vault.replicas]]\nname = "local"\n'
            f'url = "file://{self.scratch}/repository"\n[sources.cluster]\nkind = "postgres_base"\n'
            f'dsn = "{self.cluster.dsn(self.database)}"\nread = "direct"\n'
        )
        run = f"'{sys.executable}' -m cellarer --config '{config}'"
        keys = f"rm -f '{self.scratch}'/*.key '{self.scratch}/identity.age'"
        restore = f'{run} restore cluster --to "pgdata:$O" --no-recover'
        return Contender(
            f"{keys}; {run} init --json",
            f"{run} backup",
            f"{run} backup",
            restore,
            f"{restore} --delta",
        )

    def round(self, change: Callable[[], None]) -> None:
        """Each step of each contender once: their first backups, the change, their second ones."""
        places: dict[str, Path] = {}
        for name, contender in self.contenders().items():
            place = fresh(self.scratch / "repository")
            shell(contender.make)
            self._take(name, "full", contender.first, place)
            places[name] = place.rename(self.scratch / f"repository of {name}")
        change()
        for name, contender in self.contenders().items():
            place = places[name].rename(self.scratch / "repository")
            self._take(name, "after a change", contender.again, place)
            out = fresh(self.scratch / "out")
            out.chmod(0o700)
            self._take(name, "restore", contender.restore, out)
            if contender.delta:
                spoil(out)
                self._take(name, "delta restore", contender.delta, out)
            shutil.rmtree(out)
            shutil.rmtree(place)

    def _take(self, name: str, step: str, script: str, place: Path) -> None:
        environment = {**os.environ, "O": str(self.scratch / "out"), "PGPASSWORD": ""}
        measured = measure(script, place, environment)
        self.runs.setdefault(step, {}).setdefault(name, []).append(measured)


def spoil(directory: Path) -> None:
    """Change one file in ten, so that a delta restore has something to do."""
    files = sorted(f for f in directory.rglob("base/*/*") if f.stat().st_size > 8192)
    for file in files[::10]:
        with file.open("r+b") as stream:
            stream.seek(4096)
            stream.write(b"spoilt")


def fresh(place: Path) -> Path:
    """An empty directory."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def shell(script: str) -> None:
    """Run it, or end."""
    subprocess.run(["bash", "-euc", script], check=True, stdout=subprocess.DEVNULL)


def report(bench: Bench) -> None:
    """A table in Markdown for each step."""
    for step in STEPS:
        runs = bench.runs.get(step, {})
        rival = runs.get(RIVAL)
        print(
            f"\n{step}\n\n| what | wall s | CPU s | peak MiB | bytes | wall ratio | bytes ratio |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, measured in runs.items():
            wall, stored = "", ""
            if rival:
                pairs = list(zip(measured, rival, strict=True))
                wall = f"{middle([m.wall_seconds / r.wall_seconds for m, r in pairs]):.2f}"
                stored = (
                    f"{middle([m.stored_bytes / max(r.stored_bytes, 1) for m, r in pairs]):.2f}"
                )
            print(
                f"| {name} | {middle([m.wall_seconds for m in measured]):.1f}"
                f" | {middle([m.cpu_seconds for m in measured]):.1f}"
                f" | {middle([m.peak_bytes for m in measured]) / 2**20:.0f}"
                f" | {about_size(middle([m.stored_bytes for m in measured]))} | {wall} | {stored} |"
            )


def main() -> None:
    """Make the data, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", choices=("pgbench", "pourtrait"), default="pourtrait")
    parser.add_argument("--scale", type=int, default=100)
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    installation = next(
        one for one in installations() if one.major == MAJOR and one.has(SERVER_PROGRAMS)
    )
    with tempfile.TemporaryDirectory(prefix="cellarer-bench-", dir=arguments.directory) as name:
        scratch = Path(name)
        scratch.chmod(0o711)
        cluster = Cluster.create(
            installation, scratch / "cluster", settings={"max_wal_size": "4GB", "autovacuum": "off"}
        )
        cluster.start()
        try:
            dsn = cluster.dsn(arguments.data)
            if arguments.data == "pgbench":
                with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
                    connection.execute("create database pgbench")
                program = installation.program("psql").with_name("pgbench")
                shell(f"'{program}' -q -i -s {arguments.scale} '{dsn}' 2>/dev/null")

                def change() -> None:
                    shell(f"'{program}' -n -c 2 -t 5000 '{dsn}'")
            else:
                size = parse_size(arguments.size)
                pourtrait.make(cluster.dsn("postgres"), "pourtrait", size, None)

                def change() -> None:
                    pourtrait.change(dsn, fraction=0.01, spread="evenly", seed=7)

            bench = Bench(cluster, scratch, arguments.data)
            for _ in range(arguments.rounds):
                bench.round(change)
            report(bench)
        finally:
            cluster.remove()


if __name__ == "__main__":
    main()
