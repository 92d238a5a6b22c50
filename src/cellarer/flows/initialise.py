"""Make the keys, the vault on every replica, and the config if there is none."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cellarer.errors import UsageError
from cellarer.vault.age import Person
from cellarer.vault.founding import Made, make, prepare, refuse_existing
from cellarer.vault.keys import Identity, read_private, write_private
from cellarer.vault.replicas import ReplicaSet


def initialise(
    replicas: ReplicaSet,
    identity_file: Path,
    write_key_file: Path,
    collect_key_file: Path,
    person: Person,
    now: datetime,
) -> Made:
    """Make a vault and write its keys (0600). An identity file that exists is used, not replaced.

    Everything that can refuse is asked first; the keys are on disk before the vault is made, so
    there is never a vault whose key is nowhere.
    """
    for option, file in (("--write-key", write_key_file), ("--collect-key", collect_key_file)):
        if file.exists():
            raise UsageError(
                f"{file} exists already",
                hint=f"it may belong to another vault; name another file with {option}",
            )
    refuse_existing(replicas)
    found = identity_file.exists()
    identity = (
        Identity.from_text(read_private(identity_file), person) if found else Identity.generate()
    )
    made = prepare(identity, now)
    if not found:
        write_private(identity_file, identity.to_text())
    write_private(write_key_file, made.write_key.to_text())
    write_private(collect_key_file, made.collect_key.to_text())
    make(replicas, made)
    return made


def config_text(
    product: str,
    replicas: list[tuple[str, str]],
    identity_file: str,
    write_key_file: str,
    collect_key_file: str,
) -> str:
    """The smallest config that works, with the next step in it as a comment."""
    blocks = [
        f'[product]\nname = "{product}"\n',
        "[vault]\n"
        f'write_key   = {{ file = "{write_key_file}" }}   # may add backups, cannot read them\n'
        f'collect_key = {{ file = "{collect_key_file}" }}   # may forget and delete, cannot read\n'
        f'identity    = {{ file = "{identity_file}" }}   # reads everything: keep a copy offline\n',
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
