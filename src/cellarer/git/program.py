"""Runs `git`: never asking anybody, with secrets in its environment alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cellarer.errors import CellarerError, ToolMissing

_STALLED_SECONDS = 600
"""A transfer of which nothing comes for so long is given up: a server may count for minutes."""

_USER, _TOKEN = "CELLARER_GIT_USER", "CELLARER_GIT_TOKEN"
_HELPER = f'!f() {{ test "$1" = get && echo "username=${_USER}" && echo "password=${_TOKEN}"; }}; f'
"""What gives git the credentials, out of its environment."""

_INHERITED = re.compile(
    r"GIT_(?!SSH|ASKPASS|TRACE|EXEC_PATH|CONFIG_GLOBAL|CONFIG_SYSTEM|SSL|PROXY)"
)
"""Where this program was started by a hook of git, its variables mean another repository."""

_HINTS = (
    (r"could not read Username|Authentication failed|HTTP Basic: Access denied|error: 40[13]",
     "set token = { env = \"…\" } for the source, or give this user a credential helper of git"),
    (r"Permission denied \(publickey|Host key verification failed",
     "give this user a key that the server knows, and the server's key in ~/.ssh/known_hosts"),
    (r"dubious ownership",
     "it belongs to another user: `git config --global --add safe.directory PATH` as this user"),
    (r"not found|does not exist|does not appear to be a git repository|error: 404",
     "see whether the address is right, and whether this user may read it"),
    (r"No space left on device", "free space there"),
)  # fmt: skip
_PASSING = re.compile(
    r"Could not resolve host|Connection (?:refused|reset|timed out)|early EOF|RPC failed"
    r"|Operation too slow|Network is unreachable|error: 5\d\d|Timeout|unexpected disconnect"
)


class GitFailed(CellarerError):
    """`git` ended with an error. `detail` is what it said last."""


@dataclass(frozen=True)
class Credentials:
    """A token for repositories over HTTP, and the user that it goes with."""

    token: str
    user: str = "git"


class Git:
    """The program, told to work in a directory, with settings for each of its runs."""

    def __init__(
        self,
        directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
        secrets_for: Iterable[str] = (),
    ) -> None:
        """Servers of the addresses in `secrets_for` get the credentials. Raises `ToolMissing`."""
        if shutil.which("git") is None:
            raise ToolMissing("git is not on this host", hint="install it: apt-get install git")
        self._directory = directory
        wanted = [
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("transfer.unpackLimit", "1"),
            ("fetch.unpackLimit", "1"),
            ("http.lowSpeedLimit", "1"),
            ("http.lowSpeedTime", str(_STALLED_SECONDS)),
            ("core.hooksPath", os.devnull),
            *(settings or {}).items(),
        ]
        secrets: dict[str, str] = {}
        if credentials:
            secrets = {_USER: credentials.user, _TOKEN: credentials.token}
            # Git asks by the server that it is about to send them to, also after a redirection.
            for server in sorted({_server(each) for each in secrets_for} - {""}):
                wanted += [(f"credential.{server}.helper", each) for each in ("", _HELPER)]
        self._environment = _environment(wanted) | secrets

    def run(self, *arguments: str | Path, text: str = "") -> str:
        """What a run of it prints. Raises `GitFailed`."""
        done = self._done(arguments, text)
        if done.returncode != 0:
            raise _failure(arguments, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout.decode("utf-8", "surrogateescape")

    def says(self, *arguments: str | Path) -> bool:
        """Whether a run of it that asks something ends with yes."""
        return self._done(arguments).returncode == 0

    def _done(
        self, arguments: Sequence[str | Path], text: str = ""
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *map(str, arguments)],
            cwd=self._directory,
            env=self._environment,
            input=text.encode("utf-8", "surrogateescape"),
            capture_output=True,
            check=False,
        )


def _environment(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _INHERITED.match(name)}
    numbered = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings):
        numbered |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    ssh = "ssh -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
    return {
        "GIT_SSH_COMMAND": ssh,
        **kept,
        **numbered,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
    }


def _server(address: str) -> str:
    """The part of an address that names its server, "" where it is not reached over HTTP."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else ""


def _failure(arguments: Iterable[str | Path], status: int, said: str) -> GitFailed:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    verb = next((str(each) for each in arguments if not str(each).startswith("-")), "")
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said)), "")
    return GitFailed(
        f"`git {verb}` ended with status {status}",
        detail="\n".join(lines[-5:]),
        hint=hint,
        retryable=_PASSING.search(said) is not None,
    )
