"""Google Cloud Storage and Azure: the same promises, asked of servers that answer as they do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from cellarer.errors import ObjectExists, ObjectMissing, UsageError
from cellarer.ports import Store
from cellarer.stores import open_store
from servers import Answering, Reply, Request, answering

ACCOUNT_KEY = base64.b64encode(b"an account's key").decode()
TIMES = {"last-modified": "Tue, 24 Nov 2026 00:00:00 GMT", "etag": '"1"'}


class Bucket:
    """Single objects with a condition on creating them, in the words of either cloud."""

    def __init__(self, condition: tuple[str, str], missing: str) -> None:
        self.condition, self.missing = condition, missing
        self.objects: dict[str, bytes] = {}

    def answer(self, request: Request) -> Reply:
        path = request.path.split("?")[0]
        if request.method == "PUT":
            name, value = self.condition
            conditional = request.headers.get(name) == value
            if conditional and path in self.objects:
                return Reply(self.refusal)
            self.objects[path] = request.body
            return Reply(201, headers=TIMES)
        if path not in self.objects:
            body = f"<Error><Code>{self.missing}</Code></Error>".encode()
            return Reply(404, body)
        if request.method == "DELETE":
            del self.objects[path]
            return Reply(202)
        return Reply(200, self.objects[path], TIMES)

    refusal = 409


@pytest.fixture
def google() -> Iterator[tuple[Store, Answering, Bucket]]:
    bucket = Bucket(("x-goog-if-generation-match", "0"), "NoSuchKey")
    bucket.refusal = 412
    with answering(bucket.answer) as server:
        key = {
            "client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True,
        }  # fmt: skip
        options = {"service_account_key": json.dumps(key), "endpoint": server.endpoint}
        yield open_store("gs://bucket/vault", options), server, bucket


@pytest.fixture
def azure() -> Iterator[tuple[Store, Answering, Bucket]]:
    bucket = Bucket(("if-none-match", "*"), "BlobNotFound")
    with answering(bucket.answer) as server:
        options = {
            "access_key_id": "account",
            "secret_access_key": ACCOUNT_KEY,
            "endpoint": f"{server.endpoint}/account",
        }
        yield open_store("az://container/vault", options), server, bucket


@pytest.fixture(params=["google", "azure"])
def cloud(request: pytest.FixtureRequest) -> tuple[Store, Answering, Bucket]:
    found: tuple[Store, Answering, Bucket] = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("size_bytes", [7, 2 << 20])
def test_creating_is_conditional(cloud: tuple[Store, Answering, Bucket], size_bytes: int) -> None:
    store, _, bucket = cloud
    first, second = b"1" * size_bytes, b"2" * size_bytes
    store.create("packs/one", first)
    store.create("packs/one", first)
    with pytest.raises(ObjectExists):
        store.create("packs/one", second)
    assert list(bucket.objects.values()) == [first]
    assert store.read("packs/one") == first


def test_the_prefix_and_the_bucket_are_in_the_path(
    cloud: tuple[Store, Answering, Bucket],
) -> None:
    store, server, _ = cloud
    store.create("packs/one", b"content")
    path = unquote(server.requests[0].path.split("?")[0])
    assert path.endswith(("/bucket/vault/packs/one", "/container/vault/packs/one"))


def test_what_is_not_there_is_missing(cloud: tuple[Store, Answering, Bucket]) -> None:
    store, _, _ = cloud
    with pytest.raises(ObjectMissing):
        store.read("none")


def test_google_says_that_nothing_was_there_to_delete(
    google: tuple[Store, Answering, Bucket],
) -> None:
    store, _, bucket = google
    store.create("one", b"content")
    store.delete("one")
    assert not bucket.objects
    store.delete("one")


def test_keys_that_are_none_are_not_quoted() -> None:
    for url, options in (
        ("az://container", {"access_key_id": "account", "secret_access_key": "not base64 SECRET"}),
        ("gs://bucket", {"service_account_key": '{"private_key": "SECRET'}),
    ):
        with pytest.raises(UsageError) as caught:
            open_store(url, options)
        assert "SECRET" not in str(caught.value.as_json())
        assert caught.value.__cause__ is None
        assert caught.value.hint
