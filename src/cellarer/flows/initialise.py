"""Make the keys, the vault on every replica, and the config if there is none."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cellarer.errors import UsageError
from cellarer.vault.keys import Identity, read_private, write_private
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.vault import Made, Vault, refuse_existing


def initialise(
    replicas: ReplicaSet, identity_file: Path, write_key_file: Path, now: datetime
) -> Made:
    """Make a vault and write its keys (0600). An identity file that exists is used, not replaced.

    Everything that can refuse is asked first; the keys are on disk before the vault is made, so
    there is never a vault whose key is nowhere.
    """
    if write_key_file.exists():
        raise UsageError(
            f"{write_key_file} exists already",
            hint="it may belong to another vault; name another file with --write-key",
        )
    refuse_existing(replicas)
    if identity_file.exists():
        identity = Identity.from_text(read_private(identity_file))
    else:
        identity = Identity.generate()
        write_private(identity_file, identity.to_text())
    made = Vault.prepare(identity, now)
    write_private(write_key_file, made.write_key.to_text())
    Vault.make(replicas, made, identity)
    return made


def config_text(
    product: str, replicas: list[tuple[str, str]], identity_file: str, write_key_file: str
) -> str:
    """The smallest config that works, with the next step in it as a comment."""
    blocks = [
        f'[product]\nname = "{product}"\n',
        "[vault]\n"
        f'write_key = {{ file = "{write_key_file}" }}   # may add backups, cannot read them\n'
        f'identity  = {{ file = "{identity_file}" }}   # reads everything: keep a copy offline\n',
    ]
    blocks += [f'[[vault.replicas]]\nname = "{name}"\nurl  = "{url}"\n' for name, url in replicas]
    blocks.append(
        "# What to back up. The connection string holds no password: take it from a secret.\n"
        "# [sources.database]\n"
        '# kind = "postgres_dump"\n'
        '# dsn = { env = "DATABASE_URL" }\n'
        '# every = "6h"\n'
    )
    return "\n".join(blocks)
