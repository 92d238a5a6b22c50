"""Addresses and options, and what is said of those that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellarer.errors import UsageError
from cellarer.stores import open_store
from cellarer.stores.local import LocalStore

KEYS = {"access_key_id": "id", "secret_access_key": "SECRET"}


def test_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "with space" / "100%"
    store = open_store(directory.as_uri(), {})
    store.create("one", b"content")
    assert (directory / "one").read_bytes() == b"content"
    assert store.url == directory.as_uri()
    assert isinstance(store, LocalStore)


def test_nothing_is_made_before_something_is_stored(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri(), {})
    assert list(store.list("")) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket/a/b/", "s3://my.bucket/a/b"),
        ("s3://bucket//a", "s3://bucket/a"),
    ],
)
def test_a_bucket(url: str, shown: str) -> None:
    assert open_store(url, KEYS).url == shown


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("", {}, "file://, s3://, gs://, az://"),
        ("ftp://host/path", {}, "file://, s3://, gs://, az://"),
        ("memory://", {}, "file://, s3://, gs://, az://"),
        ("/srv/backups", {}, "file:///srv/backups"),
        ("backups", {}, "file://"),
        ("file:backups", {}, "three slashes"),
        ("file://srv/backups", {}, "three slashes"),
        ("file:///srv/backups", {"region": "x"}, "no option region"),
        ("s3://", KEYS, "s3://bucket/prefix"),
        ("s3:///bucket", KEYS, "s3://bucket/prefix"),
        ("s3://bucket/a b", KEYS, "s3://bucket/prefix"),
        ("s3://bucket/../other", KEYS, "s3://bucket/prefix"),
        ("s3://bucket/a?versioning=1", KEYS, "%3F"),
        ("s3://bucket", {"regoin": "x"}, "region"),
        ("s3://bucket", {"access_key_id": "id"}, "secret_access_key is missing"),
        ("s3://bucket", {"secret_access_key": "SECRET"}, "access_key_id is missing"),
        ("s3://bucket", {**KEYS, "endpoint": "127.0.0.1:9000"}, "https://host"),
        ("s3://bucket", {**KEYS, "endpoint": "ftp://host"}, "https://host"),
        ("gs://bucket", KEYS, "no option access_key_id"),
        ("az://container", {}, "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_what_cannot_be_meant(
    url: str, options: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UsageError) as caught:
        open_store(url, options)
    assert said in f"{caught.value} {caught.value.hint}"
    assert "SECRET" not in str(caught.value.as_json())


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("s3://id:SECRET@bucket/prefix", "https://host"),
        ("s3://bucket/prefix", "https://id:SECRET@host"),
        ("s3://bucket/prefix", "https://host/?key=SECRET"),
        ("s3://bucket/prefix?key=SECRET", "https://host"),
        ("file://id:SECRET@host/path", ""),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_quoted(url: str, endpoint: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url, {"endpoint": endpoint} if endpoint else {})
    assert "SECRET" not in str(caught.value.as_json())
