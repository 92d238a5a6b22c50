"""Where a store lies: what is one medium, and what is not this host."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cellarer.stores.place import place_of


def test_two_directories_of_one_disk_are_one_medium(tmp_path: Path) -> None:
    one, other = (place_of((tmp_path / name).as_uri(), {}) for name in ("one", "not/there/yet"))
    assert one.medium == other.medium
    assert not one.off_site


def test_another_file_system_is_another_medium(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    here, there = place_of(tmp_path.as_uri(), {}), place_of(small_disk(1).as_uri(), {})
    assert here.medium != there.medium


@pytest.mark.parametrize(
    ("kind", "source", "medium"),
    [
        ("nfs4", "nas:/export/a", "the file server nas"),
        ("cifs", "//nas/share", "the file server //nas/share"),
        ("fuse.sshfs", "me@far.example:/srv", "the file server me@far.example"),
    ],
)
def test_a_network_mount_is_another_medium_and_not_known_to_be_off_site(
    tmp_path: Path, kind: str, source: str, medium: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"23 22 0:44 / {tmp_path}/a\\040b rw,relatime shared:1 - {kind} {source} rw\n"
    )
    (tmp_path / "a b").mkdir()
    place = place_of((tmp_path / "a b" / "vault").as_uri(), {}, mounts)
    assert (place.medium, place.off_site) == (medium, False)


def test_buckets_of_one_provider_are_one_medium() -> None:
    east, west = place_of("s3://a/v", {"region": "us-east-1"}), place_of("s3://b", {})
    assert east == west
    assert east.off_site
    assert place_of("gs://a", {}).medium != east.medium


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", socket.gethostname()]
)
def test_an_endpoint_on_this_host_is_not_off_site(host: str) -> None:
    place = place_of("s3://a", {"endpoint": f"http://{host}:9000"})
    assert not place.off_site
    assert "this host" in place.basis


def test_an_endpoint_elsewhere_is() -> None:
    place = place_of("s3://a", {"endpoint": "https://192.0.2.7:9000"})
    assert place.off_site
    assert "192.0.2.7" in place.medium
