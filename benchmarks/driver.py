"""Writes files into a vault and reads them back, for benchmarks of the vault alone.

    driver.py make VAULTS            a vault on the directories below VAULTS that are named in it
    driver.py write VAULTS PATH      one snapshot of a file, or of all files of a directory
    driver.py read VAULTS OUT        the newest snapshot below a directory

VAULTS is a directory; its replicas are VAULTS/a, and VAULTS/b where that directory exists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cellarer.cli.main import limit_heaps
from cellarer.ports import Stream
from cellarer.stores import open_store
from cellarer.vault.founding import make, prepare
from cellarer.vault.keys import Identity, WriteKey
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter

BLOCK_BYTES = 1 << 20


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def replicas(vaults: Path) -> ReplicaSet:
    """The directories a and b, as far as they exist; all of them must take a snapshot."""
    names = [name for name in "ab" if (vaults / name).is_dir()]
    stores = [Replica(name, open_store(f"file://{vaults / name}", {})) for name in names]
    return ReplicaSet(stores, len(stores))


def found(vaults: Path) -> None:
    """Make the vault and leave its keys beside it."""
    identity = Identity.generate()
    made = prepare(identity, now())
    make(replicas(vaults), made)
    (vaults / "write.key").write_text(made.write_key.to_text())
    (vaults / "identity").write_text(identity.to_text())


def write(vaults: Path, path: Path) -> None:
    """One snapshot, with the write key alone."""
    key = WriteKey.from_text((vaults / "write.key").read_text())
    writer = SnapshotWriter(Vault.open(replicas(vaults), key, None), "bench", "files", now)
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                size = file.stat().st_size
                writer.add(Stream(str(file.relative_to(path.parent)), "file", blocks(file), size))
        writer.commit()
    finally:
        writer.abandon()


def blocks(file: Path) -> Iterator[bytes]:
    """A file in blocks."""
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def read(vaults: Path, out: Path) -> None:
    """Everything of the newest snapshot, for the caller to sync."""
    identity = Identity.from_text((vaults / "identity").read_text())
    vault = Vault.open(replicas(vaults), None, identity)
    reader = SnapshotReader(vault, vault.commits()[-1])
    for entry in reader.entries():
        target = out / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb", buffering=0) as file:
            for block in reader.read(entry.path):
                file.write(block)


def main() -> None:
    """Do what the arguments say."""
    limit_heaps()
    act, vaults, *rest = sys.argv[1:]
    if act == "make":
        found(Path(vaults))
    else:
        {"write": write, "read": read}[act](Path(vaults), Path(rest[0]))


if __name__ == "__main__":
    main()
