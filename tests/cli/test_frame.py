"""The frame of the command line: help, names, outcomes, errors for people and for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

from cellarer import errors
from cellarer.cli.frame import Session, command
from cellarer.cli.main import run
from cellarer.cli.registry import COMMANDS, PLANNED, Registered

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "pourtrait" / "cellarer.toml"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

Probe = Callable[[Callable[[Session], int | None]], None]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Registers a function as the command `probe`."""

    def register(function: Callable[[Session], int | None]) -> None:
        module = ModuleType("probe_command")
        module.__dict__["probe"] = command("probe")(function)
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(COMMANDS, "probe", Registered("probe_command", "probe", "For tests."))

    return register


def raising(error: BaseException) -> Callable[[Session], int | None]:
    def function(session: Session) -> int | None:
        raise error

    return function


def cellarer(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cellarer", *arguments],
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# ------------------------------------------------------------------------------ help and names


def test_help_lists_what_is_built_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from cellarer.cli.main import run; code = run(['--help'])\n"
        "heavy = {'rich', 'pydantic', 'psycopg', 'obstore', 'numpy', 'cellarer.config'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr, end=''); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    listed = done.stdout.partition("Commands:")[2]
    for name, registered in COMMANDS.items():
        assert name in listed
        assert registered.summary in listed
    assert not [name for name in PLANNED if f"\n  {name} " in listed]


def test_what_wires_commands_together_imports_no_database_driver() -> None:
    """Every command pays for it, whether it has to do with PostgreSQL or not."""
    program = (
        "import sys; import cellarer.bootstrap\n"
        "heavy = {'psycopg', 'cellarer.wal.upstream', 'cellarer.wal.agent'}\n"
        "print(*sorted(heavy & set(sys.modules)), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_listed_command_is_there_and_takes_json(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    help_ = capsys.readouterr().out
    assert f"Usage: cellarer {name}" in help_
    assert "--json" in help_ or "COMMAND" in help_


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_planned_commands_say_that_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--whatever"]) == 2
    assert f"error: `cellarer {name}` is not built yet" in capsys.readouterr().err


def test_a_mistyped_command_meets_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bakup"]) == 2
    said = capsys.readouterr()
    assert 'error: there is no command "bakup"' in said.err
    assert "hint: did you mean `cellarer backup`?" in said.err
    assert said.out == ""


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cellarer, version ")


# ------------------------------------------------------------------------------------ outcomes

CASES = [
    (errors.CellarerError, 1),
    (errors.UsageError, 2),
    (errors.CheckFailed, 3),
    (errors.VaultUnreachable, 4),
    (errors.KeyUnusable, 5),
    (errors.DamagedData, 6),
]


@pytest.mark.parametrize(("error", "code"), CASES)
def test_errors_are_told_to_people(
    probe: Probe,
    capsys: pytest.CaptureFixture[str],
    error: type[errors.CellarerError],
    code: int,
) -> None:
    probe(raising(error("it broke", detail="here\nand there", hint="mend it")))
    assert run(["probe"]) == code
    said = capsys.readouterr()
    assert said.err == "error: it broke\n  here\n  and there\nhint: mend it\n"
    assert said.out == ""


@pytest.mark.parametrize(("error", "code"), CASES)
def test_errors_are_told_to_scripts(
    probe: Probe,
    capsys: pytest.CaptureFixture[str],
    error: type[errors.CellarerError],
    code: int,
) -> None:
    probe(raising(error("it broke", detail="here", hint="mend it", retryable=True)))
    assert run(["probe", "--json"]) == code
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out) == {
        "error": {
            "kind": error.kind,
            "message": "it broke",
            "detail": "here",
            "hint": "mend it",
            "retryable": True,
        }
    }


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (0, 0), (3, 3), (7, 7)])
def test_a_command_names_its_exit_code(probe: Probe, outcome: int | None, code: int) -> None:
    probe(lambda session: outcome)
    assert run(["probe"]) == code


@pytest.mark.parametrize(
    "arguments", [["config", "check", "--nope"], ["config", "chek"], ["--nope"]]
)
def test_wrong_usage_is_told_in_both_forms(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: No such ")
    assert "hint: see `cellarer" in said.err
    assert run([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "usage"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), EOFError(), click.Abort()])
def test_an_interruption_ends_with_130(
    probe: Probe, capsys: pytest.CaptureFixture[str], interruption: BaseException
) -> None:
    probe(raising(interruption))
    assert run(["probe"]) == 130
    assert "error: interrupted" in capsys.readouterr().err
    assert run(["probe", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "interrupted"


def test_our_own_mistakes_show_no_traceback_and_no_secret(
    probe: Probe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CELLARER_DEBUG", raising=False)
    probe(raising(RuntimeError("password=hunter2")))
    assert run(["probe"]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError at " in said
    assert "hint: run it again with CELLARER_DEBUG=1" in said
    assert "Traceback" not in said
    assert "hunter2" not in said
    monkeypatch.setenv("CELLARER_DEBUG", "1")
    assert run(["probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_operating_systems_refusal_is_passed_on(
    probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(raising(OSError(28, "No space left on device", "/srv/vault")))
    assert run(["probe"]) == 1
    assert "No space left on device: '/srv/vault'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["config", "schema"], ["--version"], ["completion", "fish"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cellarer", *arguments],
            env=ENVIRONMENT,
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_another_programs_broken_pipe_is_an_error(
    probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(raising(BrokenPipeError(32, "Broken pipe")))
    assert run(["probe"]) == 1
    assert "Broken pipe" in capsys.readouterr().err


# ---------------------------------------------------------------------- config and completion


def test_config_check_tells_every_problem_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    broken = ROOT / "tests" / "golden" / "config" / "broken.toml"
    assert run(["--config", str(broken), "config", "check"]) == 2
    assert capsys.readouterr().err.count(f"  {broken}:") == 43
    assert run(["--config", str(broken), "config", "check", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["detail"].count("\n") == 42
    assert said.err == ""


def test_config_check_passes_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", str(EXAMPLE), "config", "check"]) == 0
    assert "is valid: 8 sources, 2 replicas" in capsys.readouterr().out
    assert run(["--config", str(EXAMPLE), "config", "check", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["replicas"] == ["primary", "secondary"]
    assert {"id", "level", "subject", "message", "hint"} == set(document["findings"][0])


def test_the_config_is_not_read_where_it_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLARER_CONFIG", raising=False)
    assert run(["config", "schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "cellarer.toml"
    assert run(["config", "check"]) == 2
    assert "error: there is no config" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_CELLARER_COMPLETE" in capsys.readouterr().out
    assert run(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shell"] == shell


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("cellarer ba", ["backup"]),
        ("cellarer config s", ["schema"]),
        ("cellarer --con", ["--config"]),
    ],
)
def test_words_are_completed(words: str, completed: list[str]) -> None:
    variables = {
        "_CELLARER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = cellarer(**variables)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == completed


def test_a_script_gets_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str], probe: Probe
) -> None:
    def work(session: Session) -> None:
        session.progress.begin("backup", None)
        session.progress.end()
        session.emit({"done": True}, lambda: "done")

    probe(work)
    assert run(["probe", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"done": True}
    assert said.err.startswith("backup: started\nbackup: done in ")
    assert run(["probe"]) == 0
    assert capsys.readouterr().out == "done\n"
