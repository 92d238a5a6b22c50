"""Which settings this version accepts and does not yet act on."""

from __future__ import annotations

from collections.abc import Collection

from cellarer.config.models import Config
from cellarer.domain.finding import Finding, Level

BUILT_SOURCE_KINDS = ("postgres_dump", "postgres_base", "wal", "git", "files")


def unbuilt(config: Config) -> list[Finding]:
    """A finding with the id `not-built` for each setting that has no effect yet.

    A warning where someone could believe that data is being protected and it is not; else for
    information.
    """
    return [*_sources(config), *_tables(config)]


def _finding(subject: str, level: Level, message: str, hint: str = "") -> Finding:
    return Finding("not-built", level, subject, message, hint)


def _sources(config: Config) -> list[Finding]:
    findings = []
    for name, source in config.sources.items():
        subject = f"sources.{name}"
        if source.kind not in BUILT_SOURCE_KINDS:
            message = f"sources of kind {source.kind} are not built yet: this one is not backed up"
            hint = "back it up by other means until then"
            findings.append(_finding(subject, "warning", message, hint))
            continue
        if source.every:
            message = "the scheduler is not built yet: backups are not taken by themselves"
            hint = f"run `cellarer backup {name}` from cron or a systemd timer"
            findings.append(_finding(f"{subject}.every", "warning", message, hint))
        if source.classes:
            message = "recovery point objectives are not judged yet"
            findings.append(_finding(f"{subject}.class", "info", message))
        if source.kind == "postgres_dump" and source.profile != "plain":
            message = f"the profile {source.profile} is not built yet: treated as a plain server"
            findings.append(_finding(f"{subject}.profile", "info", message))
    return findings


def _tables(config: Config) -> list[Finding]:
    """One finding for each table: its keys share their fate."""
    schedule = config.schedule.model_fields_set - {"timezone"}
    tables: tuple[tuple[str, Collection[str], str], ...] = (
        ("objectives", config.objectives.model_fields_set, "objectives are not measured yet"),
        ("classes", config.classes, "recovery point objectives are not judged yet"),
        ("schedule", schedule, "the scheduler is not built yet: nothing happens by itself"),
        ("product.journeys", config.product.journeys, "drills are not built yet"),
        ("platforms", config.platforms, "recoveries by runbook are not built yet"),
        ("monitors", config.monitors, "probes are not built yet"),
        ("channels", config.channels, "notifications are not built yet: nobody is told"),
        ("contacts", config.contacts, "notifications are not built yet: nobody is told"),
        ("escalation", config.escalation, "incidents are not built yet"),
        ("access", config.access, "roles are not built yet: who runs commands may do everything"),
    )
    return [
        _finding(subject, "info", f"{message} ({', '.join(sorted(keys))})")
        for subject, keys, message in tables
        if keys
    ]
