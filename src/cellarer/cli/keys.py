"""`cellarer keys`: who may read, who may write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cellarer.cli.frame import Session, command
from cellarer.ports import phase

if TYPE_CHECKING:
    from cellarer.flows.keys import KeyList
    from cellarer.vault.rekeying import Resealed

SEALING = "sealing keys anew"

new_file = click.option(
    "--to",
    "to",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the new key goes; one that an interrupted run left there is used.",
)


@click.group("keys")
def keys() -> None:
    """Show who may read and write; let others in, shut them out, replace keys."""


@command("list")
def list_command(session: Session) -> None:
    """Show recipients, writers, collectors and administrators, as the vault has them."""
    from cellarer import bootstrap
    from cellarer.flows.keys import list_keys

    found = list_keys(bootstrap.open_vault(session.config))
    configuration = found.configuration

    def text() -> str:
        groups = {
            "may read": configuration.recipients,
            "may write": [f"{name}  {public}" for name, public in configuration.writers.items()],
            "may collect": [
                f"{name}  {public}" for name, public in configuration.collectors.items()
            ],
            "may change this": [f"{a.public}  {a.recipient}" for a in configuration.admins],
            "retired": [f"{r.public}  {r.role.value} {r.id}" for r in configuration.retired],
        }
        lines = [f"epoch {configuration.epoch}, {found.sessions} sessions"]
        for title, members in groups.items():
            lines += [f"{title}:", *(f"  {member}" for member in members)] if members else []
        lines.append(f"founder, for vault.founder elsewhere:\n  {found.founder}")
        if found.behind:
            lines.append(
                f"{len(found.behind)} keys are not sealed to all recipients yet: "
                "run the last change of keys again"
            )
        return "\n".join(lines)

    session.emit({**_document(found), "resealed": 0}, text)


@command("add-recipient")
@click.argument("recipient")
def add_recipient_command(session: Session, recipient: str) -> None:
    """Let one more identity read everything: RECIPIENT is its public half, age1… or ssh-….

    What is stored is not touched; the small objects with its keys are sealed anew.
    """
    from cellarer import bootstrap
    from cellarer.flows.keys import add_recipient

    vault = bootstrap.open_vault(session.config, reading=True)
    with phase(session.progress, SEALING, None):
        done = add_recipient(vault, recipient, bootstrap.now())
    _emit(session, done, f"{recipient} can read everything now")


@command("remove-recipient")
@click.argument("recipient")
def remove_recipient_command(session: Session, recipient: str) -> None:
    """Seal all keys without RECIPIENT, and delete the envelopes that it opens.

    It reads nothing that is stored from now on. What it could read before it may have kept.
    """
    from cellarer import bootstrap
    from cellarer.flows.keys import remove_recipient

    vault = bootstrap.open_vault(session.config, reading=True)
    with phase(session.progress, SEALING, None):
        done = remove_recipient(vault, recipient, bootstrap.now())
    _emit(session, done, f"{recipient} reads nothing that is stored from now on")


@command("rotate")
@new_file
def rotate_command(session: Session, to: Path) -> None:
    """Put a new identity in the place of this host's, as recipient and as administrator."""
    from cellarer import bootstrap
    from cellarer.flows.keys import new_identity, rotate

    identity = new_identity(to, bootstrap.person(session.config))
    vault = bootstrap.open_vault(session.config, reading=True, also=identity)
    with phase(session.progress, SEALING, None):
        done = rotate(vault, identity, bootstrap.now())
    text = (
        f"{identity.recipients[0]} reads everything now, and the old identity nothing new\n"
        f"Copy {to} to a safe place, then name it as vault.identity"
    )
    _emit(session, done, text, identity_file=to)


@command("rotate-write-key")
@new_file
def rotate_write_key_command(session: Session, to: Path) -> None:
    """Make a new write key; the old one signs nothing that counts from now on.

    What it signed until now is listed in the vault and stays valid. Stop backups first: a session
    that is open meanwhile does not become a restore point.
    """
    from cellarer import bootstrap
    from cellarer.flows.keys import list_keys, rotate_write_key

    vault = bootstrap.open_vault(session.config, reading=True)
    key = rotate_write_key(vault, to, bootstrap.now())
    found = list_keys(bootstrap.open_vault(session.config, reading=True))
    document = {**_document(found), "resealed": 0, "write_key_file": to, "writer": key.writer}
    session.emit(
        document,
        lambda: (
            f"{to} writes from now on as {key.writer}; the old write key does not\n"
            "Name it as vault.write_key on the host that backs up, and change that host's "
            "credentials of the stores: the old key still reads the index"
        ),
    )


@command("split")
@click.option("--shares", required=True, type=int, metavar="N", help="How many shares to make.")
@click.option("--threshold", required=True, type=int, metavar="M", help="How many bring it back.")
@click.option(
    "--to",
    "to",
    required=True,
    metavar="DIRECTORY",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files to be printed go.",
)
def split_command(session: Session, shares: int, threshold: int, to: Path) -> None:
    """Put the identity into shares for paper, of which any M bring it back."""
    from cellarer import bootstrap
    from cellarer.flows.keys import write_shares

    vault = bootstrap.open_vault(session.config, reading=True)
    files = write_shares(vault, shares, threshold, to)
    document = {"vault_id": vault.id, "threshold": threshold, "shares": files}
    session.emit(
        document,
        lambda: (
            "\n".join(map(str, files))
            + f"\nany {threshold} of these {shares} bring the identity back\n"
            "Print each, give each to somebody else, then delete the files."
        ),
    )


@command("combine")
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
@click.option(
    "--to",
    "to",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the identity goes.",
)
def combine_command(session: Session, files: tuple[Path, ...], to: Path) -> None:
    """Bring an identity back from its shares. Needs no config and no vault."""
    from cellarer.flows.keys import combine_shares

    identity = combine_shares(files, to)
    document = {"identity_file": to, "recipients": identity.recipients}
    session.emit(document, lambda: f"{to} is the identity of {identity.recipients[0]}")


def _emit(session: Session, done: Resealed, text: str, **more: object) -> None:
    document = {
        "recipients": done.recipients,
        "sessions": done.sessions,
        "resealed": done.resealed,
        "kept": {name: {"envelopes": n, "reason": why} for name, (n, why) in done.kept.items()},
        **more,
    }
    lines = [text, f"{done.resealed} envelopes sealed anew, of {done.sessions} sessions"]
    lines += [
        f"replica {name} keeps {count} older envelopes ({why}): run this again when it lets them go"
        for name, (count, why) in done.kept.items()
    ]
    session.emit(document, lambda: "\n".join(lines))


def _document(found: KeyList) -> dict[str, Any]:
    configuration = found.configuration
    return {
        "epoch": configuration.epoch,
        "recipients": configuration.recipients,
        "writers": [{"id": i, "public": p} for i, p in configuration.writers.items()],
        "collectors": [{"id": i, "public": p} for i, p in configuration.collectors.items()],
        "admins": configuration.admins,
        "retired": configuration.retired,
        "founder": found.founder,
        "sessions": found.sessions,
        "behind": found.behind,
    }


for subcommand in (
    list_command,
    add_recipient_command,
    remove_recipient_command,
    rotate_command,
    rotate_write_key_command,
    split_command,
    combine_command,
):
    keys.add_command(subcommand)
