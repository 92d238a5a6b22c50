"""Memory stays the same whatever the size of a stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STREAM_BYTES = 300_000_000
PEAK_BYTES = 300_000_000
"""Packs on their way, caches and the interpreter with numpy come to about 200 MB."""

WRITE_AND_READ = """
import random, sys, tempfile
from pathlib import Path
from stand_ins import Objects, ticking
from cellarer.cli.main import limit_heaps
from cellarer.ports import Stream
from cellarer.vault.founding import make, prepare
from cellarer.vault.keys import Identity
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter

class OnDisk(Objects):
    '''Packs go to files, the rest stays.'''

    def __init__(self, directory):
        super().__init__()
        self.directory = Path(directory)

    def path(self, key):
        return self.directory / key.replace("/", "-")

    def create(self, key, data):
        if key.startswith("packs/"):
            self.path(key).write_bytes(data)
        else:
            super().create(key, data)

    def read(self, key):
        return self.path(key).read_bytes() if key.startswith("packs/") else super().read(key)

limit_heaps()
total = int(sys.argv[1])
chance = random.Random(1)
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as directory:
    replicas = ReplicaSet([Replica("a", OnDisk(directory))], 1)
    identity, now = Identity.generate(), ticking()
    made = prepare(identity, now())
    make(replicas, made)
    vault = Vault.open(replicas, made.write_key, identity)
    writer = SnapshotWriter(vault, "db", "test", now)
    pieces = (chance.randbytes(1_000_000) for _ in range(total // 1_000_000))
    writer.add(Stream("large", "test", pieces, total))
    commit = writer.commit()
    read = sum(map(len, SnapshotReader(vault, commit).read("large")))
    # getrusage would tell the peak of the parent where that is larger.
    status = Path("/proc/self/status").read_text()
    print(read, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


@pytest.mark.long
def test_a_long_stream_needs_no_more_memory(tmp_path: Path) -> None:
    tests = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_READ, str(STREAM_BYTES), str(tmp_path)],
        env={"PYTHONPATH": f"{tests}:{tests.parent / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read_bytes, peak_bytes = map(int, done.stdout.split())
    assert read_bytes == STREAM_BYTES
    assert peak_bytes < PEAK_BYTES
