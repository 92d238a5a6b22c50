"""Replicas on disks that are mounted now and then: an empty mount point is no new replica.

Nothing in the directory tells that its disk is not there, only that it was there once. So this host
remembers below which mount point it saw each of its replicas.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cellarer.errors import StoreError
from cellarer.stores.place import mount_points
from cellarer.vault.format import FORMAT_KEY
from cellarer.wal.spool import write_whole


def unmounted(urls: dict[str, str], state: Path) -> dict[str, StoreError]:
    """Which of some replicas, url by name, lie on disks that are not mounted: the errors for them.

    What is mounted is remembered in `state`. One that holds a vault without its disk was moved.
    """
    known, file = _load(state), state / "mounts.json"
    points, now, missing = mount_points(), dict(known), {}
    for name, url in urls.items():
        parts = urlsplit(url)
        if parts.scheme != "file" or not points:
            continue
        directory = Path(unquote(parts.path))
        below = max(
            (point for point in points if directory.is_relative_to(point)),
            key=lambda point: len(point.parts),
            default=Path("/"),
        )
        before = Path(known.get(str(directory), "/"))
        if before in points or _holds(directory / FORMAT_KEY):
            now[str(directory)] = str(below)
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


def is_directory(path: Path) -> bool:
    """Whether one can be seen there; not below a mount point that nobody may enter."""
    with suppress(PermissionError):
        return path.is_dir()
    return False


def _holds(path: Path) -> bool:
    with suppress(PermissionError):
        return path.exists()
    return False


def _load(state: Path) -> dict[str, str]:
    try:
        found = json.loads((state / "mounts.json").read_text())
        return {str(directory): str(point) for directory, point in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
