"""Measures a vault of many chunks and snapshots: what every command costs that reads it all.

    .venv/bin/python benchmarks/scale.py [--chunks 2000000] [--snapshots 20000] [--keep DIR]

The vault is made by `synthetic.py` in a directory. Whole processes are measured: wall time and peak
memory. `cold` is without this host's cache, `warm` with it. With --keep the vault stays in DIR and
is used again by the next run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cellarer.flows.initialise import initialise
from cellarer.stores.local import LocalStore
from cellarer.vault.age import Person
from cellarer.vault.keys import Identity
from cellarer.vault.replicas import Replica, ReplicaSet
from synthetic import BEGUN, SyntheticVault, config_text, sessions_in

SOURCES = 40
PROOFS = 2000

BACKUP = """
import sys
from pathlib import Path
from cellarer import bootstrap
from cellarer.config import load
from cellarer.ports import Stream
from cellarer.vault.writer import SnapshotWriter

vault = bootstrap.open_vault(load(Path(sys.argv[1])))
writer = SnapshotWriter(vault, "source-00", "postgres_dump", bootstrap.now)
writer.add(Stream("again", "text", [b"nothing new" * 1000], 11_000))
writer.commit()
"""


@dataclass(frozen=True)
class Measured:
    """One process."""

    wall_seconds: float
    peak_bytes: int


def made_at(place: Path, chunks: int, snapshots: int) -> None:
    """Make the vault, its keys and the config in `place`."""
    replica = place / "vault"
    replicas = ReplicaSet([Replica("local", LocalStore(replica))], 1)
    identity = place / "identity.age"
    nobody = Person(lambda question: None, lambda message: None)
    keys = place / "write.key", place / "collect.key"
    made = initialise(replicas, identity, *keys, nobody, BEGUN)
    synthetic = SyntheticVault(replica, made)
    synthetic.fill(chunks, snapshots, SOURCES)
    (signer,) = Identity.from_text(identity.read_text(), nobody).signers
    proven = sessions_in(replica)[-PROOFS * SOURCES :: SOURCES][:PROOFS]
    synthetic.prove(signer, proven, "source-00")
    (place / "cellarer.toml").write_text(config_text(replica, SOURCES))


def measure(arguments: list[str], environment: dict[str, str], good: tuple[int, ...]) -> Measured:
    """Run a process to its end."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in good:
        raise SystemExit(f"failed: {arguments}\n{errors.decode(errors='replace')[-2000:]}")
    return Measured(time.monotonic() - started, usage.ru_maxrss * 1024)


def rows(place: Path, snapshots: int) -> None:
    """The table: each command without and with what the one before it left in the cache."""
    environment = {
        "HOME": str(place),
        "PATH": os.environ["PATH"],
        "XDG_CACHE_HOME": str(place / "cache"),
        "XDG_STATE_HOME": str(place / "state"),
    }
    config = str(place / "cellarer.toml")
    program = ["-m", "cellarer", "--config", config]
    newest = sessions_in(place / "vault")[snapshots - 1]
    commands = {
        "points": [*program, "points", "--json"],
        "status": [*program, "status", "--json"],
        "show": [*program, "show", newest, "--json"],
        "backup of nothing new": ["-c", BACKUP, config],
        "retain --dry-run": [*program, "retain", "--dry-run", "--json"],
    }
    print("| what | cold s | cold peak MiB | warm s | warm peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, arguments in commands.items():
        shutil.rmtree(place / "cache", ignore_errors=True)
        cold, warm = (measure(arguments, environment, (0, 3)) for _ in range(2))
        print(
            f"| {name} | {cold.wall_seconds:.1f} | {cold.peak_bytes / 2**20:.0f}"
            f" | {warm.wall_seconds:.1f} | {warm.peak_bytes / 2**20:.0f} |",
            flush=True,
        )
    once = measure([*program, "retain", "--json"], environment, (0, 3))
    print(f"| retain, collecting | | | {once.wall_seconds:.1f} | {once.peak_bytes / 2**20:.0f} |")


def main() -> None:
    """Make the vault, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--chunks", type=int, default=2_000_000)
    parser.add_argument("--snapshots", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellarer-scale-") as name:
        place = (arguments.keep or Path(name)).absolute()
        if not (place / "cellarer.toml").exists():
            place.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            made_at(place, arguments.chunks, arguments.snapshots)
            print(f"made in {time.monotonic() - started:.0f} s\n", file=sys.stderr)
        print(f"{arguments.chunks} chunks, {arguments.snapshots} snapshots of {SOURCES} sources\n")
        rows(place, arguments.snapshots)


if __name__ == "__main__":
    main()
