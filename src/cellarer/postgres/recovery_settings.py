"""The settings that steer recovery, in `postgresql.auto.conf`; pure text in, text out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cellarer.domain.recovery_target import RecoveryTarget

AUTO_CONF = "postgresql.auto.conf"
RECOVERY_SIGNAL, STANDBY_SIGNAL = "recovery.signal", "standby.signal"

RECOVERY_SETTINGS = (
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "recovery_min_apply_delay",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
)
"""Settings of an earlier recovery, or of a standby; left in place they would end this one early."""

NO_TARGET = {
    "recovery_target_timeline": "latest",
    "recovery_target": "",
    "recovery_target_lsn": "",
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
}
"""For a standby: a target that is left in the primary's own configuration would promote it."""

_SETTING = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(?:=|\s)")


def without_recovery(text: str) -> str:
    """The file without the settings of any recovery. Comments and all else stay as they are."""
    kept = [
        line
        for line in text.splitlines(keepends=True)
        if setting_name(line) not in RECOVERY_SETTINGS
    ]
    return "".join(kept)


def setting_name(line: str) -> str | None:
    """The name of the setting that a line of a configuration file makes, in lower case."""
    found = _SETTING.match(line)
    return found[1].lower() if found else None


def with_recovery(text: str, settings: Mapping[str, str]) -> str:
    """The file with these settings instead of those of any earlier recovery."""
    base = without_recovery(text)
    if base and not base.endswith("\n"):
        base += "\n"
    return base + "".join(f"{name} = {quoted(value)}\n" for name, value in settings.items())


def target_settings(target: RecoveryTarget, timeline: str, action: str) -> dict[str, str]:
    """How PostgreSQL is told where to stop. `timeline` is a number in decimal, or `latest`."""
    settings = {"recovery_target_timeline": timeline}
    if target.kind == "latest":
        return settings
    if target.kind == "immediate":
        settings["recovery_target"] = "immediate"
    else:
        settings[f"recovery_target_{target.kind}"] = target.value
        settings["recovery_target_inclusive"] = "on" if target.inclusive else "off"
    settings["recovery_target_action"] = action
    return settings


def quoted(value: str) -> str:
    """A value as configuration files want it."""
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{escaped}'"
