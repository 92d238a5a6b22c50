"""`cellarer completion`: the script that teaches a shell the commands."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from cellarer.cli.frame import Session, command
from cellarer.cli.main import COMPLETION_VARIABLE, PROGRAM, cli


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(session: Session, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: cellarer completion bash > ~/.local/share/bash-completion/completions/cellarer
    zsh:  cellarer completion zsh > a file _cellarer in a directory of $fpath
    fish: cellarer completion fish > ~/.config/fish/completions/cellarer.fish
    """
    shell_class = get_completion_class(shell)
    assert shell_class is not None
    # Past the class's own `source`, which runs bash here to learn its version: the script may be
    # meant for another machine.
    script = ShellComplete.source(shell_class(cli, {}, PROGRAM, COMPLETION_VARIABLE))
    session.emit({"shell": shell, "script": script}, lambda: script)
