"""Measures the vault alone against restic and Borg, and against zstd on the same bytes.

    .venv/bin/python benchmarks/vault.py [--size 2GB] [--files 5000] [--rounds 3] [--directory DIR]

One stream of dump text, made of the sample product, and one tree of small files that do not
compress. All contenders encrypt and compress with zstd (level 3 where they have levels; Cellarer
has its own), write to the same disk and run in turn, round after round; ratios are taken within a
round. Needs `zstd`; uses `restic` and `borg` where they are installed. What it makes is removed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cellarer.demo import pourtrait
from cellarer.domain.quantity import about_size, parse_size
from cellarer.postgres.binaries import SERVER_PROGRAMS, installations
from cellarer.postgres.cluster import Cluster
from measuring import Measured, measure, middle

DRIVER = f"'{sys.executable}' '{Path(__file__).with_name('driver.py')}'"
FILE_BYTES = 60_000
FLOOR = "zstd -3 -T2"
ENVIRONMENT = {
    **os.environ,
    "RESTIC_PASSWORD": "bench",
    "BORG_PASSPHRASE": "bench",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
}


@dataclass(frozen=True)
class Contender:
    """Shell commands: make a store in `$R`, write `$I` to it, read it all back below `$O`."""

    make: str
    write: str
    read: str


def contenders() -> dict[str, Contender]:
    """Everybody who is installed."""
    found = {
        "cellarer": Contender(
            f'mkdir "$R/a" && {DRIVER} make "$R"',
            f'{DRIVER} write "$R" "$I"',
            f'{DRIVER} read "$R" "$O" && sync -f "$O"',
        ),
        "cellarer, two replicas": Contender(
            f'mkdir "$R/a" "$R/b" && {DRIVER} make "$R"',
            f'{DRIVER} write "$R" "$I"',
            f'{DRIVER} read "$R" "$O" && sync -f "$O"',
        ),
    }
    if shutil.which("restic"):
        cache = '--cache-dir "$R.cache"'
        found["restic"] = Contender(
            f'restic -q {cache} -r "$R" init',
            f'restic -q {cache} -r "$R" backup "$I"',
            f'restic -q {cache} -r "$R" restore latest --target "$O" && sync -f "$O"',
        )
    if shutil.which("borg"):
        found["borg"] = Contender(
            'borg init -e repokey-blake2 "$R/borg"',
            'borg create -C zstd,3 "$R/borg::$RANDOM$RANDOM" "$I"',
            'cd "$O" && borg extract "$R/borg::$(borg list --short --last 1 "$R/borg")"'
            ' && sync -f "$O"',
        )
    return found


@dataclass(frozen=True)
class Runs:
    """What one contender took in each round."""

    first: list[Measured]
    again: list[Measured]
    read: list[Measured]


def compete(scratch: Path, source: Path, rounds: int) -> tuple[list[Measured], dict[str, Runs]]:
    """The floor's runs, and of each contender the first write, one of the same, and the reading."""
    floor: list[Measured] = []
    runs: dict[str, Runs] = {}
    for _ in range(rounds):
        place = fresh(scratch / "floor")
        files = f"tar -cf - '{source}'" if source.is_dir() else f"cat '{source}'"
        floor.append(measure(f"{files} | {FLOOR} -q > '{place}/all.zst'", place, ENVIRONMENT))
        for name, contender in contenders().items():
            store, out = fresh(scratch / "store"), fresh(scratch / "out")
            environment = ENVIRONMENT | {"R": str(store), "I": str(source), "O": str(out)}
            subprocess.run(
                ["bash", "-c", contender.make], check=True, env=environment, capture_output=True
            )
            one = runs.setdefault(name, Runs([], [], []))
            one.first.append(measure(contender.write, store, environment))
            one.again.append(measure(contender.write, store, environment))
            one.read.append(measure(contender.read, out, environment))
            shutil.rmtree(f"{store}.cache", ignore_errors=True)
    for leftover in ("floor", "store", "out"):
        shutil.rmtree(scratch / leftover, ignore_errors=True)
    return floor, runs


def fresh(place: Path) -> Path:
    """An empty directory."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def report(what: str, size: int, floor: list[Measured], runs: dict[str, Runs]) -> None:
    """A table in Markdown."""
    print(f"\n{what}, medians of {len(floor)}; ratios to `{FLOOR}` within a round\n")
    print("| what | first s | ratio | CPU s | MiB | stored | again GB/s | read s | read MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {FLOOR} | {middle([f.wall_seconds for f in floor]):.1f} | 1.00"
        f" | {middle([f.cpu_seconds for f in floor]):.1f}"
        f" | {middle([f.peak_bytes for f in floor]) / 2**20:.0f}"
        f" | {about_size(middle([f.stored_bytes for f in floor]))} | | | |"
    )
    for name, run in runs.items():
        ratios = [m.wall_seconds / f.wall_seconds for m, f in zip(run.first, floor, strict=True)]
        print(
            f"| {name} | {middle([m.wall_seconds for m in run.first]):.1f} | {middle(ratios):.2f}"
            f" | {middle([m.cpu_seconds for m in run.first]):.1f}"
            f" | {middle([m.peak_bytes for m in run.first]) / 2**20:.0f}"
            f" | {about_size(middle([m.stored_bytes for m in run.first]))}"
            f" | {size / middle([m.wall_seconds for m in run.again]) / 1e9:.2f}"
            f" | {middle([m.wall_seconds for m in run.read]):.1f}"
            f" | {middle([m.peak_bytes for m in run.read]) / 2**20:.0f} |"
        )


def make_stream(scratch: Path, size_bytes: int) -> Path:
    """About so much dump text, as `pg_dump -Fc -Z0` writes it."""
    installation = max(
        (one for one in installations() if one.has(SERVER_PROGRAMS)), key=lambda one: one.major
    )
    cluster = Cluster.create(installation, scratch / "cluster", settings={"max_wal_size": "4GB"})
    cluster.start()
    try:
        pourtrait.make(cluster.dsn("postgres"), "pourtrait", size_bytes, None)
        target = scratch / "dump"
        with target.open("wb") as file:
            program = installation.program("pg_dump")
            command: list[str | Path] = [program, "-Fc", "-Z0", cluster.dsn("pourtrait")]
            subprocess.run(command, check=True, stdout=file)
    finally:
        cluster.remove()
    return target


def make_tree(scratch: Path, count: int) -> Path:
    """So many files of random bytes, a hundred to a directory."""
    chance, tree = random.Random(1), scratch / "tree"
    for number in range(count):
        directory = tree / f"{number // 100:04d}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(number)).write_bytes(chance.randbytes(FILE_BYTES))
    return tree


def disk_speed(scratch: Path, size_bytes: int) -> float:
    """Bytes per second that this disk takes in one file, synced at the end."""
    script = f"head -c {size_bytes} /dev/zero > '{scratch}/zeros' && sync '{scratch}/zeros'"
    seconds = measure(script, scratch, ENVIRONMENT).wall_seconds
    (scratch / "zeros").unlink()
    return size_bytes / seconds


def main() -> None:
    """Make the data, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellarer-bench-", dir=arguments.directory) as name:
        scratch = Path(name)
        scratch.chmod(0o711)
        stream = make_stream(scratch, parse_size(arguments.size))
        size = stream.stat().st_size
        speed = disk_speed(scratch, size)
        print(f"One file of {about_size(size)}; the disk writes {speed / 1e9:.2f} GB/s, synced")
        report("A stream of dump text", size, *compete(scratch, stream, arguments.rounds))
        stream.unlink()
        tree = make_tree(scratch, arguments.files)
        size = arguments.files * FILE_BYTES
        report(
            f"A tree of {arguments.files} files", size, *compete(scratch, tree, arguments.rounds)
        )


if __name__ == "__main__":
    main()
