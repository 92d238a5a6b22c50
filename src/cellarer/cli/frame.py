"""What every command shares: the config, the form of its output, its progress."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from cellarer.cli.render import write, write_document

if TYPE_CHECKING:
    from cellarer.cli.progress import PhaseProgress
    from cellarer.config import Config

Parameters = ParamSpec("Parameters")


class Session:
    """One run of one command."""

    def __init__(self, context: click.Context, json_output: bool) -> None:
        self.json_output = json_output
        self.config_argument: str | None = context.find_root().params.get("config")
        self._context = context

    @cached_property
    def config_path(self) -> Path:
        """The config file to use. Raises `UsageError` where there is none."""
        from cellarer.config import find

        return find(self.config_argument)

    @cached_property
    def config(self) -> Config:
        """The config, read when it is first asked for. Raises `UsageError` with all problems."""
        from cellarer.config import load

        return load(self.config_path)

    @cached_property
    def progress(self) -> PhaseProgress:
        """Tells what long work is doing; the terminal is left tidy however the command ends."""
        from cellarer.cli.progress import progress_for

        progress = progress_for(self.json_output)
        self._context.call_on_close(progress.close)
        return progress

    def emit(self, document: Mapping[str, Any], text: Callable[[], str]) -> None:
        """The result: the document with `--json`, else the text made for people."""
        if self.json_output:
            write_document(document)
        else:
            write(text())


def command(
    name: str,
) -> Callable[[Callable[Concatenate[Session, Parameters], int | None]], click.Command]:
    """Makes a command of a function that takes a `Session` first, then its parameters.

    The function's docstring is the help. It returns its exit code, None for 0, and raises
    `CellarerError`; `cellarer.cli.main` renders that. Click's `option` and `argument` go between
    this decorator and the function.
    """

    def decorate(function: Callable[Concatenate[Session, Parameters], int | None]) -> click.Command:
        @click.option("--json", "json_output", is_flag=True, help="Print one JSON document.")
        @functools.wraps(function)
        def run(
            json_output: bool, *arguments: Parameters.args, **options: Parameters.kwargs
        ) -> int | None:
            session = Session(click.get_current_context(), json_output)
            return function(session, *arguments, **options)

        return click.command(name)(run)

    return decorate
