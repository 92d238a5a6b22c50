"""Replicas, keys and the vault, as the config names them."""

from __future__ import annotations

import getpass
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cellarer import places
from cellarer.bootstrap.mounts import unmounted
from cellarer.config import Config, SecretReference, resolve
from cellarer.config.models import Replica as ReplicaSettings
from cellarer.domain.copies import Place
from cellarer.domain.finding import Finding
from cellarer.errors import KeyUnusable, StoreError
from cellarer.flows.history import look_back as compare_history
from cellarer.flows.initialise import initialise
from cellarer.flows.points import Survey
from cellarer.ports import Store
from cellarer.stores import open_layered
from cellarer.stores.place import place_of
from cellarer.stores.probe import GROW_ONLY_HINT, Probe, probe
from cellarer.stores.settings import StoreSettings
from cellarer.vault.age import PassphraseNeeded, Person
from cellarer.vault.founding import Made, refuse_existing
from cellarer.vault.heads import SeenHeads
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.log import LogReader, LogWriter
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.trust import KEY_SETTINGS
from cellarer.vault.vault import Vault


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def open_replicas(config: Config) -> ReplicaSet:
    """The replicas of the config, not yet asked anything; those whose disk is gone never are."""
    settings = config.vault.replicas
    replicas = [open_replica(replica, config.directory) for replica in settings]
    found = ReplicaSet(replicas, config.vault.write_quorum)
    for name, error in unmounted({r.name: r.url for r in settings}, state_directory()).items():
        found.leave_alone(name, error)
    return found


def open_for_sync(config: Config) -> tuple[ReplicaSet, Vault | None]:
    """The replicas, and the vault where the config names a key to open it with."""
    if not any(getattr(config.vault, setting) for setting in KEY_SETTINGS.values()):
        return open_replicas(config), None
    vault = open_vault(config)
    return vault.replicas, vault


def open_replica(settings: ReplicaSettings, directory: Path) -> Replica:
    """One replica, with the secrets in its options resolved."""
    return Replica(settings.name, _open_store(settings, directory, _store_settings(settings)))


def _open_store(settings: ReplicaSettings, directory: Path, wanted: StoreSettings) -> Store:
    options = {name: resolved(value, directory) for name, value in settings.options.items()}
    return open_layered(settings.url, options, wanted)


def _store_settings(settings: ReplicaSettings) -> StoreSettings:
    return StoreSettings(
        timeout=settings.timeout,
        bandwidth=settings.bandwidth,
        storage_class=settings.storage_class or "",
        encryption=settings.encryption or "",
        kms_key=settings.kms_key or "",
        immutable_for=settings.immutable_for,
        grow_only=settings.grow_only,
    )


def probe_replica(settings: ReplicaSettings, directory: Path) -> Probe:
    """What the replica's store shows by itself.

    Without the layer that keeps it from being overwritten, which would hide that it can be, and
    without locks, which would keep what was written for the trial.
    """
    wanted = replace(_store_settings(settings), grow_only=False, immutable_for=None)
    return probe(_open_store(settings, directory, wanted), now)


def replica_place(settings: ReplicaSettings, directory: Path) -> Place:
    """Where a replica lies, as far as that can be seen from here."""
    options = {name: resolved(value, directory) for name, value in settings.options.items()}
    return place_of(settings.url, options)


def make_vault(
    config: Config, identity_file: Path, write_key_file: Path, collect_key_file: Path
) -> Made:
    """A new vault on the replicas of the config, and its keys in these files."""
    replicas = open_replicas(config)
    refuse_existing(replicas)
    for settings in config.vault.replicas:
        found = probe_replica(settings, config.directory)
        if found.verdict == "unusable":
            raise StoreError(
                f"replica {settings.name} cannot keep a vault",
                detail=found.text,
                hint="choose another place for it",
            )
        if found.verdict == "grow-only" and not settings.grow_only:
            raise StoreError(
                f"replica {settings.name} can only grow, and the config does not say so",
                detail=found.text,
                hint=GROW_ONLY_HINT,
            )
    return initialise(
        replicas, identity_file, write_key_file, collect_key_file, person(config), now()
    )


def open_vault(
    config: Config,
    *,
    reading: bool = False,
    collecting: bool = False,
    also: Identity | None = None,
) -> Vault:
    """The vault with the keys that this host has. `reading` demands the identity.

    Nobody is asked for its passphrase where another key is enough: `collecting` takes the collect
    key for that, all else any. `also` is an identity that may open what the configured one no
    longer does.
    """
    write_key, collect_key = load_write_key(config), load_collect_key(config)
    enough = collect_key or (write_key and not collecting)
    asked = config.vault.identity_passphrase is None
    identity = load_identity(config, asking=reading or not (enough and asked))
    if identity and also:
        identity |= also
    if reading and identity is None:
        raise KeyUnusable(
            "reading needs an identity, and this host has none",
            hint="set vault.identity to your age identity file, or run this where it is",
        )
    founder = config.vault.founder
    replicas, cache = open_replicas(config), Path(places.cache_directory())
    return Vault.open(replicas, write_key, identity, collect_key, founder, cache)


def open_log_writer(vault: Vault, system: str) -> LogWriter:
    """Stores the write-ahead log of a cluster; keeps in mind what it stored, on this host."""
    return LogWriter(vault, system, state_directory() / "wal", now)


def open_log_reader(vault: Vault, system: str) -> LogReader:
    """Reads the write-ahead log of a cluster, and misses what this host saw of it before."""
    return LogReader(vault, system, seen_heads(vault))


def look_back(vault: Vault, found: Survey) -> list[Finding]:
    """What is missing of the vault's history, compared with what this host saw of it before."""
    return compare_history(vault, found, seen_heads(vault))


def seen_heads(vault: Vault) -> SeenHeads:
    """What this host saw of a vault before."""
    return SeenHeads(state_directory() / "heads", vault.id)


def state_directory() -> Path:
    """Where this program keeps what it saw, which no cache is."""
    return Path(places.state_directory())


def load_write_key(config: Config) -> WriteKey | None:
    """The write key that the config names, if any."""
    reference = config.vault.write_key
    if reference is None:
        return None
    return WriteKey.from_text(resolve(reference, config.directory, KeyUnusable))


def load_collect_key(config: Config) -> CollectKey | None:
    """The collect key that the config names, if any."""
    reference = config.vault.collect_key
    if reference is None:
        return None
    return CollectKey.from_text(resolve(reference, config.directory, KeyUnusable))


def load_identity(config: Config, *, asking: bool = True) -> Identity | None:
    """The identity that the config names, if any; unless `asking`, none that has a passphrase."""
    reference = config.vault.identity
    if reference is None:
        return None
    text = resolve(reference, config.directory, KeyUnusable)
    if asking:
        return Identity.from_text(text, person(config))
    with suppress(PassphraseNeeded):
        return Identity.from_text(text)
    return None


def person(config: Config) -> Person:
    """Who is asked for passphrases: the config's reference, else whoever sits at the terminal."""
    reference = config.vault.identity_passphrase

    def ask(question: str) -> str | None:
        if reference is not None:
            return resolve(reference, config.directory, KeyUnusable)
        return getpass.getpass(f"{question}: ") if sys.stdin.isatty() else None

    def tell(message: str) -> None:
        sys.stderr.write(f"{message}\n")

    return Person(ask, tell)


def resolved(value: str | SecretReference, directory: Path) -> str:
    """A setting that may be a secret's reference, as what it leads to."""
    return resolve(value, directory) if isinstance(value, SecretReference) else value
