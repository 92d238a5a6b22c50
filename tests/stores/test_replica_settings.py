"""The settings of a replica reach its store, and `init` and `doctor` act on what it shows."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from cellarer import bootstrap
from cellarer.config import Config, load
from cellarer.domain.finding import Finding
from cellarer.errors import ObjectExists, StoreError, UsageError
from cellarer.ports import Store, grows_only, layers
from cellarer.stores.grow_only import GrowOnly
from cellarer.stores.object_lock import LockingStore
from cellarer.stores.retrying import Retrying
from cellarer.stores.throttled import Throttled
from cellarer.stores.time_limited import TimeLimited
from cellarer.vault.vault import Vault
from servers import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY

LOCKING_BUCKET = "settings-bucket"


@dataclass(frozen=True)
class Place:
    """A directory in which configs with one replica are written."""

    directory: Path

    def config(self, url: str, endpoint: str = "", **settings: Any) -> Config:
        lines = [
            '[product]\nname = "p"\n[vault]\n[[vault.replicas]]\nname = "one"',
            f'url = "{url}"',
        ]
        for name, value in settings.items():
            lines.append(f"{name} = " + (str(value).lower() if value is True else f'"{value}"'))
        if endpoint:
            lines.append(
                f'[vault.replicas.options]\nregion = "us-east-1"\nendpoint = "{endpoint}"\n'
                f'access_key_id = "{ACCESS_KEY_ID}"\nsecret_access_key = {{ env = "STORE_KEY" }}'
            )
        path = self.directory / f"{secrets.token_hex(4)}.toml"
        path.write_text("\n".join(lines))
        return load(path)

    def make_vault(self, config: Config) -> Vault:
        files = (self.directory / name for name in ("identity", "write", "collect"))
        made = bootstrap.make_vault(config, *files)
        return Vault.open(bootstrap.open_replicas(config), made.write_key, None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("STORE_KEY", SECRET_ACCESS_KEY)
    return Place(tmp_path)


def anywhere(bucket: str = BUCKET) -> str:
    return f"s3://{bucket}/{secrets.token_hex(8)}"


def opened(config: Config) -> Store:
    return bootstrap.open_replicas(config).replicas[0].store


def examined(config: Config) -> Iterable[Finding]:
    look = dict(bootstrap.examinations(config))["vault.replicas.one"]
    return look()


def test_a_directory_has_its_layers_in_order(place: Place) -> None:
    url = (place.directory / "vault").as_uri()
    settings: dict[str, Any] = {"bandwidth": "20MB", "timeout": "90s", "grow_only": True}
    kinds = [type(layer) for layer in layers(opened(place.config(url, **settings)))]
    assert kinds[:4] == [GrowOnly, Retrying, Throttled, TimeLimited]
    assert [type(layer) for layer in layers(opened(place.config(url)))][:2] == [
        Retrying, TimeLimited,
    ]  # fmt: skip


def test_a_bucket_keeps_to_the_time_by_its_client(place: Place, s3_endpoint: str) -> None:
    kinds = {type(layer) for layer in layers(opened(place.config(anywhere(), s3_endpoint)))}
    assert TimeLimited not in kinds


def test_settings_that_a_store_cannot_keep_are_refused(place: Place) -> None:
    config = place.config((place.directory / "vault").as_uri(), immutable_for="30d")
    with pytest.raises(UsageError) as caught:
        opened(config)
    assert "lock" in caught.value.message


def test_a_vault_on_a_store_that_overwrites_has_to_be_wanted(
    place: Place, rclone_endpoint: str
) -> None:
    url = anywhere()
    with pytest.raises(StoreError) as caught:
        place.make_vault(place.config(url, rclone_endpoint))
    assert "grow_only = true" in caught.value.hint
    assert list(opened(place.config(url, rclone_endpoint)).list("")) == []


def test_a_vault_that_only_grows_keeps_what_it_has(place: Place, rclone_endpoint: str) -> None:
    config = place.config(anywhere(), rclone_endpoint, grow_only=True)
    vault = place.make_vault(config)
    store = opened(config)
    assert grows_only(store)
    assert vault.id
    with pytest.raises(ObjectExists):
        store.create("format.json", b"another vault")
    with pytest.raises(StoreError):
        store.delete("format.json")
    assert "format.json" in {info.key for info in store.list("")}


@pytest.mark.parametrize(
    ("overwrites", "grow_only", "finding", "level"),
    [
        (True, False, "store-grow-only", "error"),
        (True, True, "store-grow-only", "info"),
        (False, True, "store-full", "info"),
        (False, False, "store-full", "info"),
    ],
)
def test_doctor_compares_the_config_with_what_the_store_does(
    place: Place,
    s3_endpoint: str,
    rclone_endpoint: str,
    overwrites: bool,
    grow_only: bool,
    finding: str,
    level: str,
) -> None:
    endpoint = rclone_endpoint if overwrites else s3_endpoint
    settings = {"grow_only": True} if grow_only else {}
    (found,) = examined(place.config(anywhere(), endpoint, **settings))
    assert (found.id, found.level) == (finding, level)
    assert ("can be taken out" in found.message) is (grow_only and not overwrites)
    assert bool(found.hint) is (level == "error")


@pytest.fixture
def locking_bucket(s3_endpoint: str) -> str:
    client = boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    if LOCKING_BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=LOCKING_BUCKET, ObjectLockEnabledForBucket=True)
    return LOCKING_BUCKET


def test_a_vault_is_locked_from_its_first_object(
    place: Place, s3_endpoint: str, locking_bucket: str
) -> None:
    config = place.config(anywhere(locking_bucket), s3_endpoint, immutable_for="30d")
    place.make_vault(config)
    store = next(layer for layer in layers(opened(config)) if isinstance(layer, LockingStore))
    keys = [info.key for info in store.list("")]
    assert "format.json" in keys
    assert [key for key in keys if key.startswith("probe/")] == []
    soon = bootstrap.now() + timedelta(days=29)
    assert [key for key in keys if (store.locked_until(key) or soon) <= soon] == []


@pytest.mark.parametrize("locks", [True, False])
def test_doctor_asks_the_bucket_for_its_lock(
    place: Place, s3_endpoint: str, locking_bucket: str, locks: bool
) -> None:
    url = anywhere(locking_bucket if locks else BUCKET)
    findings = examined(place.config(url, s3_endpoint, immutable_for="30d"))
    expected = ("store-locks", "info") if locks else ("store-lock-absent", "error")
    assert (("store-full", "info"), expected) == tuple((f.id, f.level) for f in findings)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("bandwidth", "fast", "not a size"),
        ("bandwidth", "0B", "lets nothing through"),
        ("timeout", "0s", "no time at all"),
        ("encryption", "rot13", "AES256"),
    ],
)
def test_what_is_no_setting_is_said(place: Place, setting: str, value: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        place.config("file:///srv", **{setting: value})
    assert said in str(caught.value)


def test_doctor_counts_what_it_read_back(
    place: Place, s3_endpoint: str, locking_bucket: str
) -> None:
    """A bucket on this host is no other place; without a point there is nothing to count."""
    config = place.config(anywhere(locking_bucket), s3_endpoint, immutable_for="30d")
    place.make_vault(config)
    keys = f'[vault]\nwrite_key = {{ file = "{place.directory}/write" }}'
    config.path.write_text(config.path.read_text().replace("[vault]", keys))
    looks = dict(bootstrap.examinations(load(config.path)))
    told = {finding.id: finding.level for finding in looks["vault"]()}
    assert {name: level for name, level in told.items() if name.startswith("copies")} == {
        "copies": "warning",
        "copies-media": "warning",
        "copies-off-site": "warning",
        "copies-immutable": "warning",
        "copies-errors": "warning",
    }
