"""Where this program's files lie on a host: the config, what it keeps, what it can make anew.

Imported by the client of `archive_command`, which runs for every segment: standard library only.
"""

from __future__ import annotations

import os

from cellarer.errors import UsageError

CONFIG_VARIABLE = "CELLARER_CONFIG"
CONFIG_HERE = "cellarer.toml"
CONFIG_OF_SYSTEM = "/etc/cellarer/cellarer.toml"


def find_config(explicit: str | None) -> str:
    """The config to use: the one named, else `$CELLARER_CONFIG`, else here, else the system's.

    Raises `UsageError` where there is none; one that is named has to be there.
    """
    named = (
        ("--config", explicit),
        (f"${CONFIG_VARIABLE}", os.environ.get(CONFIG_VARIABLE)),
    )
    for origin, name in named:
        if name:
            if os.path.isfile(name):
                return name
            detail = f"{name}, named by {origin}, is not a file"
            hint = "name the right file, or make one with `cellarer init`"
            raise UsageError("the config is not there", detail=detail, hint=hint)
    for path in (CONFIG_HERE, CONFIG_OF_SYSTEM):
        if os.path.isfile(path):
            return path
    raise UsageError(
        "there is no config",
        detail=f"looked for --config, ${CONFIG_VARIABLE}, ./{CONFIG_HERE} and {CONFIG_OF_SYSTEM}",
        hint="make one with `cellarer init`, or name one with --config FILE",
    )


def state_directory() -> str:
    """What this host keeps (XDG base directories); losing it loses no backup."""
    return _place("XDG_STATE_HOME", "~/.local/state")


def cache_directory() -> str:
    """What this host can make anew from the vault."""
    return _place("XDG_CACHE_HOME", "~/.cache")


def _place(variable: str, default: str) -> str:
    return os.path.join(os.path.expanduser(os.environ.get(variable) or default), "cellarer")


def keep(path: str | os.PathLike[str], text: str) -> None:
    """Write a file that only its owner reads, all of it or nothing. Raises `OSError`.

    Two who keep the same file at once do not mix: the last one's stays.
    """
    directory, name = os.path.split(os.fspath(path))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = os.path.join(directory, f".{name}.{os.urandom(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
