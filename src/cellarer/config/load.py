"""From a file to a config: found, read, judged, with every problem told at once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cellarer.config.lines import KeyPath, line_of, lines_of
from cellarer.config.models import Config
from cellarer.config.problems import Problem, problems_of, with_nearest_kinds
from cellarer.config.rules import broken_rules
from cellarer.errors import UsageError
from cellarer.places import find_config

_HINT = "`cellarer config schema` prints a JSON Schema that editors check with while you type"


def find(explicit: str | None) -> Path:
    """The config to use. Raises as `places.find_config`."""
    return Path(find_config(explicit))


def load(path: Path) -> Config:
    """The config in this file.

    Raises one `UsageError` for everything that is wrong with it: its detail has a line for each
    problem, `FILE:LINE: KEY: what is wrong`, in the order of the file.
    """
    text = _text(path)
    document, lines = _parsed(path, text)
    problems: list[Problem] = []
    config: Config | None = None
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, document)
        # A misspelt kind hides what else is wrong with its source.
        meant = with_nearest_kinds(document)
        try:
            Config.model_validate(meant)
        except ValidationError as further:
            problems += [each for each in problems_of(further, meant) if each not in problems]
    said = {problem.path for problem in problems}
    problems += [problem for problem in broken_rules(document) if problem.path not in said]
    if config is None or problems:
        raise _refused(path, _listing(path, problems, lines))
    config._path = path
    return config


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(
            "the config cannot be read",
            detail=f"{path}: {error.strerror}",
            hint="name another file with --config FILE, or make one with `cellarer init`",
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _refused(path, [f"{path}:{line}: not UTF-8 text"]) from None


def _parsed(path: Path, text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        return tomllib.loads(text), lines_of(text)
    except tomllib.TOMLDecodeError as error:
        raise _refused(path, [_syntax_problem(path, text, str(error))]) from None
    except RecursionError:
        raise _refused(path, [f"{path}: nested too deeply"]) from None
    except ValueError:
        # Only a number of thousands of digits comes here: Python refuses to convert it.
        raise _refused(path, [f"{path}: a number is too long"]) from None


def _syntax_problem(path: Path, text: str, message: str) -> str:
    """`tomllib` puts the place last, in words; the line goes where editors look for it."""
    said, _, place = message.rpartition(" (at ")
    numbers = re.fullmatch(r"line (\d+), column (\d+)\)", place)
    if numbers is None:
        line = text.rstrip("\n").count("\n") + 1
        return f"{path}:{line}: TOML syntax: {said}, at the end of the file"
    return f"{path}:{numbers[1]}: TOML syntax: {said}, at column {numbers[2]}"


def _listing(path: Path, problems: list[Problem], lines: dict[KeyPath, int]) -> list[str]:
    placed = sorted((line_of(lines, each.path), each.subject, each.message) for each in problems)
    return [
        _printable(f"{path}:{line}: {f'{subject}: ' if subject else ''}{message}")
        for line, subject, message in placed
    ]


def _printable(text: str) -> str:
    """One problem stays on one line, whatever characters the config holds."""
    return "".join(character if character.isprintable() else "�" for character in text)


def _refused(path: Path, listing: list[str]) -> UsageError:
    count = "a problem" if len(listing) == 1 else f"{len(listing)} problems"
    return UsageError(f"{path.name} has {count}", detail="\n".join(listing), hint=_HINT)
