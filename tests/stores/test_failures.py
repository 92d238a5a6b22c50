"""What is said when a store fails, on each cloud: every error names what to look at."""

from __future__ import annotations

import base64
import itertools
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from cellarer.errors import ObjectLocked, ObjectMissing, StoreError
from cellarer.ports import Store
from cellarer.stores import open_store
from cellarer.stores.settings import StoreSettings
from emulators import azure_options as options_of_azure
from emulators import google_options as options_of_google
from servers import BUCKET, Answering, Reply, Request, answering, s3_options

CONTENT = random.Random(3).randbytes(300_000)
WAYS: dict[str, Callable[[str], dict[str, str]]] = {
    "s3": s3_options, "gs": options_of_google, "az": options_of_azure,
}  # fmt: skip
IMPATIENT = StoreSettings(timeout=timedelta(seconds=1))

each_cloud = pytest.mark.parametrize("scheme", WAYS)


def opened(scheme: str, endpoint: str, settings: StoreSettings | None = None) -> Store:
    options = WAYS[scheme](endpoint)
    return open_store(f"{scheme}://{BUCKET}/vault", options, settings or StoreSettings())


def everything(store: Store) -> list[Callable[[], object]]:
    """One of each operation."""
    return [
        lambda: store.create("one", b"content"),
        lambda: store.read("one"),
        lambda: store.read_range("one", 0, 1),
        lambda: list(store.list("")),
        lambda: store.delete("one"),
    ]


@pytest.fixture
def canned() -> Iterator[Answering]:
    """A server that has only what a test makes up."""
    with answering(lambda request: Reply(404)) as server:
        yield server


def test_wrong_credentials(rclone_endpoint: str, azure_options: dict[str, str]) -> None:
    """Of servers that check signatures."""
    wrong = base64.b64encode(b"another key").decode()
    for scheme, options in (("s3", s3_options(rclone_endpoint)), ("az", azure_options)):
        store = open_store(f"{scheme}://{BUCKET}/vault", options | {"secret_access_key": wrong})
        for act in everything(store):
            with pytest.raises(StoreError) as caught:
                act()
            assert not caught.value.retryable
            assert re.search("check the keys|allow reading", caught.value.hint)
            assert wrong not in str(caught.value.as_json())


def test_a_bucket_that_is_not_there(
    s3_endpoint: str, google_options: dict[str, str], azure_options: dict[str, str]
) -> None:
    ways = {"s3": s3_options(s3_endpoint), "gs": google_options, "az": azure_options}
    for scheme, options in ways.items():
        store = open_store(f"{scheme}://no-such-bucket/vault", options)
        with pytest.raises(StoreError) as caught:
            store.create("one", b"content")
        assert not isinstance(caught.value, ObjectMissing)
        assert "no such bucket" in caught.value.detail
        assert "create it" in caught.value.hint
        assert not caught.value.retryable


@each_cloud
def test_an_endpoint_where_nobody_listens(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = opened(scheme, f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError) as caught:
        store.read("one")
    assert caught.value.retryable
    assert "does not answer" in caught.value.detail
    assert "firewall" in caught.value.hint


@each_cloud
def test_an_endpoint_that_does_not_speak_the_language(scheme: str, canned: Answering) -> None:
    canned.answer = lambda request: Reply(501)
    with pytest.raises(StoreError) as caught:
        opened(scheme, canned.endpoint).create("one", b"content")
    assert "endpoint" in caught.value.hint
    assert not caught.value.retryable


def serving(parts: Callable[[], Reply]) -> Callable[[Request], Reply]:
    """Answers reads of one object in a way of its own; `parts` gives the shape of the reply."""

    def answer(request: Request) -> Reply:
        if request.method != "GET":
            return Reply(404)
        shape, found = parts(), re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        headers = {"last-modified": "Tue, 24 Nov 2026 00:00:00 GMT", "etag": '"1"'}
        if not found:
            return Reply(200, CONTENT, headers, shape.breaks_off, shape.stalls)
        first, last = int(found[1]), int(found[2] or len(CONTENT) - 1)
        headers["content-range"] = f"bytes {first}-{last}/{len(CONTENT)}"
        return Reply(206, CONTENT[first : last + 1], headers, shape.breaks_off, shape.stalls)

    return answer


@each_cloud
def test_a_read_that_is_reset_in_the_middle_goes_on(scheme: str, canned: Answering) -> None:
    numbers = itertools.count()
    canned.answer = serving(lambda: Reply(breaks_off=next(numbers) < 2))
    assert opened(scheme, canned.endpoint).read("one") == CONTENT
    assert next(numbers) > 2


@each_cloud
def test_a_read_that_is_reset_without_end_is_an_error(scheme: str, canned: Answering) -> None:
    canned.answer = serving(lambda: Reply(breaks_off=True))
    with pytest.raises(StoreError) as caught:
        opened(scheme, canned.endpoint).read("one")
    assert caught.value.retryable
    assert caught.value.hint


@pytest.mark.long
@each_cloud
def test_a_read_that_stalls_ends(scheme: str, canned: Answering) -> None:
    forever = threading.Event()
    canned.answer = serving(lambda: Reply(stalls=forever))
    try:
        with pytest.raises(StoreError) as caught:
            opened(scheme, canned.endpoint, IMPATIENT).read("one")
    finally:
        forever.set()
    assert caught.value.retryable
    assert "in time" in caught.value.detail
    assert caught.value.hint


@pytest.mark.parametrize(
    ("scheme", "status", "code"),
    [
        ("gs", 403, "RetentionPolicyNotMet"),
        ("az", 409, "BlobImmutableDueToPolicy"),
        ("s3", 403, "ObjectLocked"),
    ],
)
def test_an_object_under_the_retention_of_its_bucket(
    scheme: str, status: int, code: str, canned: Answering
) -> None:
    canned.answer = lambda request: Reply(status, f"<Error><Code>{code}</Code></Error>".encode())
    with pytest.raises(ObjectLocked) as caught:
        opened(scheme, canned.endpoint).delete("one")
    assert caught.value.until is None
    assert "retention has passed" in caught.value.hint


def test_a_storage_class_that_is_none(s3_endpoint: str) -> None:
    store = opened("s3", s3_endpoint, StoreSettings(storage_class="LUKEWARM"))
    with pytest.raises(StoreError) as caught:
        store.create("one", bytes(1 << 20))
    assert "storage_class" in caught.value.hint
    assert list(store.list("")) == []
