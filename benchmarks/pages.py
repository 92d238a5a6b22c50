"""Measures what a base backup after a change costs where the server tells which pages it wrote.

    .venv/bin/python benchmarks/pages.py [--size 1GB] [--rounds 4] [--directory DIR]

PostgreSQL 17 or later with `summarize_wal = on`. A backup that reads only those pages, one that
reads all pages of the files that changed, and `pg_basebackup --incremental`, which leaves a chain
and compresses nothing here; each has a repository of its own, and they run in turn after each
change. Ratios are to the second within a round. What it makes is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from base import fresh, shell
from cellarer.demo import pourtrait
from cellarer.domain.quantity import about_size, parse_size
from cellarer.postgres.binaries import SERVER_PROGRAMS, installations
from cellarer.postgres.cluster import Cluster
from measuring import Measured, measure, middle

OLDEST = 17
TOLD, ALL, PLAIN = "only pages that changed", "all pages", "pg_basebackup --incremental"
CHANGES = {"1 % of the rows, scattered": 0.01, "0.03 % of the rows, scattered": 0.0003}


@dataclass
class Bench:
    """The cluster under test, and a directory for each contender."""

    cluster: Cluster
    scratch: Path
    runs: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)

    def prepare(self) -> None:
        """First backups: what lies still before the second one is known to."""
        for name in (TOLD, ALL):
            place = fresh(self.scratch / name)
            (place / "cellarer.toml").write_text(
                '[product]\nname = "bench"\n[vault]\nwrite_key = { file = "write.key" }\n'
                'identity = { file = "identity.age" }\n[[vault.replicas]]\nname = "local"\n'
                f'url = "file://{place}/repository"\n[sources.cluster]\nkind = "postgres_base"\n'
                f'dsn = "{self.cluster.dsn("postgres")}"\nread = "direct"\n'
            )
            run = self._command(name)
            shell(f"{run} init --json; {run} backup; {run} backup")
        fresh(self.scratch / PLAIN)
        shell(self._plain(0))

    def round(self, change: str, number: int) -> None:
        """A backup by each after the change."""
        for name in (TOLD, ALL, PLAIN):
            place = self.scratch / name
            script = self._plain(number) if name == PLAIN else f"{self._command(name)} backup"
            if name == ALL:
                forget_the_server(place)
            measured = measure(script, place, dict(os.environ))
            self.runs.setdefault(change, {}).setdefault(name, []).append(measured)

    def _command(self, name: str) -> str:
        place = self.scratch / name
        program = f"'{sys.executable}' -m cellarer --config '{place}/cellarer.toml'"
        return f"XDG_STATE_HOME='{place}/state' XDG_CACHE_HOME='{place}/cache' {program}"

    def _plain(self, number: int) -> str:
        program = self.cluster.installation.program("pg_basebackup")
        place = self.scratch / PLAIN
        last = f"--incremental='{place}/{number - 1}/backup_manifest'" if number else ""
        options = f"-c fast -Ft -X none {last}"
        return f"'{program}' -d '{self.cluster.dsn('postgres')}' -D '{place}/{number}' {options}"

    def report(self) -> None:
        """A table in Markdown."""
        print("| change | what | wall s | CPU s | bytes | wall ratio | CPU ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for change, runs in self.runs.items():
            for name, measured in runs.items():
                pairs = list(zip(measured, runs[ALL], strict=True))
                print(
                    f"| {change} | {name} | {middle([m.wall_seconds for m in measured]):.2f}"
                    f" | {middle([m.cpu_seconds for m in measured]):.2f}"
                    f" | {about_size(middle([m.stored_bytes for m in measured]))}"
                    f" | {middle([m.wall_seconds / r.wall_seconds for m, r in pairs]):.2f}"
                    f" | {middle([m.cpu_seconds / r.cpu_seconds for m, r in pairs]):.2f} |"
                )


def forget_the_server(place: Path) -> None:
    """What is remembered of unchanged files stays, but the pages of others are read."""
    [memory] = (place / "state").rglob("cluster.json")
    memory.write_text(json.dumps(json.loads(memory.read_text()) | {"server_started": ""}))


def main() -> None:
    """Make the data, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="1GB")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    installation = next(
        one for one in installations() if one.major >= OLDEST and one.has(SERVER_PROGRAMS)
    )
    with tempfile.TemporaryDirectory(prefix="cellarer-bench-", dir=arguments.directory) as name:
        scratch = Path(name)
        scratch.chmod(0o711)
        settings = {"max_wal_size": "4GB", "autovacuum": "off", "summarize_wal": "on"}
        cluster = Cluster.create(installation, scratch / "cluster", settings=settings)
        cluster.start()
        try:
            pourtrait.make(cluster.dsn("postgres"), "pourtrait", parse_size(arguments.size), None)
            bench = Bench(cluster, scratch)
            bench.prepare()
            number = 0
            for change, fraction in CHANGES.items():
                for _ in range(arguments.rounds):
                    number += 1
                    pourtrait.change(
                        cluster.dsn("pourtrait"), fraction=fraction, spread="evenly", seed=number
                    )
                    bench.round(change, number)
            bench.report()
            for place in (TOLD, ALL, PLAIN):
                shutil.rmtree(scratch / place)
        finally:
            cluster.remove()


if __name__ == "__main__":
    main()
