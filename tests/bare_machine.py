"""A machine without cellarer: a copy of a vault, `rescue.py`, its libraries, and `age`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cellarer.vault.vault import Commit
from stand_ins import Founded, Objects, found, noise

LIBRARIES = ("zstandard", "blake3", "cryptography")
BENEATH = ("cffi", "_cffi_backend", "pycparser", "typing_extensions")
"""What the libraries import themselves, in some of their versions."""

AGE_STAND_IN = """#!{python}
import sys
import pyrage
if sys.argv[1:3] != ["-d", "-i"]:
    sys.exit("age: unknown arguments")
lines = open(sys.argv[3]).read().splitlines()
secret = next(line for line in lines if line.startswith("AGE-SECRET-KEY-1"))
try:
    identity = pyrage.x25519.Identity.from_str(secret)
    sys.stdout.buffer.write(pyrage.decrypt(open(sys.argv[4], "rb").read(), [identity]))
except pyrage.DecryptError as error:
    sys.exit(f"age: error: {{error}}")
"""

START = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
try:
    import cellarer
except ImportError:
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    sys.exit("cellarer can be imported: this proves nothing")
"""


@dataclass(frozen=True)
class Machine:
    """A machine without cellarer, with a copy of a vault."""

    directory: Path
    founded: Founded
    commits: list[Commit] = field(default_factory=list)
    expected: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.directory / "out"

    def download(self) -> None:
        """Lay the objects of the vault into files, as any tool does that copies a bucket."""
        write_objects(self.directory / "vault", self.founded.stores["a"])
        identity = self.directory / "identity.txt"
        identity.write_text(self.founded.identity.to_text(), encoding="utf-8")

    def run(
        self, *arguments: str, path: str | None = None, founder: str = ""
    ) -> subprocess.CompletedProcess[str]:
        script = self.directory / "vault" / "rescue.py"
        given = [str(self.directory / "vault"), str(self.directory / "identity.txt"), *arguments]
        return run_alone(self.directory, script, given, path, founder)


def write_objects(directory: Path, store: Objects) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    for key, data in store.objects.items():
        target = directory / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def run_alone(
    directory: Path,
    script: Path,
    arguments: list[str],
    path: str | None = None,
    founder: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a script where only its libraries can be imported, and none of this environment."""
    libraries = directory / "libraries"
    if not libraries.exists():
        libraries.mkdir()
        for name in (*LIBRARIES, *BENEATH):
            link_library(libraries, name)
    bare = [sys.executable, "-I", "-S", "-c", START, str(libraries), str(script)]
    environment = {"PATH": age_path(directory) if path is None else path, "LC_ALL": "C.UTF-8"}
    if founder:
        environment["CELLARER_FOUNDER"] = founder
    return subprocess.run(
        [*bare, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def link_library(libraries: Path, name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return
    origin = Path(spec.origin)
    target = origin.parent if origin.name.startswith("__init__.") else origin
    (libraries / target.name).symlink_to(target)


def age_path(directory: Path) -> str:
    """A PATH with the real `age` if it is installed, else with one made of pyrage."""
    if shutil.which("age"):
        return os.environ["PATH"]
    stand_in = directory / "bin" / "age"
    if not stand_in.exists():
        stand_in.parent.mkdir()
        stand_in.write_text(AGE_STAND_IN.format(python=sys.executable), encoding="utf-8")
        stand_in.chmod(0o755)
    return str(stand_in.parent)


def files(directory: Path) -> dict[str, bytes]:
    found_files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found_files}


def streams() -> list[dict[str, bytes]]:
    """Three snapshots: rows and noise, a change with repeated chunks, a return to the first."""
    rows = b"".join(b"%d\tcustomer %d\n" % (n, n * n) for n in range(6_000))
    first = {"shop/data/rows": rows, "noise": noise(1, 60_000), "shop/empty": b"", "t": b"text\n"}
    block = noise(2, 30_000)
    second = {"shop/data/rows": rows[:50_000] + b"!" + rows[50_000:], "twice": block * 3}
    return [first, second, {**first, "caf\u00e9 %2F": b"\0"}]


def made_in(directory: Path) -> Machine:
    """With the vault of a few backups."""
    machine = Machine(directory, found())
    for contents in streams():
        commit = machine.founded.backup(contents)
        machine.commits.append(commit)
        machine.expected[commit.session] = contents
    machine.download()
    return machine


def damaged(machine: Machine, key: str, change: Callable[[bytes], bytes | None]) -> None:
    machine.founded.stores["a"].damage(key, change)
    machine.download()
