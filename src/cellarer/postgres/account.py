"""The account that PostgreSQL's server programs run as.

PostgreSQL refuses to run as root, so root hands them to an unprivileged account. Everyone else
runs them as themselves.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cellarer.errors import TargetFailed
from cellarer.postgres.binaries import SERVER_PROGRAMS, Installation


@dataclass(frozen=True)
class Account:
    """Who runs the server: a name for messages, and ids to change to, or None to stay."""

    name: str
    uid: int | None
    gid: int | None

    @property
    def way_in(self) -> str:
        """What to do where this account may not enter or write: a hint."""
        if self.uid is None:
            return "Choose a directory in which you may write."
        return (
            f"PostgreSQL does not run as root, so user {self.name} runs it: choose a directory"
            " all of whose parents that user may enter, such as one below /var/tmp."
        )

    def own(self, path: Path) -> None:
        """Give `path` to this account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def run(
        self, command: Sequence[str | Path], directory: Path, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in `directory` as this account, with `text` on its standard input.

        A session of its own keeps a Ctrl-C on the terminal from reaching the server before its
        owner can stop it in order. What the command says lies in the answer's `stdout`, errors
        included. Raises `TargetFailed` when the account may not run it.
        """
        try:
            return subprocess.run(
                command,
                **self._as_account(directory),
                input=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        except PermissionError as error:
            raise self._may_not(command, directory, error) from error

    def start(
        self, command: Sequence[str | Path], directory: Path, log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start `command` as `run` does; its standard input and output are pipes, errors go to
        `log`. Raises `TargetFailed` when the account may not run it.
        """
        try:
            return subprocess.Popen(
                command,
                **self._as_account(directory),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        except PermissionError as error:
            raise self._may_not(command, directory, error) from error

    def _as_account(self, directory: Path) -> dict[str, Any]:
        """How a command starts as this account, in a session of its own."""
        return {
            "cwd": directory,
            "env": _environment(directory),
            "user": self.uid,
            "group": self.gid,
            "extra_groups": None if self.uid is None else [],
            "start_new_session": True,
        }

    def _may_not(
        self, command: Sequence[str | Path], directory: Path, error: PermissionError
    ) -> TargetFailed:
        return TargetFailed(
            f"user {self.name} cannot run {Path(command[0]).name} in {directory}",
            detail=str(error),
            hint=self.way_in,
        )


def service_account() -> Account:
    """Whom to run servers as: `postgres`, or else `nobody`, when root; otherwise oneself."""
    if os.geteuid() != 0:
        return Account(str(os.geteuid()), None, None)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise TargetFailed(
        "no unprivileged user to run PostgreSQL as",
        detail="PostgreSQL does not run as root, and there is no user postgres or nobody",
        hint="Create a user named postgres, or run this as an ordinary user.",
    )


def reachable(installation: Installation, account: Account, directory: Path) -> Installation:
    """An installation whose server programs `account` can run: this one, or a copy of it.

    The wheel's programs may lie in a virtual environment below a home directory that nobody else
    may enter. They find their files by relative paths, so a copy of the tree in `directory`
    works as well (40 MB).
    """
    if account.uid is None or _runs(installation, account):
        return installation
    prefix = installation.bin_directory.parent
    package = prefix.parent
    copy = directory / package.name / prefix.name
    shutil.copytree(prefix, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    # The programs of a wheel load the libraries that lie beside its package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name, symlinks=True)
    for name in (package.name, libraries.name):
        _make_readable(directory / name)
    return Installation(copy / "bin", installation.version, installation.major)


def _runs(installation: Installation, account: Account) -> bool:
    for name in SERVER_PROGRAMS:
        try:
            answer = account.run([installation.program(name), "--version"], Path("/"))
        except TargetFailed:
            return False
        if answer.returncode != 0:
            return False
    return True


def _make_readable(tree: Path) -> None:
    """Let everyone read the copied tree, whatever the modes of the original."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runnable else 0o644)


def _environment(directory: Path) -> dict[str, str]:
    """The environment without PostgreSQL's own variables, which would steer the programs.

    Their messages are English, because errors are told apart by them.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"HOME": str(directory), "LC_ALL": "C", "TZ": "UTC"}
