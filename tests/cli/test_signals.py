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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_command_clean_up(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "cleaned\n"
    assert process.returncode == code


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
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, "--config", config, "scrub"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(number)
        assert process.wait(60) == code
