"""How tests of commands run them: in this process, on the config of their own `place`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellarer.cli.main import run

Cli = Callable[..., tuple[int, dict[str, Any]]]


def two_replicas(directory: Path, vault: str = "") -> str:
    """A config of a vault in two directories, without sources; `vault` is more of its table."""
    replicas = "".join(
        f'[[vault.replicas]]\nname = "{name}"\nurl = "file://{directory}/{name}"\n'
        for name in ("one", "two")
    )
    return (
        '[product]\nname = "test"\n[vault]\nwrite_key = { file = "write.key" }\n'
        f'identity = {{ file = "identity.age" }}\n{vault}{replicas}'
    )


@pytest.fixture
def cellarer(place: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command with --json: its exit code and its document."""

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        code = run(["--config", str(place / "cellarer.toml"), *arguments, "--json"])
        document: dict[str, Any] = json.loads(capfd.readouterr().out)
        return code, document

    return call
