"""Objects that the store itself refuses to delete, and what else is asked of it with an upload."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from cellarer.errors import (
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    StoreError,
    ToolMissing,
    UsageError,
)
from cellarer.ports import Retaining, Store, retaining
from cellarer.stores import open_layered, open_store
from cellarer.stores.object_lock import LockingStore
from cellarer.stores.objectstore import COLD_BYTES
from cellarer.stores.settings import StoreSettings
from servers import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, s3_options

LOCKING_BUCKET = "locking-bucket"
MONTH = timedelta(days=30)


@pytest.fixture
def amazon(s3_endpoint: str) -> Any:
    """The server as Amazon's own tools see it."""
    return boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )


@pytest.fixture
def open_locking(amazon: Any, s3_endpoint: str) -> Callable[..., LockingStore]:
    """Stores of one bucket with object lock, below a prefix that nobody else has."""
    held = {bucket["Name"] for bucket in amazon.list_buckets()["Buckets"]}
    if LOCKING_BUCKET not in held:
        amazon.create_bucket(Bucket=LOCKING_BUCKET, ObjectLockEnabledForBucket=True)
    prefix = secrets.token_hex(8)

    def opened(immutable_for: timedelta = MONTH, **settings: Any) -> LockingStore:
        wanted = StoreSettings(immutable_for=immutable_for, **settings)
        store = open_store(f"s3://{LOCKING_BUCKET}/{prefix}", s3_options(s3_endpoint), wanted)
        assert isinstance(store, LockingStore)
        return store

    return opened


def named(store: Store, key: str) -> dict[str, str]:
    _, _, bucket, prefix = store.url.split("/", 3)
    return {"Bucket": bucket, "Key": f"{prefix}/{key}"}


def near(time: datetime | None, expected: datetime) -> bool:
    return time is not None and abs(time - expected) < timedelta(minutes=1)


def test_an_object_is_locked_as_it_is_written(
    open_locking: Callable[..., LockingStore], amazon: Any
) -> None:
    store = open_locking()
    store.create("packs/one", b"content")
    head = amazon.head_object(**named(store, "packs/one"))
    assert head["ObjectLockMode"] == "COMPLIANCE"
    assert near(head["ObjectLockRetainUntilDate"], datetime.now(UTC) + MONTH)
    assert store.locked_until("packs/one") == head["ObjectLockRetainUntilDate"]
    assert store.read("packs/one") == b"content"


def test_a_locked_object_cannot_be_deleted_and_it_is_said_until_when(
    open_locking: Callable[..., LockingStore], amazon: Any
) -> None:
    store = open_locking()
    store.create("one", b"content")
    until = store.locked_until("one")
    with pytest.raises(ObjectLocked) as caught:
        store.delete("one")
    assert caught.value.until == until
    assert f"{until:%Y-%m-%d %H:%M:%S} UTC" in caught.value.detail
    assert not caught.value.retryable
    assert store.read("one") == b"content"
    assert [info.key for info in store.list("")] == ["one"]
    versions = amazon.list_object_versions(Bucket=LOCKING_BUCKET, Prefix=named(store, "one")["Key"])
    assert "DeleteMarkers" not in versions


def test_after_its_time_an_object_goes_with_all_its_versions(
    open_locking: Callable[..., LockingStore], amazon: Any
) -> None:
    store = open_locking(immutable_for=timedelta(seconds=-1))
    store.create("one", b"content")
    amazon.put_object(**named(store, "one"), Body=b"overwritten by somebody else")
    store.delete("one")
    with pytest.raises(ObjectMissing):
        store.read("one")
    versions = amazon.list_object_versions(Bucket=LOCKING_BUCKET, Prefix=named(store, "one")["Key"])
    assert "Versions" not in versions
    assert "DeleteMarkers" not in versions
    store.delete("one")


def test_a_lock_is_extended_and_never_shortened(
    open_locking: Callable[..., LockingStore],
) -> None:
    store = open_locking()
    store.create("one", b"content")
    begun = store.locked_until("one")
    assert begun is not None
    store.extend_lock("one", begun - MONTH / 2)
    assert store.locked_until("one") == begun
    store.extend_lock("one", begun + MONTH)
    assert store.locked_until("one") == begun + MONTH


def test_what_nothing_locks_is_known_and_can_be_locked(
    open_locking: Callable[..., LockingStore], amazon: Any
) -> None:
    store = open_locking()
    amazon.put_object(**named(store, "one"), Body=b"content")
    assert store.locked_until("one") is None
    until = datetime.now(UTC).replace(microsecond=0) + MONTH
    store.extend_lock("one", until)
    assert store.locked_until("one") == until
    with pytest.raises(ObjectLocked):
        store.delete("one")


def test_what_is_not_there_has_no_lock(open_locking: Callable[..., LockingStore]) -> None:
    store = open_locking()
    with pytest.raises(ObjectMissing):
        store.locked_until("none")
    with pytest.raises(ObjectMissing):
        store.extend_lock("none", datetime.now(UTC) + MONTH)


def test_locking_keeps_what_a_store_promises(open_locking: Callable[..., LockingStore]) -> None:
    store, barrier = open_locking(), threading.Barrier(8)

    def race(number: int) -> bytes | None:
        data = bytes([number]) * 100_000
        barrier.wait()
        try:
            store.create("race", data)
        except ObjectExists:
            return None
        return data

    with ThreadPoolExecutor(8) as pool:
        (winner,) = [data for data in pool.map(race, range(8)) if data is not None]
    assert store.read("race") == winner
    store.create("race", winner)


def test_locks_are_found_through_the_layers(
    open_locking: Callable[..., LockingStore], s3: Store, s3_endpoint: str
) -> None:
    url = open_locking().url
    settings = StoreSettings(immutable_for=MONTH, bandwidth=10**9, grow_only=True)
    layered = open_layered(url, s3_options(s3_endpoint), settings)
    layered.create("one", b"content")
    assert not isinstance(layered, Retaining)
    lock = retaining(layered)
    assert lock is not None
    assert near(lock.locked_until("one"), datetime.now(UTC) + MONTH)
    assert lock.locks()
    assert retaining(s3) is None


def test_a_bucket_without_locks_is_known_and_takes_nothing(s3_endpoint: str) -> None:
    settings = StoreSettings(immutable_for=MONTH)
    store = open_store(f"s3://{BUCKET}/{secrets.token_hex(8)}", s3_options(s3_endpoint), settings)
    assert isinstance(store, LockingStore)
    assert not store.locks()
    with pytest.raises(StoreError) as caught:
        store.create("one", b"content")
    assert "ObjectLockConfiguration" in caught.value.detail
    assert "object lock" in caught.value.hint
    assert list(store.list("")) == []


def test_a_missing_bucket_is_said(s3_endpoint: str) -> None:
    settings = StoreSettings(immutable_for=MONTH)
    store = open_store("s3://no-such-bucket/vault", s3_options(s3_endpoint), settings)
    with pytest.raises(StoreError) as caught:
        store.create("one", b"content")
    assert "no such bucket" in caught.value.detail


def test_a_dead_endpoint_is_one_that_may_come_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    store = open_store("s3://bucket", s3_options(endpoint), StoreSettings(immutable_for=MONTH))
    with pytest.raises(StoreError) as caught:
        store.create("one", b"content")
    assert caught.value.retryable
    assert "does not answer" in caught.value.detail


# ------------------------------------------------------------------- classes and encryption


@pytest.mark.parametrize("locking", [False, True])
def test_a_storage_class_is_for_large_objects(
    open_locking: Callable[..., LockingStore],
    s3: Store,
    s3_endpoint: str,
    amazon: Any,
    locking: bool,
) -> None:
    settings = StoreSettings(storage_class="STANDARD_IA")
    store: Store = (
        open_locking(storage_class="STANDARD_IA")
        if locking
        else open_store(s3.url, s3_options(s3_endpoint), settings)
    )
    store.create("large", bytes(COLD_BYTES))
    store.create("small", bytes(COLD_BYTES - 1))
    assert amazon.head_object(**named(store, "large"))["StorageClass"] == "STANDARD_IA"
    assert "StorageClass" not in amazon.head_object(**named(store, "small"))


@pytest.mark.parametrize("locking", [False, True])
def test_encryption_by_the_server_is_asked_for(
    open_locking: Callable[..., LockingStore],
    s3: Store,
    s3_endpoint: str,
    amazon: Any,
    locking: bool,
) -> None:
    settings = StoreSettings(encryption="aws:kms", kms_key="alias/backups")
    store: Store = (
        open_locking(encryption="aws:kms", kms_key="alias/backups")
        if locking
        else open_store(s3.url, s3_options(s3_endpoint), settings)
    )
    store.create("one", b"content")
    head = amazon.head_object(**named(store, "one"))
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/backups")


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("s3://bucket", {"storage_class": "DEEP_ARCHIVE"}, "STANDARD_IA"),
        ("az://bucket", {"storage_class": "Archive"}, "Cool"),
        ("file:///srv", {"storage_class": "STANDARD_IA"}, "leave storage_class out"),
        ("s3://bucket", {"encryption": "rot13"}, "AES256"),
        ("s3://bucket", {"kms_key": "key"}, "aws:kms"),
        ("s3://bucket", {"kms_key": "key", "encryption": "AES256"}, "aws:kms"),
        ("gs://bucket", {"encryption": "AES256"}, "--default-encryption-key"),
        ("az://bucket", {"encryption": "AES256"}, "encryption scope"),
        ("file:///srv", {"encryption": "AES256"}, "the disk"),
        ("gs://bucket", {"immutable_for": MONTH}, "--retention-period"),
        ("az://bucket", {"immutable_for": MONTH}, "retention policy"),
        ("file:///srv", {"immutable_for": MONTH}, "s3://"),
    ],
)
def test_what_a_cloud_cannot_be_asked_for(url: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url, {}, StoreSettings(**settings))
    assert said in f"{caught.value} {caught.value.hint}"


# ------------------------------------------------------------------------------------- profiles


@pytest.fixture
def profiles(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home whose `~/.aws` has one profile, and an environment without keys."""
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text(
        f"[work]\naws_access_key_id = {ACCESS_KEY_ID}\n"
        f"aws_secret_access_key = {SECRET_ACCESS_KEY}\n"
    )
    config.write_text(
        "[profile work]\nregion = eu-central-1\n[profile empty]\nregion = x\n"
        "[profile broken]\ncredential_process = /bin/sh -c 'echo SECRET; exit 1'\n"
        "[profile sso]\nsso_session = office\nsso_account_id = 1\nsso_role_name = backup\n"
        "[sso-session office]\nsso_region = us-east-1\nsso_start_url = https://cellarer.invalid\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize("by_environment", [False, True])
def test_a_profile_gives_credentials_and_region(
    rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    """This server checks signatures."""
    options = {"endpoint": rclone_endpoint, "profile": "work"}
    if by_environment:
        del options["profile"]
        monkeypatch.setenv("AWS_PROFILE", "work")
    store = open_store(f"s3://{BUCKET}/{secrets.token_hex(8)}", options)
    store.create("one", b"content")
    assert store.read("one") == b"content"


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize("profile", ["nobody", "empty", "broken"])
def test_a_profile_that_is_none(profile: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store("s3://bucket", {"profile": profile})
    assert profile in caught.value.hint
    assert "SECRET" not in str(caught.value.as_json())
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("profiles")
def test_a_sign_on_that_has_to_be_made_again(s3_endpoint: str) -> None:
    """Of obstore and of Amazon's own library."""
    options = {"profile": "sso", "endpoint": s3_endpoint}
    store = open_store(f"s3://{BUCKET}/vault", options, StoreSettings(immutable_for=MONTH))
    acts: list[Callable[[], object]] = [
        lambda: store.read("one"),
        lambda: store.create("one", b"content"),
    ]
    for act in acts:
        with pytest.raises(StoreError) as caught:
            act()
        assert "aws sso login" in caught.value.hint
        assert "Token" in caught.value.detail
        assert not caught.value.retryable


@pytest.mark.parametrize(
    ("options", "settings"),
    [({"profile": "work"}, StoreSettings()), ({}, StoreSettings(immutable_for=MONTH))],
)
def test_without_the_library_it_is_named(
    options: dict[str, str], settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellarer.stores.aws.find_spec", lambda name: None)
    with pytest.raises(ToolMissing) as caught:
        open_store("s3://bucket", options, settings)
    assert "cellarer[aws]" in caught.value.hint
