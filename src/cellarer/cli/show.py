"""`cellarer show`: what a restore point holds."""

from __future__ import annotations

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import table
from cellarer.errors import UsageError


@command("show")
@click.argument("point")
@click.argument("path", required=False)
def show(session: Session, point: str, path: str | None) -> None:
    """Show what a restore point holds, all of it or what lies below PATH."""
    from cellarer import bootstrap
    from cellarer.domain.quantity import about_size
    from cellarer.flows.restore import open_named

    reader = open_named(bootstrap.open_vault(session.config, reading=True), point)
    below = path.rstrip("/") if path else ""
    entries = [
        entry
        for entry in reader.entries()
        if not below or entry.path == below or entry.path.startswith(below + "/")
    ]
    if not entries:
        raise UsageError(
            f"{reader.point} holds no {path}", hint=f"`cellarer show {point}` lists everything"
        )
    document = {
        "point": reader.point,
        "entries": [
            {
                "path": entry.path,
                "type": entry.kind,
                "size_bytes": entry.size_bytes,
                "mode": entry.mode,
                "mtime": entry.mtime,
                "sum": entry.sum,
            }
            for entry in entries
        ],
    }
    rows = [[entry.path, entry.kind, about_size(entry.size_bytes)] for entry in entries]
    session.emit(document, lambda: table(["path", "type", "size"], rows, right={"size"}))
