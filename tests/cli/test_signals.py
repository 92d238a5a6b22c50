"""Commands that are told to end: they clean up, and wait for nothing that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cellarer.cli.main import run

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
WAITING = """
import sys, signal
from types import ModuleType
from cellarer.cli.frame import command
from cellarer.cli.main import main
from cellarer.cli.registry import COMMANDS, Registered
def wait(session):
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        print("cleaned", flush=True)
module = ModuleType("probe_command")
module.probe = command("probe")(wait)
sys.modules["probe_command"] = module
COMMANDS["probe"] = Registered("probe_command", "probe", "")
sys.argv = ["cellarer", "probe"]
main()
"""


def told_to_end(number: signal.Signals, program: str, *arguments: str) -> tuple[str, str, int]:
    """What a program says before it gets a signal, what after it, and its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        before = process.stdout.readline()
        process.send_signal(number)
        return before, process.stdout.read(), process.wait(60)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_command_clean_up(number: signal.Signals, code: int) -> None:
    assert told_to_end(number, WAITING) == ("ready\n", "cleaned\n", code)


HANGING = """
import sys, threading
from cellarer.cli import main
from cellarer.stores import local
whole = local.LocalStore.read
def read(store, key):
    if key == "rescue.py":
        print("reading", flush=True)
        threading.Event().wait()
    return whole(store, key)
local.LocalStore.read = read
main.CLEANING_UP_SECONDS = 0.1
sys.argv = ["cellarer", *sys.argv[1:]]
main.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_whose_disk_hangs(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    config = str(tmp_path / "cellarer.toml")
    assert run(["--config", config, "init", f"--replica=one={tmp_path / 'one'}"]) == 0
    before, _, ended = told_to_end(number, HANGING, "--config", config, "scrub")
    assert (before, ended) == ("reading\n", code)
