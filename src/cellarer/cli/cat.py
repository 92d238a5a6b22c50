"""`cellarer cat`: one stream of a restore point to standard output."""

from __future__ import annotations

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import write_blocks, write_document


@command("cat")
@click.argument("point")
@click.argument("path")
@click.option("--raw", is_flag=True, help="As it is stored, tables with pg_dump's row framing.")
def cat(session: Session, point: str, path: str, raw: bool) -> None:
    """Write one stream to standard output: tables as COPY text, everything else as it is."""
    from cellarer import bootstrap
    from cellarer.flows.restore import open_named

    reader = open_named(bootstrap.open_vault(session.config, reading=True), point)
    if session.json_output:
        entry = next((e for e in reader.entries() if e.path == path), None)
        for _ in reader.read(path):
            pass
        write_document({"point": reader.point, "entry": entry})
        return
    kind = next((entry.kind for entry in reader.entries() if entry.path == path), "")
    present = None if raw else bootstrap.presentations().get(kind)
    blocks = reader.read(path)
    write_blocks(blocks if present is None else iter(present(blocks)))
