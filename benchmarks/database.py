"""Measures backup and restore of the sample product against the programs it replaces.

    .venv/bin/python benchmarks/database.py [--size 1GB] [--rounds 3] [--directory DIR]

All contenders run in turn, round after round, so that a drifting machine hits them alike; figures
are medians, ratios are taken within a round. Whole processes are measured: wall time, CPU time of
the client side (not of the server, which is the same for all) and the largest single process.
Needs `zstd`; uses `restic` where it is installed. Everything it makes is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellarer.demo import pourtrait
from cellarer.domain.quantity import about_size, parse_size
from cellarer.postgres.binaries import SERVER_PROGRAMS, installations
from cellarer.postgres.cluster import Cluster
from measuring import Measured, measure, middle

DATABASE = "pourtrait"
FLOOR = "pg_dump -Fc -Z0 | zstd -3 -T2"


@dataclass(frozen=True)
class Bench:
    """The cluster under test and the scratch directory beside it."""

    cluster: Cluster
    scratch: Path
    environment: dict[str, str]

    def dump(self, options: str) -> str:
        """The command line of a dump."""
        program = self.cluster.installation.program("pg_dump")
        return f"'{program}' {options} '{self.cluster.dsn(DATABASE)}'"

    def fresh(self, name: str) -> Path:
        """An empty directory."""
        place = self.scratch / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def cellarer(self, place: Path) -> str:
        """The program with a new vault in `place`; returns its command line."""
        config = place / "cellarer.toml"
        config.write_text(
            '[product]\nname = "bench"\n[vault]\nwrite_key = { file = "write.key" }\n'
            'identity = { file = "identity.age" }\n[[vault.replicas]]\nname = "local"\n'
            f'url = "file://{place}/vault"\n[sources.database]\nkind = "postgres_dump"\n'
            f'dsn = "{self.cluster.dsn(DATABASE)}"\n'
        )
        command = f"'{sys.executable}' -m cellarer --config '{config}'"
        subprocess.run(
            ["bash", "-c", f"{command} init --json"],
            check=True,
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )
        return command


def contenders(bench: Bench) -> dict[str, Callable[[], Measured]]:
    """First backups of the same database, each into an empty place."""

    def piped(options: str, then: str) -> Callable[[], Measured]:
        def run() -> Measured:
            place = bench.fresh("plain")
            script = f"{bench.dump(options)} {then} > '{place}/dump'"
            return measure(script, place, bench.environment)

        return run

    def with_restic() -> Measured:
        place = bench.fresh("restic")
        environment = bench.environment | restic_environment(place)
        subprocess.run(["restic", "init"], check=True, env=environment, capture_output=True)
        return measure(restic(bench), place, environment)

    def ours() -> Measured:
        place = bench.fresh("cellarer")
        return measure(f"{bench.cellarer(place)} backup", place / "vault", bench.environment)

    found = {FLOOR: piped("-Fc -Z0", "| zstd -3 -T2 -q"), "pg_dump -Fc": piped("-Fc", "")}
    if shutil.which("restic"):
        found["pg_dump -Fc -Z0 | restic"] = with_restic
    return found | {"cellarer": ours}


def restic(bench: Bench) -> str:
    """A backup with restic."""
    return f"{bench.dump('-Fc -Z0')} | restic backup --stdin --stdin-filename dump"


def restic_environment(place: Path) -> dict[str, str]:
    """Where restic keeps things."""
    return {
        "RESTIC_REPOSITORY": str(place / "repository"),
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": str(place.parent / "restic-cache"),
    }


def first_backups(bench: Bench, rounds: int) -> None:
    """The table of first backups."""
    runs: dict[str, list[Measured]] = {}
    for _ in range(rounds):
        for name, run in contenders(bench).items():
            runs.setdefault(name, []).append(run())
    floor = runs[FLOOR]
    print(f"\nFirst backup, medians of {rounds}; ratios to `{FLOOR}` within a round\n")
    print("| what | wall s | CPU s | peak MiB | stored | wall ratio | stored ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, measured in runs.items():
        wall = [m.wall_seconds / f.wall_seconds for m, f in zip(measured, floor, strict=True)]
        stored = [m.stored_bytes / f.stored_bytes for m, f in zip(measured, floor, strict=True)]
        print(
            f"| {name} | {middle([m.wall_seconds for m in measured]):.1f}"
            f" | {middle([m.cpu_seconds for m in measured]):.1f}"
            f" | {middle([m.peak_bytes for m in measured]) / 2**20:.0f}"
            f" | {about_size(middle([m.stored_bytes for m in measured]))}"
            f" | {middle(wall):.2f} | {middle(stored):.2f} |"
        )


def second_backups(bench: Bench, spread: Literal["newest", "evenly"]) -> None:
    """What a second backup adds after 1 % of the rows changed."""
    ours, theirs = bench.fresh("cellarer"), bench.fresh("restic")
    command = bench.cellarer(ours)
    first = measure(f"{command} backup", ours / "vault", bench.environment)
    environment = bench.environment | restic_environment(theirs)
    with_restic = shutil.which("restic") is not None
    if with_restic:
        subprocess.run(["restic", "init"], check=True, env=environment, capture_output=True)
        first_theirs = measure(restic(bench), theirs, environment)
    pourtrait.change(bench.cluster.dsn(DATABASE), fraction=0.01, spread=spread, seed=7)
    second = measure(f"{command} backup", ours / "vault", bench.environment)
    share = second.stored_bytes / first.stored_bytes
    print(f"| 1 % {spread} | cellarer | {second.wall_seconds:.1f} | {share:.1%} |")
    if with_restic:
        again = measure(restic(bench), theirs, environment)
        share = again.stored_bytes / first_theirs.stored_bytes
        print(f"| 1 % {spread} | restic | {again.wall_seconds:.1f} | {share:.1%} |")


def restores(bench: Bench, rounds: int) -> None:
    """From a stored backup to a database that answers."""
    place, plain = bench.fresh("cellarer"), bench.fresh("plain")
    command = bench.cellarer(place)
    measure(f"{command} backup", place / "vault", bench.environment)
    measure(f"{bench.dump('-Fc -Z0')} | zstd -3 -T2 -q > '{plain}/dump'", plain, bench.environment)
    program = bench.cluster.installation.program("pg_restore")
    admin = f"'{bench.cluster.installation.program('psql')}' -q '{bench.cluster.dsn('postgres')}'"
    recreate = f"{admin} -c 'drop database if exists again' -c 'create database again'"
    target = bench.cluster.dsn("again")
    jobs = os.cpu_count() or 1
    scripts = {
        f"zstd -d to a file, pg_restore -j{jobs}": f"zstd -dqf '{plain}/dump' -o '{plain}/open'; "
        f"'{program}' -j{jobs} -d '{target}' '{plain}/open'",
        "cellarer restore": f"{command} restore database --to '{target}'",
    }
    print("\nRestore into an empty database, medians\n\n| what | wall s | CPU s | peak MiB |")
    print("| --- | --- | --- | --- |")
    runs: dict[str, list[Measured]] = {name: [] for name in scripts}
    for _ in range(rounds):
        for name, script in scripts.items():
            subprocess.run(["bash", "-c", recreate], check=True, capture_output=True)
            runs[name].append(measure(script, plain, bench.environment))
    for name, measured in runs.items():
        print(
            f"| {name} | {middle([m.wall_seconds for m in measured]):.1f}"
            f" | {middle([m.cpu_seconds for m in measured]):.1f}"
            f" | {middle([m.peak_bytes for m in measured]) / 2**20:.0f} |"
        )


def main() -> None:
    """Make the product, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="1GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellarer-bench-", dir=arguments.directory) as name:
        place = Path(name)
        place.chmod(0o711)
        installation = max(
            (one for one in installations() if one.has(SERVER_PROGRAMS)), key=lambda one: one.major
        )
        cluster = Cluster.create(installation, place / "cluster", settings={"max_wal_size": "4GB"})
        cluster.start()
        try:
            pourtrait.make(cluster.dsn("postgres"), DATABASE, parse_size(arguments.size), None)
            bench = Bench(cluster, place, dict(os.environ))
            print(f"PostgreSQL {installation.version}, sample product of {arguments.size}")
            first_backups(bench, arguments.rounds)
            restores(bench, arguments.rounds)
            print("\nSecond backup, added in percent of the first\n")
            print("| change | what | wall s | added |\n| --- | --- | --- | --- |")
            second_backups(bench, "newest")
            second_backups(bench, "evenly")
        finally:
            cluster.remove()


if __name__ == "__main__":
    main()
