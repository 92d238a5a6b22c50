"""`cellarer standby`: a warm standby that is fed from the vault, and its promotion."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.restore import moved_tablespaces, tablespace_option
from cellarer.errors import UsageError

if TYPE_CHECKING:
    from cellarer.domain.standby import Standing


@command("standby")
@click.argument("source", metavar="SOURCE")
@click.option("--to", required=True, metavar="pgdata:PATH", help="Its data directory.")
@click.option("--promote", is_flag=True, help="Make it the primary, and see that it takes writes.")
@click.option("--yes", is_flag=True, help="Promote although the primary may live.")
@click.option("--status", is_flag=True, help="Only tell how it stands.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of its server that differs here, such as port; may be given several times.",
)
@tablespace_option
def standby(
    session: Session,
    source: str,
    to: str,
    promote: bool,
    yes: bool,
    status: bool,
    settings: tuple[str, ...],
    tablespaces: tuple[str, ...],
) -> int:
    """Keep a warm standby of SOURCE, fed from the vault, until ended; for a service.

    It is made from the newest base backup where there is none. With --status, exit code 3 where
    something is wrong.
    """
    from cellarer.bootstrap import standbys

    if yes and not promote:
        raise UsageError("--yes is for --promote", hint="leave it out")
    if status and promote:
        raise UsageError("--status and --promote exclude each other", hint="give one of them")

    def tell(message: str) -> None:
        click.echo(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ} {source}: {message}", err=True)

    opened = standbys.open_standby(
        session.config,
        source,
        to,
        moved_tablespaces(tablespaces),
        _settings(settings),
        session.progress,
        tell,
        only_look=status,
    )
    if status or promote:
        found = (
            opened.standing()
            if status
            else opened.promote(lambda: standbys.living_primaries(session.config, to), sure=yes)
        )
        session.emit(_document(found), lambda: _text(found))
        return 3 if status and found.problem else 0
    try:
        opened.keep()
    finally:
        if session.json_output and (last := opened.last) is not None:
            session.emit(_document(last), lambda: "")
    return 0


def _settings(options: tuple[str, ...]) -> dict[str, str]:
    """Settings by name. Raises `UsageError`."""
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.replace("_", "").replace(".", "").isalnum():
            raise UsageError(f"{option} is no setting", hint="write it as --set port=5433")
        found[name] = value
    return found


def _document(standing: Standing) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(standing)


def _text(standing: Standing) -> str:
    from cellarer.domain.standby import told

    runs = (
        f"running at {standing.host}, port {standing.port}" if standing.running else "not running"
    )
    if standing.role == "primary":
        return (
            f"primary on timeline {standing.timeline}, {runs}; the last transaction from the vault"
            f" is of {standing.replayed_to}"
        )
    return f"standby, {runs}: {told(standing)}"
