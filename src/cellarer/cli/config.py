"""`cellarer config`: checks the config, prints its schema."""

from __future__ import annotations

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.render import write_document


@click.group("config")
def config() -> None:
    """Check the config; print its schema for editors."""


@command("check")
def check(session: Session) -> None:
    """Tell every problem of the config, each with its line."""
    from cellarer.config import unbuilt

    loaded = session.config
    findings = unbuilt(loaded)
    document = {
        "config_file": loaded.path,
        "product": loaded.product.name,
        "sources": list(loaded.sources),
        "replicas": [replica.name for replica in loaded.vault.replicas],
        "findings": findings,
    }

    def text() -> str:
        sources = _counted(len(loaded.sources), "source")
        replicas = _counted(len(loaded.vault.replicas), "replica")
        lines = [f"{loaded.path} is valid: {sources}, {replicas}"]
        lines += [f"{finding.level}: {finding.subject}: {finding.message}" for finding in findings]
        return "\n".join(lines)

    session.emit(document, text)


@command("schema")
def schema(session: Session) -> None:
    """Print the JSON Schema of cellarer.toml for editors."""
    from cellarer.config import json_schema

    write_document(json_schema())


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


config.add_command(check)
config.add_command(schema)
