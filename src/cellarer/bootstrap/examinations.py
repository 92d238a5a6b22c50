"""Everything that `doctor` looks at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from pathlib import Path

from cellarer.bootstrap.mounts import seen
from cellarer.bootstrap.sources import built_sources, open_source
from cellarer.bootstrap.vaults import (
    load_collect_key,
    load_identity,
    load_write_key,
    look_back,
    now,
    open_log_reader,
    open_replica,
    open_vault,
    probe_replica,
    replica_place,
)
from cellarer.bootstrap.wal import look_at_streams, look_at_wal_source
from cellarer.config import Config, SecretReference, Wal, unbuilt
from cellarer.config.models import Replica as ReplicaSettings
from cellarer.domain.finding import Finding
from cellarer.errors import ObjectMissing
from cellarer.flows.copies import look_at_copies
from cellarer.flows.doctor import Examination, look_for_room
from cellarer.flows.immutability import look_at_locks
from cellarer.flows.points import survey
from cellarer.flows.windows import look_at_logs, look_for_conflicts, read_logs
from cellarer.ports import Retaining, retaining
from cellarer.stores.place import directory_of
from cellarer.vault.trust import KEY_SETTINGS
from cellarer.vault.vault import Vault


def examinations(config: Config) -> list[Examination]:
    """Everything that `doctor` looks at."""
    looks: list[Examination] = [
        ("config", lambda: unbuilt(config)),
        ("vault.write_key", lambda: _examine_key(config, "write_key")),
        ("vault.collect_key", lambda: _examine_key(config, "collect_key")),
        ("vault.identity", lambda: _examine_key(config, "identity")),
    ]
    refusing: set[str] = set()
    for settings in config.vault.replicas:
        subject = f"vault.replicas.{settings.name}"
        looks.append((subject, _look_at_replica(config, settings, subject, refusing)))
    looks.append(("vault", lambda: _examine_vault(config, refusing)))
    for name, source in config.sources.items():
        if isinstance(source, Wal):
            looks.append((f"sources.{name}", _look_at_wal(config, name)))
        elif name in built_sources(config):
            looks.append((f"sources.{name}", _look_at_source(config, name)))
    looks.append(("streams", lambda: look_at_streams(config)))
    return looks


def _look_at_replica(
    config: Config, settings: ReplicaSettings, subject: str, refusing: set[str]
) -> Callable[[], Iterable[Finding]]:
    """`refusing` learns whether the store kept what it was asked to delete."""

    def look() -> Iterable[Finding]:
        place = directory_of(settings.url)
        if place is not None and not seen(place.is_dir):
            # Nothing is made there: what is mounted later would lie above it.
            hint = "mount its disk; or `cellarer init`, or `cellarer sync`, makes the directory"
            yield Finding("store-absent", "warning", subject, "its directory is not there", hint)
            return
        found = probe_replica(settings, config.directory)
        if found.locked:
            refusing.add(settings.name)
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


def _look_at_wal(config: Config, name: str) -> Callable[[], Iterable[Finding]]:
    return lambda: look_at_wal_source(config, name)


def _look_at_source(config: Config, name: str) -> Callable[[], Iterable[Finding]]:
    return lambda: open_source(config, name).examine()


def _examine_vault(config: Config, refusing: Collection[str]) -> list[Finding]:
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
    findings += look_at_locks(vault, found.entries, found.points, now())
    findings += look_at_copies(
        vault,
        found,
        {each.name: replica_place(each, config.directory) for each in config.vault.replicas},
        refusing,
        (_interval(config.schedule.verify), _interval(config.schedule.scrub)),
        now(),
    )
    findings += look_at_logs(read_logs(vault, found.points, open_log_reader))
    findings += look_for_conflicts(vault, open_log_reader)
    findings += _untrusted_keys(vault)
    findings += [
        Finding("vault-damaged", "error", f"vault: {key}", str(error), error.hint)
        for key, error in vault.unreadable.items()
    ]
    findings += [
        Finding(
            "vault-late",
            "warning",
            f"vault: {key}",
            "is signed by a key that was retired before: it counts for nothing",
            "a host still backs up with the old key, or a thief does: see `cellarer keys list`",
        )
        for key in sorted(vault.too_late)
    ]
    recipients = ", ".join(vault.recipients)
    message = f"{vault.id}, readable by {recipients}"
    return [*findings, Finding("vault", "info", "vault", message)]


def _interval(timing: object) -> timedelta | None:
    """How often something is due; None where a calendar says when, or nothing does."""
    return timing if isinstance(timing, timedelta) else None


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
    loaders: dict[str, Callable[[Config], object]] = {
        "write_key": load_write_key,
        "collect_key": load_collect_key,
        "identity": load_identity,
    }
    loaders[which](config)
    if reference.file is None:
        return []
    path = config.directory / Path(reference.file).expanduser()
    if path.stat().st_mode & 0o077:
        message = f"{path} can be read by others"
        return [Finding("key-readable", "error", subject, message, f"run: chmod 600 {path}")]
    return []
