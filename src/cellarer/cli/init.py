"""`cellarer init`: the config, the keys and the vault."""

from __future__ import annotations

from pathlib import Path

import click

from cellarer.cli.frame import Session, command
from cellarer.errors import UsageError


@command("init")
@click.option(
    "--replica", "replicas", multiple=True, metavar="NAME=URL", help="A copy of the vault; repeat."
)
@click.option("--identity", metavar="FILE", help="Where the reading key is, or will be.")
@click.option("--write-key", metavar="FILE", help="Where the writing key will be.")
@click.option("--collect-key", metavar="FILE", help="Where the collecting key will be.")
def init(
    session: Session,
    replicas: tuple[str, ...],
    identity: str | None,
    write_key: str | None,
    collect_key: str | None,
) -> None:
    """Make the config if there is none, the keys, and the vault on every replica.

    Without --replica the replicas are those of the config. A vault that exists is never touched.
    """
    from cellarer import bootstrap
    from cellarer.cli.setup import KeyFiles, prepare

    setup = prepare(session.config_argument, replicas, KeyFiles(identity, write_key, collect_key))
    files = setup.identity_file, setup.write_key_file, setup.collect_key_file
    made = bootstrap.make_vault(setup.config, *files)
    setup.keep_config()
    document = {
        "vault_id": made.vault_id,
        "config_file": setup.config.path,
        "identity_file": setup.identity_file,
        "write_key_file": setup.write_key_file,
        "collect_key_file": setup.collect_key_file,
        "recipients": made.recipients,
        "replicas": [{"name": r.name, "url": r.url} for r in setup.config.vault.replicas],
    }

    def text() -> str:
        places = "\n".join(f"  {r.name}: {r.url}" for r in setup.config.vault.replicas)
        return (
            f"made vault {made.vault_id} on\n{places}\n"
            f"reading key:    {setup.identity_file}\n"
            f"writing key:    {setup.write_key_file}\n"
            f"collecting key: {setup.collect_key_file}\n"
            f"config:         {setup.config.path}\n\n"
            f"Copy {setup.identity_file} to a safe place now: "
            "without it nobody can read a backup.\n"
            f"Next: name a source in {setup.config.path}, then `cellarer doctor`, "
            "`cellarer backup`."
        )

    session.emit(document, text)


def parse_replica(text: str) -> tuple[str, str]:
    """`NAME=URL`, a bare path standing for file://. Raises `UsageError`."""
    name, separator, url = text.partition("=")
    if not separator or not name or not url:
        raise UsageError(
            f"--replica {text} is not NAME=URL", hint="for example --replica primary=/mnt/backup"
        )
    return name, url if "://" in url else Path(url).absolute().as_uri()
