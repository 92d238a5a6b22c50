"""`cellarer wal`: write-ahead log handed over, fetched, streamed, and how it stands.

`push` and `fetch` as PostgreSQL calls them do not come here: `wal/client.py` answers them before
the command line is imported. What they do with `--json` or `--help`, they do here.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cellarer.cli.frame import Session, command
from cellarer.errors import CellarerError

if TYPE_CHECKING:
    from cellarer.wal.messages import Answer

system_option = click.option(
    "--system", metavar="IDENTIFIER", default="", help="Which cluster, where it cannot be seen."
)


@click.group("wal")
def wal() -> None:
    """Hand over, fetch and stream write-ahead log; show how it stands."""


@command("push")
@click.argument("path", metavar="PATH")
@system_option
def push(session: Session, path: str, system: str) -> int:
    """Store one file of log: for `archive_command`.

    The same file again is success; another one under its name is refused.
    """
    from cellarer.wal import client

    wanted = client.request("push", "", path, system, "")
    answer = client.ask(session.config_argument, wanted)
    _raise_refusal(answer)
    session.emit({"name": Path(path).name, "stored": True}, lambda: f"{Path(path).name} is stored")
    return 0


@command("fetch")
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="PATH")
@system_option
@click.option("--spool", metavar="DIR", default="", help="Where what comes next is fetched to.")
def fetch(session: Session, name: str, path: str, system: str, spool: str) -> int:
    """Fetch one file of log to PATH: for `restore_command`.

    Exit code 1 only where it is proven absent, 200 for everything else that goes wrong.
    """
    from cellarer.wal import client
    from cellarer.wal.messages import ABSENT

    wanted = client.request("fetch", name, path, system, spool)
    answer = client.ask(session.config_argument, wanted)
    if answer.code != ABSENT:
        _raise_refusal(answer)
    found = answer.code != ABSENT
    session.emit({"name": name, "found": found}, lambda: "fetched" if found else "absent")
    return answer.code


@command("stream")
@click.argument("source", metavar="SOURCE")
@click.option("--drop-slot", is_flag=True, help="Only drop the slot: nothing is kept for us then.")
def stream(session: Session, source: str, drop_slot: bool) -> None:
    """Stream the log of a source into the vault until ended; for a service that starts it again."""
    from cellarer import bootstrap

    def tell(message: str) -> None:
        time = datetime.now(UTC)
        click.echo(f"{time:%Y-%m-%d %H:%M:%SZ} {source}: {message}", err=True)

    streamer = bootstrap.open_streamer(session.config, source, tell)
    if not drop_slot:
        streamer.run()
        return
    dropped = streamer.drop_slot()
    text = "the slot is dropped" if dropped else "there is no such slot"
    session.emit({"source": source, "dropped": dropped}, lambda: text)


@command("status")
def status(session: Session) -> int:
    """Show how far the log of each source is stored. Exit code 3 where something is wrong."""
    from cellarer import bootstrap
    from cellarer.cli.render import table
    from cellarer.domain.quantity import about_duration, about_size

    found, findings = bootstrap.wal_status(session.config)
    document = {"sources": found, "findings": findings}

    def row(name: str, each: Any) -> list[str]:
        late = each.lag_seconds
        behind = "unknown" if each.lag_bytes is None else about_size(each.lag_bytes)
        return [
            name,
            each.last_segment or "none",
            "unknown" if late is None else about_duration(late),
            behind,
            each.slot or ("unknown" if each.lag_bytes is None else "none"),
            str(len(each.gaps)),
        ]

    def text() -> str:
        columns = ["source", "last segment", "lag", "not stored", "slot", "gaps"]
        overview = table(columns, [row(*each) for each in found.items()], right={"gaps"})
        gaps = [
            f"gap in {name}: {gap.first} to {gap.last}"
            for name, each in found.items()
            for gap in each.gaps
        ]
        said = [f"{each.level}  {each.subject}: {each.message}\n       {each.hint}"
                for each in findings]  # fmt: skip
        return "\n".join([overview, *gaps, *said])

    session.emit(document, text)
    return 3 if any(finding.level == "error" for finding in findings) else 0


@click.command("agent", hidden=True)
@click.option("--idle", default=0.0, hidden=True)
@click.pass_context
def agent(context: click.Context, idle: float) -> None:
    """Serve `wal push` and `wal fetch` of this user and config; they start it by themselves."""
    from cellarer import bootstrap
    from cellarer.config import find
    from cellarer.wal.agent import IDLE_SECONDS
    from cellarer.wal.client import agent_directory

    # Clients mean a config by this very path.
    path = find(context.find_root().params.get("config")).absolute()

    def ready() -> None:
        click.echo("ready")
        # Whoever started it reads no further, and must not be kept waiting for the end of it.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)

    bootstrap.open_agent(path).serve(Path(agent_directory()), ready, idle or IDLE_SECONDS)


def _raise_refusal(answer: Answer) -> None:
    if answer.code:
        error = CellarerError(answer.message, detail=answer.detail, hint=answer.hint)
        error.kind, error.exit_code = answer.kind, answer.code
        raise error


for each in (push, fetch, stream, status, agent):
    wal.add_command(each)
