"""S3 servers that the tests of one process share, and the stores that every test gets afresh."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellarer.demo.s3server import serve_s3
from cellarer.ports import Store
from cellarer.stores import open_store
from cellarer.stores.local import LocalStore
from cellarer.stores.memory import MemoryStore
from servers import BUCKET, Answering, answering, forwarding, rclone_s3, s3_options


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server that honours create-if-absent."""
    with (
        tempfile.TemporaryDirectory(prefix="cel-s3-") as directory,
        serve_s3(Path(directory), BUCKET) as endpoint,
    ):
        yield endpoint


@pytest.fixture(scope="session")
def rclone_endpoint() -> Iterator[str]:
    """An S3 server that ignores the condition and overwrites."""
    with (
        tempfile.TemporaryDirectory(prefix="cel-rclone-") as directory,
        rclone_s3(Path(directory)) as endpoint,
    ):
        yield endpoint


@pytest.fixture
def between(s3_endpoint: str) -> Iterator[Answering]:
    """A server in front of the S3 server, which passes everything on until a test interferes."""
    with answering(forwarding(s3_endpoint)) as server:
        yield server


def bucket_store(endpoint: str) -> Store:
    """A store below a prefix that nobody else has."""
    return open_store(f"s3://{BUCKET}/{secrets.token_hex(8)}", s3_options(endpoint))


@pytest.fixture
def s3(s3_endpoint: str) -> Store:
    return bucket_store(s3_endpoint)


@pytest.fixture
def lying(rclone_endpoint: str) -> Store:
    return bucket_store(rclone_endpoint)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def memory() -> Store:
    return MemoryStore()


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each store that keeps all promises."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["memory", "local", "s3", "lying"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """Those, and one that overwrites."""
    found: Store = request.getfixturevalue(request.param)
    return found
