"""The commands by name; the code of each is imported only when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

import click

from cellarer.errors import UsageError


@dataclass(frozen=True)
class Registered:
    """Where a command lives, and what it does in one line."""

    module: str
    attribute: str
    summary: str


def _here(name: str, summary: str) -> Registered:
    return Registered(f"cellarer.cli.{name}", name, summary)


COMMANDS = {
    "init": _here("init", "Make the config, the keys and the vault."),
    "doctor": _here("doctor", "Check config, keys, replicas, sources and tools."),
    "backup": _here("backup", "Take one snapshot of each source."),
    "points": _here("points", "List restore points, newest first; hold and release them."),
    "show": _here("show", "Show what a restore point holds."),
    "restore": _here("restore", "Bring a restore point, or a part of it, back to life."),
    "cat": _here("cat", "Write one stream of a restore point to standard output."),
    "verify": _here("verify", "Restore points in a sandbox and prove them."),
    "retain": _here("retain", "Give up points that no rule wants; delete what nobody needs."),
    "scrub": _here("scrub", "Read what is stored, look whether it is whole, and heal it."),
    "status": _here("status", "Show the newest points, their proofs, and the replicas."),
    "sync": _here("sync", "Bring replicas that were away up to date."),
    "wal": _here("wal", "Hand over, fetch and stream write-ahead log; show how it stands."),
    "standby": _here("standby", "Keep a warm standby fed from the vault; promote it."),
    "keys": _here("keys", "Show who may read and write; let others in, replace keys."),
    "demo": _here("demo", "Tell the whole story on this machine, with a sample product."),
    "config": _here("config", "Check the config; print its schema for editors."),
    "completion": _here("completion", "Print the completion script for a shell."),
}
PLANNED = (
    *("approve", "audit", "bootstrap", "drill", "incident", "objectives", "plan"),
    *("recover", "report", "serve", "worker"),
)
"""Names that will be commands; each says so instead of being unknown."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The built commands, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        registered = COMMANDS[cmd_name]
        command = getattr(import_module(registered.module), registered.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a word about names that are planned or nearly right."""
        name = args[0]
        if name in PLANNED:
            raise UsageError(
                f"`cellarer {name}` is not built yet",
                detail=f"built are: {', '.join(COMMANDS)}",
                hint="a later version will have it; see CHANGELOG.md",
            )
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, [*COMMANDS, *PLANNED], 1)
            raise UsageError(
                f'there is no command "{name}"',
                detail=f"commands are: {', '.join(COMMANDS)}",
                hint=f"did you mean `cellarer {near[0]}`?" if near else "see `cellarer --help`",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the registry: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.summary) for name, each in COMMANDS.items()])

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Completions, from the registry: nothing is imported for it."""
        names = [
            click.shell_completion.CompletionItem(name, help=each.summary)
            for name, each in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)
