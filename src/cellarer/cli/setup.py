"""What `init` decides before anything is made: which config, which keys, which replicas."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cellarer.cli.init import parse_replica
from cellarer.config import Config, SecretReference, load
from cellarer.errors import UsageError
from cellarer.flows.initialise import config_text
from cellarer.places import CONFIG_HERE, CONFIG_VARIABLE

IDENTITY_FILE = "identity.age"
WRITE_KEY_FILE = "write.key"
COLLECT_KEY_FILE = "collect.key"


@dataclass(frozen=True)
class KeyFiles:
    """The files that the command line names for the keys, None where it names none."""

    identity: str | None
    write_key: str | None
    collect_key: str | None


@dataclass(frozen=True)
class Setup:
    """A config that is read or about to be written, and the files of the keys."""

    config: Config
    identity_file: Path
    write_key_file: Path
    collect_key_file: Path
    new_text: str | None

    def keep_config(self) -> None:
        """Write the config, if it is a new one: whole or not at all, never over another."""
        if self.new_text is None:
            return
        path = self.config.path
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(self.new_text)
            file.flush()
            os.fsync(file.fileno())
        try:
            Path(file.name).chmod(0o644)
            path.hardlink_to(file.name)
        except FileExistsError:
            raise UsageError(f"{path} appeared just now", hint="look at it, then go on") from None
        finally:
            Path(file.name).unlink()


def prepare(explicit: str | None, replicas: tuple[str, ...], files: KeyFiles) -> Setup:
    """Read the config, or compose one from the arguments. Raises `UsageError`."""
    path = Path(explicit or os.environ.get(CONFIG_VARIABLE) or CONFIG_HERE)
    if path.exists():
        config = load(path)
        if replicas:
            raise UsageError(
                f"{path} exists already and names its replicas",
                hint="leave --replica out, or name another config with --config FILE",
            )
        return Setup(
            config,
            _key_file(config, config.vault.identity, files.identity, IDENTITY_FILE),
            _key_file(config, config.vault.write_key, files.write_key, WRITE_KEY_FILE),
            _key_file(config, config.vault.collect_key, files.collect_key, COLLECT_KEY_FILE),
            None,
        )
    if not replicas:
        raise UsageError(
            f"there is no {path} and no --replica",
            hint="for example: cellarer init --replica primary=/mnt/backup/vault "
            "--replica secondary=s3://BUCKET/vault",
        )
    return _composed(path, replicas, files)


def _composed(path: Path, replicas: tuple[str, ...], files: KeyFiles) -> Setup:
    directory = path.absolute().parent
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory", hint="make it first")
    product = directory.name or "product"
    pairs = [parse_replica(text) for text in replicas]
    names = (
        files.identity or IDENTITY_FILE,
        files.write_key or WRITE_KEY_FILE,
        files.collect_key or COLLECT_KEY_FILE,
    )
    text = config_text(product, pairs, *names)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / path.name
        trial.write_text(text)
        config = load(trial)
    config._path = path.absolute()
    identity, write_key, collect_key = (directory / name for name in names)
    return Setup(config, identity, write_key, collect_key, text)


def _key_file(
    config: Config, reference: SecretReference | None, named: str | None, default: str
) -> Path:
    """Where a key is to be written: as named, else where the config looks for it."""
    wanted = Path(named).absolute() if named is not None else None
    if reference is None:
        return wanted or config.directory / default
    if reference.file is None:
        if wanted is None:
            raise UsageError(
                f"the config takes a key from {reference.place}",
                hint="name the file with --identity FILE, --write-key FILE or --collect-key FILE",
            )
        return wanted
    found = config.directory / Path(reference.file).expanduser()
    if wanted is not None and wanted.resolve() != found.resolve():
        raise UsageError(
            f"the config looks for a key in {found}, and not in {wanted}",
            hint="correct the config, or name the same file",
        )
    return wanted or found
