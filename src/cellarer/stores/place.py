"""Where a store lies, as far as that can be seen from here: its medium, and whether off site."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cellarer.domain.copies import Place
from cellarer.stores.loopback import is_loopback

_PROVIDERS = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_NETWORK = {
    "9p", "afs", "ceph", "cifs", "davfs", "fuse.sshfs", "fuse.rclone", "fuse.glusterfs",
    "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
}  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


def place_of(url: str, options: Mapping[str, str], mounts: Path = _MOUNTS) -> Place:
    """The place of the store at `url`; `options` as for `open_store`."""
    if (directory := directory_of(url)) is not None:
        return _directory(directory, mounts)
    scheme, endpoint = urlsplit(url).scheme, options.get("endpoint", "")
    if not endpoint:
        provider = _PROVIDERS[scheme]
        return Place(provider, True, provider)
    address = urlsplit(endpoint)
    medium = f"{scheme}:// at {address.netloc}"
    if _is_here(address.hostname or ""):
        return Place(medium, False, f"{address.netloc} is this host")
    return Place(medium, True, f"{address.netloc} is another host")


def directory_of(url: str) -> Path | None:
    """The directory of the store at `url`; None where it is no directory."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@dataclass(frozen=True)
class Mount:
    """What is mounted at a point: the kind of file system, and from what."""

    point: Path
    kind: str
    source: str


def mounted(mounts: Path = _MOUNTS) -> list[Mount]:
    """All mounts; none where the system does not say."""
    found = []
    with suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            fields, behind = before.split(), after.split()
            if len(fields) >= 5 and len(behind) >= 2:
                # Blanks and the like are escaped as octal numbers.
                point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
                found.append(Mount(Path(point), behind[0], behind[1]))
    return found


def mount_of(path: Path, mounts: Iterable[Mount]) -> Mount:
    """The one that a path lies on; of two at one point the last counts."""
    around = [mount for mount in mounts if path.is_relative_to(mount.point)]
    return max(reversed(around), key=lambda mount: len(mount.point.parts), default=_UNKNOWN)


_UNKNOWN = Mount(Path("/"), "", "")


def _is_here(host: str) -> bool:
    """Whether this machine itself has the address: then a socket can be bound to it."""
    if is_loopback(host):
        return True
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in found:
        with suppress(OSError), closing(socket.socket(family, kind)) as trial:
            trial.bind(address)
            return True
    return False


def _directory(path: Path, mounts: Path) -> Place:
    """By the file system it is mounted from. Where a file server stands is not known."""
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    mount = mount_of(existing, mounted(mounts))
    if mount.kind in _NETWORK:
        server = mount.source.split(":")[0] if ":" in mount.source else mount.source
        return Place(f"the file server {server}", False, "a network mount, of unknown place")
    return Place(_disk(existing, mount.source), False, "a directory of this host")


def _disk(path: Path, source: str) -> str:
    """The disk below a directory: partitions and subvolumes of one disk are one medium."""
    device = path.stat().st_dev
    if source.startswith("/dev/"):
        with suppress(OSError):
            device = Path(source).stat().st_rdev
    number = f"{os.major(device)}:{os.minor(device)}"
    block = Path("/sys/dev/block", number)
    if block.exists():
        real = block.resolve()
        return f"the disk {real.parent.name if (real / 'partition').exists() else real.name}"
    return f"the file system {number}"
