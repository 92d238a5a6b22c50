"""What commands print: documents, tables, and the progress of long work."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from cellarer.cli import render
from cellarer.cli.progress import LineProgress
from cellarer.domain.snapshot import Proof
from cellarer.errors import SourceFailed
from cellarer.ports import phase

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@dataclass(frozen=True)
class Sample:
    name: str
    time: datetime


def test_documents_are_plain_json(capsys: pytest.CaptureFixture[str]) -> None:
    noon = datetime(2024, 5, 1, 12, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=2)))
    render.write_document(
        {
            "sample": Sample("é", noon),
            "proof": Proof.PROVEN,
            "seconds": timedelta(minutes=1),
            "paths": (Path("/a"), None, True),
            "share": float("nan"),
            "names": {"b", "a"},
        }
    )
    assert json.loads(capsys.readouterr().out) == {
        "sample": {"name": "é", "time": "2024-05-01T10:00:00.250000Z"},
        "proof": "proven",
        "seconds": 60.0,
        "paths": ["/a", None, True],
        "share": None,
        "names": ["a", "b"],
    }


def test_times_need_a_zone_and_lose_nothing() -> None:
    assert render.iso_time(datetime(2024, 5, 1, tzinfo=UTC)) == "2024-05-01T00:00:00Z"
    with pytest.raises(ValueError, match="zone"):
        render.iso_time(datetime(2024, 5, 1))  # noqa: DTZ001


def test_tables_are_aligned() -> None:
    drawn = render.table(["name", "size"], [["wines", "5 MB"], ["葡萄酒", "12 MB"]], right={"size"})
    assert drawn == "NAME     SIZE\nwines    5 MB\n葡萄酒  12 MB"


# ----------------------------------------------------------------------------------- progress


def test_lines_of_progress_come_once_a_minute() -> None:
    stream = io.StringIO()
    now = 0.0
    progress = LineProgress(stream, lambda: now)
    progress.begin("backup", 1_000_000_000)
    for _ in range(90):
        now += 2.0
        progress.advance(5_000_000)
    progress.note("a word")
    progress.end()
    assert stream.getvalue().splitlines() == [
        "backup: started, 1.00 GB",
        "backup: 150 MB of 1.00 GB (15%), 2.50 MB/s, 5 min 40 s left",
        "backup: 300 MB of 1.00 GB (30%), 2.50 MB/s, 4 min 40 s left",
        "backup: 450 MB of 1.00 GB (45%), 2.50 MB/s, 3 min 40 s left",
        "a word",
        "backup: 450 MB in 3 min, 2.50 MB/s",
    ]


def test_phases_within_phases_and_unknown_sizes() -> None:
    stream = io.StringIO()
    now = 0.0
    progress = LineProgress(stream, lambda: now)
    progress.begin("verify", None)
    progress.begin("restore", None)
    now = 60.0
    progress.advance(6_000_000)
    progress.end()
    progress.end()
    progress.end()
    progress.advance(1)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "verify: started",
        "restore: started",
        "restore: 6.00 MB, 100 kB/s",
        "restore: 6.00 MB in 1 min, 100 kB/s",
        "verify: done in 1 min",
    ]


def test_of_a_phase_that_broke_off_nothing_is_said() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, lambda: 0.0)

    def broken() -> None:
        with phase(progress, "restore", None):
            raise SourceFailed("gone")

    with phase(progress, "verify", None):
        with pytest.raises(SourceFailed):
            broken()
        progress.advance(5)
    assert stream.getvalue().splitlines() == [
        "verify: started",
        "restore: started",
        "verify: 5 B in 0.0 s",
    ]


WORKING = """
import os, sys
from types import ModuleType
from cellarer.cli.frame import command
from cellarer.cli.main import main
from cellarer.cli.registry import COMMANDS, Registered
from cellarer.errors import CellarerError
from cellarer.ports import phase
def work(session):
    with phase(session.progress, "backup [bold]x", 1000):
        session.progress.advance(400)
        session.progress.note("a [red]word")
        if "BREAK" in os.environ:
            raise CellarerError("it broke")
module = ModuleType("probe_command")
module.probe = command("probe")(work)
sys.modules["probe_command"] = module
COMMANDS["probe"] = Registered("probe_command", "probe", "")
sys.argv = ["cellarer", "probe"]
main()
"""


@pytest.mark.parametrize("whole", [True, False])
def test_a_terminal_gets_a_bar_and_its_cursor_back(whole: bool) -> None:
    terminal, stderr = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", WORKING],
            env={**ENVIRONMENT, "TERM": "xterm", **({} if whole else {"BREAK": "1"})},
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
            timeout=60,
        )
        os.close(stderr)
        said = _everything(terminal)
    finally:
        os.close(terminal)
    assert done.returncode == (0 if whole else 1)
    assert "a [red]word" in said
    assert "backup [bold]x " in said
    assert ("backup [bold]x: 400 B in" in said) == whole
    assert said.count("\x1b[?25h") == said.count("\x1b[?25l") == 1


def _everything(terminal: int) -> str:
    read = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            # How a pseudo-terminal says that its other side is closed.
            return read.decode()
        if not block:
            return read.decode()
        read += block
