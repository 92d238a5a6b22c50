"""Where a store lies, as far as that can be seen from here: its medium, and whether off site."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cellarer.domain.copies import Place
from cellarer.stores.loopback import is_loopback

_PROVIDERS = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_NETWORK = {
    "9p", "afs", "ceph", "cifs", "davfs", "fuse.sshfs", "fuse.rclone", "fuse.glusterfs",
    "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
}  # fmt: skip
MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


def place_of(url: str, options: Mapping[str, str], mounts: Path | None = None) -> Place:
    """The place of the store at `url`; `options` as for `open_store`."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _directory(Path(unquote(parts.path)), mounts or MOUNTS)
    endpoint = options.get("endpoint", "")
    if not endpoint:
        provider = _PROVIDERS[parts.scheme]
        return Place(provider, True, provider)
    address = urlsplit(endpoint)
    medium = f"{parts.scheme}:// at {address.netloc}"
    if _is_here(address.hostname or ""):
        return Place(medium, False, f"{address.netloc} is this host")
    return Place(medium, True, f"{address.netloc} is another host")


def mount_points(mounts: Path | None = None) -> list[Path]:
    """Where something is mounted; nothing where the system does not say."""
    return [point for point, _, _ in _mounted(mounts or MOUNTS)]


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
    kind, source = _file_system(existing, mounts)
    if kind in _NETWORK:
        server = source.split(":")[0] if ":" in source else source
        return Place(f"the file server {server}", False, "a network mount, of unknown place")
    return Place(_disk(existing, source), False, "a directory of this host")


def _file_system(path: Path, mounts: Path) -> tuple[str, str]:
    """The kind of file system and what it is mounted from; empty where the system does not say."""
    best, found = -1, ("", "")
    for point, kind, source in _mounted(mounts):
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), (kind, source)
    return found


def _mounted(mounts: Path) -> Iterator[tuple[Path, str, str]]:
    """What is mounted: where, the kind of file system, and from what; the last one counts."""
    with suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            fields, behind = before.split(), after.split()
            if len(fields) >= 5 and len(behind) >= 2:
                # Blanks and the like are escaped as octal numbers.
                point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
                yield Path(point), behind[0], behind[1]


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
