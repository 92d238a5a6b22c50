"""What a data directory is to a standby, and the settings that make it one; and undo that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cellarer.errors import TargetFailed, UsageError
from cellarer.postgres.data_directory import looks_like_one, read_control, serving
from cellarer.postgres.recovery_settings import (
    AUTO_CONF,
    RECOVERY_SETTINGS,
    STANDBY_SIGNAL,
    quoted,
    setting_name,
    without_recovery,
)
from cellarer.postgres.standby_feed import FEED
from cellarer.targets.ground import read_mark
from cellarer.targets.pgdata import account_for
from cellarer.targets.places import Places
from cellarer.targets.recovery import auto_conf
from cellarer.targets.tree import Tree

NEW, UNFINISHED, STANDBY, PROMOTED = "new", "unfinished", "standby", "promoted"

_MINIMAL = {
    "postgresql.conf": "# Written by cellarer: the base backup held no configuration, as that lay"
    " outside\n# of the data directory. Put the primary's here, fitted to this host.\n",
    "pg_hba.conf": "# Written by cellarer, as the base backup held none.\nlocal all all peer\n",
    "pg_ident.conf": "",
}


def look_at(data: Path) -> str:
    """Whether a standby is to be made here, to be finished, or to be gone on with.

    `promoted` is one whose promotion was not finished. Raises `TargetFailed` for everything else.
    """
    if not data.is_symlink() and (not data.exists() or (data.is_dir() and _is_empty(data))):
        return NEW
    if read_mark(data) is not None and serving(data) is None:
        return UNFINISHED
    if not looks_like_one(data) or read_control(data) is None:
        raise TargetFailed(
            f"{data} holds something that is no standby",
            hint="Name an empty directory, or one that is not there.",
        )
    if FEED in auto_conf(data):
        return STANDBY if (data / STANDBY_SIGNAL).exists() else PROMOTED
    runs = "a server that runs" if serving(data) is not None else "a data directory"
    raise TargetFailed(
        f"{data} holds {runs}, and no standby of cellarer's",
        detail="it asks for WAL elsewhere, or it is a primary: promoted, or never a standby",
        hint="Name another directory. A primary is never made a standby again: its WAL went its own"
        " way; move it away, and a standby is made anew.",
    )


def refuse_recovery_settings(settings: Mapping[str, str]) -> None:
    """Raise `UsageError` for what steers recovery: it could end what makes this a standby."""
    for name in settings:
        if name.lower() in RECOVERY_SETTINGS:
            hint = "leave it out: a standby needs its own"
            raise UsageError(f"{name} is not for --set", hint=hint)


def settle(data: Path, settings: Mapping[str, str]) -> list[str]:
    """Give a restored standby a configuration where it has none, and settings that differ here.

    Returns the names of the files that were missing.
    """
    tree = _tree(data)
    missing = [name for name in _MINIMAL if not (data / name).exists()]
    for name in missing:
        tree.replace(data, name, _MINIMAL[name])
    if settings:
        names = {name.lower() for name in settings}
        kept = [
            line for line in auto_conf(data).splitlines() if (setting_name(line) or "") not in names
        ]
        lines = [*kept, *(f"{name} = {quoted(value)}" for name, value in settings.items())]
        tree.replace(data, AUTO_CONF, "".join(f"{line}\n" for line in lines))
    return missing


def release(data: Path) -> None:
    """Take the settings of a standby away from one that was promoted."""
    tree = _tree(data)
    tree.replace(data, AUTO_CONF, without_recovery(auto_conf(data)))
    (data / STANDBY_SIGNAL).unlink(missing_ok=True)
    tree.sync_root()


def _tree(data: Path) -> Tree:
    return Tree(Places(data, {}, frozenset()), account_for(data))


def _is_empty(data: Path) -> bool:
    return not {path.name for path in data.iterdir()} - {"lost+found"}
