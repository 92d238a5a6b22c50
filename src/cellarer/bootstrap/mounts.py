"""Replicas on disks that are mounted now and then: an empty mount point is no new replica.

Nothing in the directory tells that its disk is not there, only that it was there once. So this host
remembers below which mount point it saw each of its replicas.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cellarer.errors import StoreError
from cellarer.stores.place import directory_of, mount_of, mounted
from cellarer.vault.format import FORMAT_KEY
from cellarer.wal.spool import write_whole


def unmounted(urls: dict[str, str], state: Path) -> dict[str, StoreError]:
    """Which of some replicas, url by name, lie on disks that are not mounted: the errors for them.

    What is mounted is remembered in `state`. One that holds a vault without its disk was moved.
    """
    directories = {name: found for name, url in urls.items() if (found := directory_of(url))}
    mounts = mounted() if directories else []
    if not mounts:
        return {}
    file, points = state / "mounts.json", {mount.point for mount in mounts}
    known = _load(file)
    now, missing = dict(known), {}
    for name, directory in directories.items():
        before = Path(known.get(str(directory), "/"))
        if before in points or seen((directory / FORMAT_KEY).exists):
            now[str(directory)] = str(mount_of(directory, mounts).point)
        elif before != Path("/"):
            missing[name] = StoreError(
                f"the disk of replica {name} is not mounted",
                detail=f"when this host last looked, {directory} was below {before}",
                hint=f"mount {before}; if the replica is meant to lie there without it, or the "
                f"disk will never come back, remove {file}",
            )
    if now != known:
        with suppress(OSError):  # then the next look is as this one
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(file, json.dumps(now).encode())
    return missing


def seen(look: Callable[[], bool]) -> bool:
    """What a look at a path says; nothing is seen below a mount point that nobody may enter."""
    with suppress(PermissionError):
        return look()
    return False


def _load(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text())
        return {str(directory): str(point) for directory, point in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
