"""What object stores do wrong, or say oddly, and what `ObjectStore` makes of it."""

from __future__ import annotations

import itertools
import random
import socket
import traceback
from collections.abc import Callable, Iterator

import pytest

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing, StoreError
from cellarer.ports import Store
from cellarer.stores import open_store
from servers import (
    ACCESS_KEY_ID,
    BUCKET,
    SECRET_ACCESS_KEY,
    Answer,
    Answering,
    Drop,
    Reply,
    Request,
    answering,
    s3_options,
)

URL = f"s3://{BUCKET}/vault"


@pytest.fixture
def through(between: Answering) -> Store:
    """A real store, with a server in front that a test may let interfere."""
    prefix = f"test-{random.SystemRandom().randrange(1 << 32)}"
    return open_store(f"s3://{BUCKET}/{prefix}", s3_options(between.endpoint))


@pytest.fixture
def canned() -> Iterator[Answering]:
    """A server that has only what a test makes up."""
    with answering(lambda request: Reply(404)) as server:
        yield server


@pytest.fixture
def made_up(canned: Answering) -> Store:
    return open_store(URL, s3_options(canned.endpoint))


def xml(code: str, message: str = "") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def for_the_first(count: int, method: str, instead: Answer, usual: Answer) -> Answer:
    """Answer the first requests of a method in another way."""
    numbers = itertools.count()

    def answer(request: Request) -> Reply:
        if request.method == method and next(numbers) < count:
            return instead(request)
        return usual(request)

    return answer


def everything(store: Store) -> list[Callable[[], object]]:
    """One of each operation."""
    return [
        lambda: store.create("one", b"content"),
        lambda: store.create("one", bytes(2 << 20)),
        lambda: store.read("one"),
        lambda: store.read_range("one", 0, 1),
        lambda: store.read_range("one", 0, 0),
        lambda: list(store.list("")),
        lambda: store.delete("one"),
    ]


# ---------------------------------------------------------------------------- create if absent


def test_a_large_object_goes_in_one_conditional_request(through: Store, between: Answering) -> None:
    """In parts, the last request would not ask whether something is there."""
    data = random.Random(1).randbytes(9 << 20)
    through.create("large", data)
    assert [request.method for request in between.requests] == ["PUT"]
    assert between.requests[0].headers["if-none-match"] == "*"
    assert through.read("large") == data


def test_a_conflict_that_left_nothing_is_tried_again(through: Store, between: Answering) -> None:
    """S3 says 409 where another request for the same name was in flight and then failed."""

    def conflict(request: Request) -> Reply:
        return Reply(409, xml("ConditionalRequestConflict"))

    between.answer = for_the_first(2, "PUT", conflict, between.answer)
    through.create("one", b"content")
    assert through.read("one") == b"content"


def test_a_conflict_without_end_is_an_error_that_may_pass(
    through: Store, between: Answering
) -> None:
    def conflict(request: Request) -> Reply:
        return Reply(409, xml("ConditionalRequestConflict"))

    between.answer = for_the_first(1000, "PUT", conflict, between.answer)
    with pytest.raises(StoreError) as caught:
        through.create("one", b"content")
    assert caught.value.retryable
    assert not isinstance(caught.value, ObjectExists)


def test_a_conflict_with_another_object_is_one(through: Store, between: Answering) -> None:
    through.create("one", b"content")
    between.answer = for_the_first(
        1, "PUT", lambda request: Reply(409, xml("OperationAborted")), between.answer
    )
    with pytest.raises(ObjectExists):
        through.create("one", b"another")


@pytest.mark.parametrize("size_bytes", [7, 2 << 20])
def test_a_lost_reply_is_no_conflict_with_oneself(
    through: Store, between: Answering, size_bytes: int
) -> None:
    """The object is stored, the reply is lost; the next attempt is told that it exists."""
    usual = between.answer

    def lose(request: Request) -> Reply:
        usual(request)
        raise Drop

    between.answer = for_the_first(1, "PUT", lose, usual)
    data = random.Random(1).randbytes(size_bytes)
    problem = None
    try:
        through.create("one", data)
    except StoreError as error:
        problem = error
    assert problem is None or problem.retryable
    through.create("one", data)
    assert through.read("one") == data


# --------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("sent", ["bytes 0-6/100", "bytes 0-6/7", "bytes 3-9/100"])
def test_a_range_that_comes_short_is_never_handed_on(
    made_up: Store, canned: Answering, sent: str
) -> None:
    """An object of 100 bytes, of which the store sends 7 where 10 are asked for."""
    times = {"last-modified": "Tue, 24 Nov 2026 00:00:00 GMT", "etag": '"1"'}

    def answer(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(200, bytes(100), times)
        return Reply(206, bytes(7), times | {"content-range": sent})

    canned.answer = answer
    with pytest.raises(StoreError):
        made_up.read_range("one", 0, 10)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.timeout(30)
def test_a_dead_endpoint_is_given_up_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = open_store(URL, s3_options(f"http://127.0.0.1:{port}"))
    for act in everything(store):
        with pytest.raises(StoreError) as caught:
            act()
        assert caught.value.retryable
        assert "Connection refused" in caught.value.detail
        assert "endpoint" in caught.value.hint


@pytest.mark.timeout(30)
def test_an_endpoint_without_an_address_is_given_up_soon() -> None:
    store = open_store(URL, s3_options("http://cellarer.invalid"))
    with pytest.raises(StoreError) as caught:
        store.read("one")
    assert caught.value.retryable
    assert "name service" in caught.value.hint


def test_a_passing_failure_is_not_noticed(through: Store, between: Answering) -> None:
    usual = between.answer
    through.create("one", b"content")
    for method, act in (
        ("GET", lambda: through.read("one")),
        ("PUT", lambda: through.create("two", b"content")),
        ("DELETE", lambda: through.delete("one")),
    ):
        between.answer = for_the_first(1, method, lambda request: Reply(503), usual)
        act()
    between.answer = usual
    assert [info.key for info in through.list("")] == ["two"]


@pytest.mark.parametrize(
    ("status", "code", "hint", "retryable"),
    [
        (403, "AccessDenied", "allow reading, writing", False),
        (403, "SignatureDoesNotMatch", "check the keys", False),
        (403, "InvalidAccessKeyId", "check the keys", False),
        (400, "ExpiredToken", "not expired", False),
        (403, "RequestTimeTooSkewed", "NTP", False),
        (404, "NoSuchBucket", "create it", False),
        (404, "ContainerNotFound", "create it", False),
        (400, "PermanentRedirect", "region", False),
        (400, "AuthorizationHeaderMalformed", "region", False),
        (400, "KMS.DisabledException", "kms_key", False),
        (400, "SomethingElse", "endpoint", False),
    ],
)
def test_a_refusal_says_what_to_look_at(
    made_up: Store, canned: Answering, status: int, code: str, hint: str, retryable: bool
) -> None:
    canned.answer = lambda request: Reply(status, xml(code, "the store's own words"))
    with pytest.raises(StoreError) as caught:
        made_up.read("one")
    assert hint in caught.value.hint
    assert caught.value.retryable is retryable
    assert f"HTTP {status} {code}: the store's own words" in caught.value.detail
    assert URL in caught.value.detail


def test_a_redirect_means_another_region(made_up: Store, canned: Answering) -> None:
    canned.answer = lambda request: Reply(301, xml("PermanentRedirect"))
    with pytest.raises(StoreError) as caught:
        made_up.read("one")
    assert "region" in caught.value.hint


def test_an_overloaded_store_may_be_asked_again(made_up: Store, canned: Answering) -> None:
    canned.answer = lambda request: Reply(503, xml("SlowDown"))
    with pytest.raises(StoreError) as caught:
        made_up.create("one", b"content")
    assert caught.value.retryable


def test_a_missing_bucket_is_not_a_missing_object(between: Answering) -> None:
    store = open_store("s3://no-such-bucket/vault", s3_options(between.endpoint))
    acts = everything(store)
    del acts[4]  # a request for the size alone gets no reason with its 404
    for act in acts:
        with pytest.raises(StoreError) as caught:
            act()
        assert not isinstance(caught.value, ObjectMissing)
        assert "no such bucket" in caught.value.detail


def test_a_right_that_is_missing_only_for_deleting(through: Store, between: Answering) -> None:
    through.create("one", b"content")
    denied = for_the_first(
        1000, "DELETE", lambda request: Reply(403, xml("AccessDenied")), between.answer
    )
    between.answer = denied
    with pytest.raises(StoreError) as caught:
        through.delete("one")
    assert not caught.value.retryable
    assert through.read("one") == b"content"


def test_no_secret_is_in_an_error(canned: Answering) -> None:
    """Stores quote requests in their replies: this one all that it was sent."""

    def quote(request: Request) -> Reply:
        said = f"{SECRET_ACCESS_KEY} {request.headers}"
        return Reply(403, xml("SignatureDoesNotMatch", "wrong") + said.encode())

    canned.answer = quote
    options = s3_options(canned.endpoint) | {"session_token": "a-session-token"}
    store = open_store(URL, options)
    for act in everything(store):
        with pytest.raises(StoreError) as caught:
            act()
        error = caught.value
        said = "".join(traceback.format_exception(error)) + str(error.as_json())
        for secret in (SECRET_ACCESS_KEY, ACCESS_KEY_ID, "a-session-token", "AWS4-HMAC"):
            assert secret not in said
    assert store.url == URL


def test_a_listing_out_of_order_is_refused(made_up: Store, canned: Answering) -> None:
    """Whoever compares two sorted listings would take what comes late for missing."""
    entry = (
        "<Contents><Key>vault/{}</Key><Size>1</Size><ETag>1</ETag>"
        "<LastModified>2026-11-24T00:00:00Z</LastModified></Contents>"
    )
    entries = "".join(entry.format(name) for name in ("a/c", "a-b"))
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    canned.answer = lambda request: Reply(200, body.encode(), {"content-type": "application/xml"})
    with pytest.raises(StoreError) as caught:
        list(made_up.list(""))
    assert "sort" in caught.value.hint


def test_what_others_put_there_is_no_object(through: Store, between: Answering) -> None:
    through.create("a/one", b"content")
    path = between.requests[0].path.rsplit("/", 2)[0]
    for name in ("a/.hidden", "a%20b", "a/%C3%BC"):
        between.answer(Request("PUT", f"{path}/{name}", {"content-length": "0"}, b""))
    assert [info.key for info in through.list("")] == ["a/one"]


# ----------------------------------------------------------------------- credentials and proxies


def test_given_keys_are_not_mixed_with_the_environment(
    canned: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "somebody-elses")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-elses")
    canned.answer = lambda request: Reply(404, xml("NoSuchKey"))
    store = open_store(URL, s3_options(canned.endpoint))
    with pytest.raises(ObjectMissing):
        store.read("one")
    (request,) = canned.requests
    assert ACCESS_KEY_ID in request.headers["authorization"]
    assert "x-amz-security-token" not in request.headers


def test_without_keys_the_environment_is_asked(
    canned: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    canned.answer = lambda request: Reply(404, xml("NoSuchKey"))
    store = open_store(URL, {"endpoint": canned.endpoint, "region": "eu-central-1"})
    with pytest.raises(ObjectMissing):
        store.read("one")
    (request,) = canned.requests
    assert "from-the-environment" in request.headers["authorization"]
    assert "eu-central-1" in request.headers["authorization"]


def test_a_session_token_goes_along(canned: Answering) -> None:
    canned.answer = lambda request: Reply(404, xml("NoSuchKey"))
    store = open_store(URL, s3_options(canned.endpoint) | {"session_token": "a-session-token"})
    with pytest.raises(ObjectMissing):
        store.read("one")
    assert canned.requests[0].headers["x-amz-security-token"] == "a-session-token"


def test_a_proxy_is_not_asked_for_this_machine(
    s3: Store, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"http://127.0.0.1:{server.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead)
    open_store(s3.url, s3_options(s3_endpoint)).create("one", b"content")
    assert s3.read("one") == b"content"


def test_what_never_ends_is_not_read_into_memory(canned: Answering, made_up: Store) -> None:
    canned.answer = lambda request: Reply(
        200,
        b"x" * 100_000,
        {
            "content-length": str(1 << 40),
            "last-modified": "Wed, 01 Jul 2026 00:00:00 GMT",
            "etag": '"1"',
        },
    )
    with pytest.raises(DamagedData, match="larger than any object"):
        made_up.read("packs/one")
