"""The break-glass reader, alone: no cellarer, its three libraries, and the `age` program."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cellarer.domain.snapshot import Entry
from cellarer.vault import crypto, rescue, writer
from cellarer.vault import format as layout
from cellarer.vault.keys import Identity
from cellarer.vault.manifest import contents_lines
from cellarer.vault.vault import Commit
from stand_ins import Founded, Objects, flip, found, noise

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vault"
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

    def run(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        script = self.directory / "vault" / "rescue.py"
        given = [str(self.directory / "vault"), str(self.directory / "identity.txt"), *arguments]
        return run_alone(self.directory, script, given, path)


def write_objects(directory: Path, store: Objects) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    for key, data in store.objects.items():
        target = directory / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def run_alone(
    directory: Path, script: Path, arguments: list[str], path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script where only its libraries can be imported, and none of this environment."""
    libraries = directory / "libraries"
    if not libraries.exists():
        libraries.mkdir()
        for name in (*LIBRARIES, *BENEATH):
            link_library(libraries, name)
    bare = [sys.executable, "-I", "-S", "-c", START, str(libraries), str(script)]
    environment = {"PATH": age_path(directory) if path is None else path, "LC_ALL": "C.UTF-8"}
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


@pytest.fixture
def machine(tmp_path: Path, small_packs: None) -> Machine:
    machine = Machine(tmp_path, found())
    for contents in streams():
        commit = machine.founded.backup(contents)
        machine.commits.append(commit)
        machine.expected[commit.session] = contents
    machine.download()
    return machine


def test_lists_the_points(machine: Machine) -> None:
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(machine.expected)
    assert [line[2:] for line in lines] == [
        ["db", "test", str(len(contents)), str(sum(map(len, contents.values())))]
        for contents in machine.expected.values()
    ]


def test_writes_every_point_byte_for_byte(machine: Machine) -> None:
    packs = [key for key in machine.founded.stores["a"].objects if key.startswith("packs/")]
    assert len(packs) > 3, "the test wants records in several packs"
    for session, contents in machine.expected.items():
        done = machine.run(session, str(machine.out / session))
        assert (done.returncode, done.stderr) == (0, "")
        assert files(machine.out / session) == contents


def test_reads_the_golden_vault(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["points"]
    script = Path(rescue.__file__)
    given = [str(GOLDEN / "replica"), str(GOLDEN / "identity.txt")]
    listed = run_alone(tmp_path, script, given).stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == [point["session"] for point in expected]
    for point in expected:
        out = tmp_path / point["session"]
        assert run_alone(tmp_path, script, [*given, point["session"], str(out)]).returncode == 0
        written = files(out).items()
        found_sums = {p: [len(data), hashlib.sha256(data).hexdigest()] for p, data in written}
        assert found_sums == point["streams"]


# ----------------------------------------------------------------------------------------- damage


def damaged(machine: Machine, key: str, change: Callable[[bytes], bytes | None]) -> None:
    machine.founded.stores["a"].damage(key, change)
    machine.download()


def middle(machine: Machine, key: str) -> Callable[[bytes], bytes]:
    return flip(len(machine.founded.stores["a"].objects[key]) // 2 * 8)


def test_flipped_bit_spoils_only_the_streams_it_is_in(machine: Machine) -> None:
    session, contents = next(iter(machine.expected.items()))
    packs = [key for key in machine.founded.stores["a"].objects if key.startswith("packs/")]
    damaged(machine, packs[0], flip(100 * 8))
    done = machine.run(session, str(machine.out))
    assert done.returncode == 1
    assert "does not authenticate" in done.stderr
    written = files(machine.out)
    assert 0 < len(written) < len(contents)
    assert written == {path: contents[path] for path in written}
    assert all(f"error: {path!r}" in done.stderr for path in contents.keys() - written.keys())


@pytest.mark.parametrize("kind", ["config", "keys", "sessions", "snapshots", "meta"])
def test_flipped_bit_anywhere_is_seen(machine: Machine, kind: str) -> None:
    commit = machine.commits[0]
    key = {
        "config": layout.config_key(0),
        "keys": layout.envelope_key(commit.session),
        "sessions": layout.session_key(commit.session),
        "snapshots": layout.snapshot_key(commit.session),
        "meta": commit.body["references"],
    }[kind]
    damaged(machine, key, middle(machine, key))
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not machine.out.exists() or files(machine.out) == {}


def test_damaged_register_hides_no_other_point(machine: Machine) -> None:
    key = layout.snapshot_key(machine.commits[0].session)
    damaged(machine, key, middle(machine, key))
    done = machine.run()
    assert done.returncode == 1
    assert key in done.stderr
    listed = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert listed == list(machine.expected)[1:]


def test_sum_that_differs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is whole, and yet the stream is not what its source gave."""

    def lies(entries: Iterable[Entry]) -> Iterator[bytes]:
        return contents_lines(
            replace(e, sha256="0" * 64) if e.path == "bad" else e for e in entries
        )

    monkeypatch.setattr(writer, "contents_lines", lies)
    commit = machine.founded.backup({"good": b"good", "bad": b"bad"})
    machine.download()
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
    assert files(machine.out) == {"good": b"good"}


def test_missing_pack(machine: Machine) -> None:
    key = next(k for k in machine.founded.stores["a"].objects if k.startswith("packs/"))
    damaged(machine, key, lambda data: None)
    done = machine.run(machine.commits[0].session, str(machine.out))
    assert done.returncode == 1
    assert key in done.stderr


# ----------------------------------------------------------------------------------------- deceit


def test_references_of_another_point_are_refused(machine: Machine) -> None:
    """They open, and what they name is whole; but they are not what the register signed."""
    one, other = (commit.body["references"] for commit in machine.commits[:2])
    damaged(machine, one, lambda data: machine.founded.stores["a"].objects[other])
    done = machine.run(machine.commits[0].session, str(machine.out))
    assert done.returncode == 1
    assert "not those of the point" in done.stderr


def test_session_key_that_was_not_announced_is_refused(machine: Machine) -> None:
    session = machine.commits[0].session
    vault = machine.founded.open()
    forged = {"root": "00" * 32, "session": session, "vault": vault.id}
    sealed = crypto.seal_to_recipients(layout.canonical_json(forged), vault.recipients)
    damaged(machine, layout.envelope_key(session), lambda data: sealed)
    done = machine.run(session, str(machine.out))
    assert done.returncode == 1
    assert "not the one it announced" in done.stderr


def test_configuration_of_another_founder_is_refused(machine: Machine) -> None:
    body = json.loads(machine.founded.stores["a"].objects[layout.config_key(0)])["body"]
    forged = Identity.generate().admin.sign("config", body)
    damaged(machine, layout.config_key(0), lambda data: forged)
    done = machine.run()
    assert done.returncode == 1
    assert "not trusted" in done.stderr


@pytest.mark.parametrize("path", ["../evil", "a/../../evil", "/evil", "a//evil", "a/./evil", ".."])
def test_no_stream_leaves_the_directory(machine: Machine, path: str) -> None:
    commit = machine.founded.backup({path: b"evil", "good": b"good"})
    machine.download()
    done = machine.run(commit.session, str(machine.out))
    assert done.returncode == 1
    assert "not safe" in done.stderr
    assert files(machine.out) == {"good": b"good"}
    assert list(machine.directory.rglob("evil")) == []


# ---------------------------------------------------------------------------------- other mistakes


def test_aborted_session_is_no_point(machine: Machine) -> None:
    session = layout.new_session(datetime(2026, 5, 1, tzinfo=UTC))
    key = machine.founded.write_key
    body: dict[str, object] = {
        "outcome": "abort", "session": session, "vault": key.vault, "writer": key.writer,
    }  # fmt: skip
    data = key.signer.sign("snapshot", body)
    machine.founded.stores["a"].create(layout.snapshot_key(session), data)
    machine.download()
    assert session not in machine.run().stdout
    done = machine.run(session, str(machine.out))
    assert done.returncode == 1
    assert "aborted" in done.stderr


def test_another_identity(machine: Machine) -> None:
    text = Identity.generate().to_text()
    (machine.directory / "identity.txt").write_text(text, encoding="utf-8")
    done = machine.run()
    assert done.returncode == 1
    assert "age does not open keys/vault.0.age" in done.stderr


def test_without_age(machine: Machine) -> None:
    done = machine.run(path=str(machine.directory))
    assert done.returncode == 1
    assert "install" in done.stderr


def test_never_writes_into_what_is_there(machine: Machine) -> None:
    machine.out.mkdir()
    done = machine.run(machine.commits[0].session, str(machine.out))
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert files(machine.out) == {}


def test_wrong_arguments_show_the_usage(machine: Machine) -> None:
    done = machine.run("only-a-point")
    assert done.returncode == 2
    assert "python rescue.py VAULT IDENTITY POINT OUT" in done.stderr


# -------------------------------------------------------------------------------- what is promised


def test_every_vault_holds_it(machine: Machine) -> None:
    shipped = machine.founded.stores["a"].objects[layout.RESCUE_KEY]
    assert shipped == Path(rescue.__file__).read_bytes()


def test_needs_only_what_it_says() -> None:
    source = Path(rescue.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
        )
    }
    assert imported <= set(sys.stdlib_module_names) | set(LIBRARIES)
