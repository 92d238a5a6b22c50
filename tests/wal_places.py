"""A place with a vault of two directories, the command as PostgreSQL runs it, and real servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster
from cellarer.wal.client import agent_name

ROOT = Path(__file__).parents[1]


@dataclass
class Place:
    """A directory with a config, a vault and the state of one user."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "cellarer.toml"

    @property
    def agents(self) -> Path:
        return self.directory / "state" / "cellarer" / "agent"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
        }

    def command(self, *arguments: object) -> list[str]:
        """The program's command line with these arguments."""
        config = ["--config", str(self.config)]
        return [sys.executable, "-P", "-m", "cellarer", *config, *map(str, arguments)]

    def shell(self, *arguments: object) -> str:
        """The same for a shell that has another environment, as PostgreSQL's has."""
        return f"{self.variables} {' '.join([interpreter(), *self.command(*arguments)[1:]])}"

    @property
    def variables(self) -> str:
        """What the program needs of its environment, as a shell sets it."""
        libraries = Path(psycopg.__file__).parents[1]
        places = [self._within_reach(path) for path in (ROOT / "src", libraries)]
        values = {**self.environment, "PYTHONPATH": ":".join(map(str, places))}
        needed = ("PYTHONPATH", "XDG_STATE_HOME", "XDG_CACHE_HOME")
        return " ".join(f"{name}={values[name]}" for name in needed)

    def _within_reach(self, path: Path) -> Path:
        """A directory, or links to its files where others than its owner cannot come to it."""
        if all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents)):
            return path
        within = self.directory / f"{path.name}.linked"
        if not within.exists():
            subprocess.run(["cp", "-al", path, within], check=True)
        return within

    def give_to_the_server(self) -> None:
        """Let the account that runs servers run the program here, as it does in life."""
        account = service_account()
        for name in ("state", "cache"):
            (self.directory / name).mkdir(exist_ok=True)
        for path in (*self.directory.iterdir(),):
            if not path.name.startswith(("sandbox", "standby")) and path.suffix != ".linked":
                for each in (path, *path.rglob("*")):
                    account.own(each)

    def run(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=cwd or self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @contextmanager
    def running(self, log: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """A command that runs; it is told to end, and killed if it does not."""
        with (self.directory / log).open("a") as file:
            process = subprocess.Popen(
                self.command(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                text=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()

    def document(self, *arguments: object) -> dict[str, Any]:
        """What a command says with --json."""
        done = self.run(*arguments, "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def write_config(self, sources: str = "", replicas: Mapping[str, str] | None = None) -> None:
        """A config of two directories, or of other replicas."""
        urls = replicas or {n: f"file://{self.directory}/{n}" for n in ("one", "two")}
        tables = "".join(
            f'[[vault.replicas]]\nname = "{name}"\nurl = "{url}"\n' for name, url in urls.items()
        )
        self.config.write_text(
            '[product]\nname = "test"\n[vault]\nwrite_key = { file = "write.key" }\n'
            f'identity = {{ file = "identity.age" }}\n{tables}{sources}'
        )

    def stored(self, system: str) -> set[str]:
        """The names of log on any replica: one may be late, and is a debt then."""
        places = [self.directory / replica / "wal" / system for replica in ("one", "two")]
        return {path.name for place in places for path in place.glob("*/*")}

    def end_agent(self) -> None:
        """End the agent, if one runs; what it was about to fetch ahead is not fetched then."""
        lock = self.agents / f"{agent_name(str(self.config))}.lock"
        ended = [entry for entry in Path("/proc").iterdir() if self._is_agent(entry)]
        for entry in ended:
            with suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGTERM)
        assert not lock.exists() or wait_for(lambda: unlocked(lock))
        wait_for(lambda: not any(self._is_agent(entry) for entry in ended))

    def _is_agent(self, process: Path) -> bool:
        """Whether this is an agent of ours that runs: one that has ended has no arguments left."""
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"agent" in arguments and str(self.config).encode() in arguments


def interpreter() -> str:
    """A Python of this version that the account which runs servers may run, too."""
    if service_account().uid is None:
        return sys.executable
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not Path(system).exists():
        pytest.skip("the account that runs servers has no Python of this version")
    return system


def bring_back(replica: Path) -> None:
    """Put a replica that was moved away back, with what was on its way there at that moment."""
    away = Path(f"{replica}-away")
    if replica.exists():
        shutil.copytree(replica, away, dirs_exist_ok=True)
        shutil.rmtree(replica)
    away.rename(replica)


def unlocked(lock: Path) -> bool:
    import fcntl

    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What a condition says once it holds; it must within this time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.05)
    return found


def ask(server: Cluster, *queries: str) -> Any:
    """The answer to the last of some statements."""
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        for query in queries:
            cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def system_of(server: Cluster) -> str:
    return str(ask(server, "SELECT system_identifier FROM pg_control_system()"))
