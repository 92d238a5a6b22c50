"""The composition root: the one place where config meets adapters.

Commands ask here for what they need; nothing else in the program constructs an adapter.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cellarer.config import Config, PostgresDump, Retention, SecretReference, resolve, unbuilt
from cellarer.config.models import Replica as ReplicaSettings
from cellarer.domain.assertion import Assertion
from cellarer.domain.finding import Finding
from cellarer.domain.retention import Policy
from cellarer.errors import KeyUnusable, ObjectMissing, StoreError, UsageError
from cellarer.flows.doctor import Examination, look_for_room
from cellarer.flows.history import look_back as compare_history
from cellarer.flows.initialise import initialise
from cellarer.flows.points import Survey, survey
from cellarer.flows.retain import Rules
from cellarer.ports import Prover, Retaining, Source, Store, Target, retaining
from cellarer.stores import open_layered
from cellarer.stores.probe import GROW_ONLY_HINT, Probe, probe
from cellarer.stores.settings import StoreSettings
from cellarer.vault.age import Person
from cellarer.vault.founding import Made, refuse_existing
from cellarer.vault.heads import SeenHeads
from cellarer.vault.keys import CollectKey, Identity, WriteKey
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.trust import KEY_SETTINGS
from cellarer.vault.vault import Vault

_KEYWORDS = re.compile(r"\s*(host|hostaddr|port|user|password|dbname|service)\s*=")


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def jobs() -> int:
    """How many PostgreSQL processes a restore runs at once: one for each core, eight at most."""
    return max(1, min(os.cpu_count() or 1, 8))


def open_replicas(config: Config) -> ReplicaSet:
    """The replicas of the config, not yet asked anything."""
    replicas = [open_replica(replica, config.directory) for replica in config.vault.replicas]
    return ReplicaSet(replicas, config.vault.write_quorum)


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
    options = {name: _resolved(value, directory) for name, value in settings.options.items()}
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


def open_vault(config: Config, *, reading: bool = False, also: Identity | None = None) -> Vault:
    """The vault with the keys that this host has. `reading` demands the identity.

    `also` is an identity that may open what the configured one no longer does.
    """
    write_key, identity = load_write_key(config), load_identity(config)
    if identity and also:
        identity |= also
    if reading and identity is None:
        raise KeyUnusable(
            "reading needs an identity, and this host has none",
            hint="set vault.identity to your age identity file, or run this where it is",
        )
    collect_key, founder = load_collect_key(config), config.vault.founder
    return Vault.open(open_replicas(config), write_key, identity, collect_key, founder)


def look_back(vault: Vault, found: Survey) -> list[Finding]:
    """What is missing of the vault's history, compared with what this host saw of it before."""
    base = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return compare_history(vault, found, SeenHeads(base / "cellarer" / "heads", vault.id))


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


def load_identity(config: Config) -> Identity | None:
    """The identity that the config names, if any."""
    reference = config.vault.identity
    if reference is None:
        return None
    return Identity.from_text(resolve(reference, config.directory, KeyUnusable), person(config))


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


def open_sources(config: Config, names: Iterable[str]) -> list[Source]:
    """The named sources, or all that are built where none is named.

    Raises `UsageError` for names that are not in the config or not built yet.
    """
    wanted = list(names)
    if not config.sources:
        raise UsageError(
            "the config has no source",
            hint='add one: [sources.database] with kind = "postgres_dump" and a dsn',
        )
    unknown = [name for name in wanted if name not in config.sources]
    if unknown:
        raise UsageError(
            f"there is no source {unknown[0]} in the config",
            hint=f"sources are: {', '.join(config.sources)}",
        )
    built = built_sources(config)
    not_built = [name for name in wanted if name not in built]
    if not_built:
        kind = config.sources[not_built[0]].kind
        raise UsageError(
            f"source {not_built[0]} cannot be backed up yet",
            detail=f"sources of kind {kind} are not built",
            hint=f"sources that can: {', '.join(built) or 'none'}",
        )
    return [_source(config, name) for name in wanted or built]


def built_sources(config: Config) -> list[str]:
    """The names of the sources that this version can back up."""
    return [name for name, s in config.sources.items() if isinstance(s, PostgresDump)]


def retention(config: Config) -> Rules:
    """The rules of the config, for all sources and for each that has its own."""
    return Rules(
        general=_policy(config.retention),
        policies={n: _policy(s.retention) for n, s in config.sources.items() if s.retention},
        zone=ZoneInfo(config.schedule.timezone),
    )


def _policy(settings: Retention) -> Policy:
    return Policy(**{name: getattr(settings, name) for name in Retention.model_fields})


def open_target(text: str) -> Target:
    """A restore's target as people write it: `postgresql://…` or a directory."""
    if text.startswith(("postgresql://", "postgres://")):
        from cellarer.targets.postgres import PostgresTarget

        return PostgresTarget(text, jobs())
    if text.startswith("pgdata:"):
        raise UsageError(
            "restoring into a data directory needs a base backup",
            hint="restore into a running server: --to postgresql://HOST/DATABASE",
        )
    if _KEYWORDS.match(text):
        # Taken for a directory, it would be made and shown, with the password that it may hold.
        raise UsageError(
            "the target is a connection string of keywords",
            hint="write it as postgresql://USER@HOST:PORT/DATABASE",
        )
    scheme = urlsplit(text).scheme
    if scheme not in ("", "file"):
        raise UsageError(
            f"{scheme}:// cannot be restored to yet",
            hint="name a directory or postgresql://HOST/DATABASE",
        )
    from cellarer.targets.directory import DirectoryTarget

    return DirectoryTarget(Path(urlsplit(text).path if scheme else text))


def open_prover(config: Config, source: str, kind: str) -> Prover:
    """What brings points of this kind up in a sandbox. Raises `UsageError` where nothing does."""
    if kind != "postgres_dump":
        raise UsageError(f"points of kind {kind} cannot be proven yet")
    from cellarer.targets.sandbox import PostgresProver

    return PostgresProver(assertions(config, source), sandboxes(), jobs())


def assertions(config: Config, source: str) -> list[Assertion]:
    """What the config claims of a source's data; nothing for a source it does not name."""
    settings = config.sources.get(source)
    claimed = settings.assertions if isinstance(settings, PostgresDump) else ()
    return [Assertion(a.name, a.sql, a.expect, a.database) for a in claimed]


def sandboxes() -> Path:
    """The directory below which throw-away clusters live: short, and open to be entered."""
    directory = Path(tempfile.gettempdir()) / f"cellarer-{os.getuid()}"
    directory.mkdir(mode=0o711, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise UsageError(
            f"{directory} belongs to somebody else",
            hint="set TMPDIR to a directory of your own",
        )
    return directory


def presentations() -> Mapping[str, Callable[[Iterable[bytes]], Iterable[bytes]]]:
    """How `cat` shows streams of some kinds: a table as COPY text, without its framing."""
    from cellarer.postgres.archive import rows

    return {"table": lambda blocks: rows(iter(blocks))}


def examinations(config: Config) -> list[Examination]:
    """Everything that `doctor` looks at."""
    looks: list[Examination] = [
        ("config", lambda: unbuilt(config)),
        ("vault.write_key", lambda: _examine_key(config, "write_key")),
        ("vault.collect_key", lambda: _examine_key(config, "collect_key")),
        ("vault.identity", lambda: _examine_key(config, "identity")),
    ]
    for settings in config.vault.replicas:
        subject = f"vault.replicas.{settings.name}"
        looks.append((subject, _look_at_replica(config, settings, subject)))
    looks.append(("vault", lambda: _examine_vault(config)))
    for name, source in config.sources.items():
        if isinstance(source, PostgresDump):
            looks.append((f"sources.{name}", _look_at_source(config, name)))
    return looks


def _look_at_replica(
    config: Config, settings: ReplicaSettings, subject: str
) -> Callable[[], Iterable[Finding]]:
    def look() -> Iterable[Finding]:
        found = probe_replica(settings, config.directory)
        yield from found.findings(subject, grow_only=settings.grow_only)
        lock = retaining(open_replica(settings, config.directory).store)
        if lock is not None:
            yield _examine_lock(lock, subject)

    return look


def _examine_lock(lock: Retaining, subject: str) -> Finding:
    if lock.locks():
        return Finding("store-locks", "info", subject, "its objects are locked when written")
    return Finding(
        "store-lock-absent",
        "error",
        subject,
        "its bucket has no object lock, so immutable_for cannot be kept and nothing be written",
        "make a bucket with object lock on; see docs/guides/stores.md",
    )


def _look_at_source(config: Config, name: str) -> Callable[[], Iterable[Finding]]:
    return lambda: _source(config, name).examine()


def _examine_vault(config: Config) -> list[Finding]:
    vault = open_vault(config)
    answers = vault.replicas.each(lambda store: store.read("format.json"))
    lacking = [name for name, a in answers.items() if isinstance(a, ObjectMissing)]
    findings = [
        Finding(
            "vault-absent",
            "error",
            f"vault.replicas.{name}",
            "holds no vault yet",
            "bring it up to date with `cellarer sync`",
        )
        for name in lacking
    ]
    found = survey(vault)
    findings += look_back(vault, found)
    findings += look_for_room(vault, found.points)
    findings += _untrusted_keys(vault)
    findings += [
        Finding("vault-damaged", "error", f"vault: {key}", str(error), error.hint)
        for key, error in vault.unreadable.items()
    ]
    recipients = ", ".join(vault.recipients)
    message = f"{vault.id}, readable by {recipients}"
    return [*findings, Finding("vault", "info", "vault", message)]


def _untrusted_keys(vault: Vault) -> list[Finding]:
    """The keys of this host that the vault's configuration does not name."""
    epoch = vault.configuration.epoch
    return [
        Finding(
            "key-untrusted",
            "error",
            f"vault.{setting}",
            f"this key is not in the vault's configuration (epoch {epoch})",
            "put the current key there; whoever changed the vault's keys has it",
        )
        for role, setting in KEY_SETTINGS.items()
        if (held := vault.signers(role))
        and not {signer.public for signer in held} & set(vault.configuration.public_keys(role))
    ]


def _examine_key(config: Config, which: str) -> list[Finding]:
    subject = f"vault.{which}"
    reference: SecretReference | None = getattr(config.vault, which)
    if reference is None:
        message = {
            "write_key": "not set: this host cannot back up",
            "collect_key": "not set: this host cannot apply retention, as it should be on a host "
            "that only backs up",
            "identity": "not set: this host cannot restore or verify, as it should be on a host "
            "that only backs up",
        }[which]
        return [Finding("key-unset", "info", subject, message)]
    {
        "write_key": load_write_key,
        "collect_key": load_collect_key,
        "identity": load_identity,
    }[which](config)
    if reference.file is None:
        return []
    path = config.directory / Path(reference.file).expanduser()
    if path.stat().st_mode & 0o077:
        message = f"{path} can be read by others"
        return [Finding("key-readable", "error", subject, message, f"run: chmod 600 {path}")]
    return []


def _source(config: Config, name: str) -> Source:
    from cellarer.sources.postgres_dump import PostgresDumpSource

    settings = config.sources[name]
    assert isinstance(settings, PostgresDump)
    dsn = _resolved(settings.dsn, config.directory)
    return PostgresDumpSource(name, dsn, settings.databases)


def _resolved(value: str | SecretReference, directory: Path) -> str:
    return resolve(value, directory) if isinstance(value, SecretReference) else value
