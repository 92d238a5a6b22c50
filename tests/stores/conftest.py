"""Servers that the tests of one process share, and the stores that every test gets afresh."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from cellarer.demo.s3server import serve_s3
from cellarer.ports import Store
from cellarer.stores import open_layered, open_store
from cellarer.stores.local import LocalStore
from cellarer.stores.memory import MemoryStore
from cellarer.stores.settings import StoreSettings
from emulators import azurite, google
from servers import BUCKET, Answering, answering, forwarding, rclone_s3, s3_options

Opener: TypeAlias = Callable[[], Store]


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


@pytest.fixture(scope="session")
def azure_options() -> Iterator[dict[str, str]]:
    """The way to an emulator of Azure."""
    with azurite() as options:
        yield options


@pytest.fixture(scope="session")
def google_options() -> Iterator[dict[str, str]]:
    """The way to an emulator of Google Cloud Storage."""
    with google() as options:
        yield options


@pytest.fixture
def between(s3_endpoint: str) -> Iterator[Answering]:
    """A server in front of the S3 server, which passes everything on until a test interferes."""
    with answering(forwarding(s3_endpoint)) as server:
        yield server


def opener_of(scheme: str, options: dict[str, str]) -> Opener:
    """Opens clients of a place below a prefix that nobody else has."""
    url = f"{scheme}://{BUCKET}/{secrets.token_hex(8)}"
    return lambda: open_store(url, options)


@pytest.fixture
def open_s3(s3_endpoint: str) -> Opener:
    return opener_of("s3", s3_options(s3_endpoint))


@pytest.fixture
def open_lying(rclone_endpoint: str) -> Opener:
    return opener_of("s3", s3_options(rclone_endpoint))


@pytest.fixture
def open_google(google_options: dict[str, str]) -> Opener:
    return opener_of("gs", google_options)


@pytest.fixture
def open_azure(azure_options: dict[str, str]) -> Opener:
    return opener_of("az", azure_options)


@pytest.fixture
def open_local(tmp_path: Path) -> Opener:
    return lambda: LocalStore(tmp_path / "store")


@pytest.fixture
def open_layers(tmp_path: Path) -> Opener:
    """A directory as a replica has it, with all layers that change nothing for one who waits."""
    settings = StoreSettings(bandwidth=10**12)
    return lambda: open_layered((tmp_path / "layered").as_uri(), {}, settings)


@pytest.fixture
def open_memory() -> Opener:
    store = MemoryStore()
    return lambda: store


@pytest.fixture
def s3(open_s3: Opener) -> Store:
    return open_s3()


@pytest.fixture
def lying(open_lying: Opener) -> Store:
    return open_lying()


@pytest.fixture
def local(open_local: Opener) -> Store:
    return open_local()


@pytest.fixture
def memory(open_memory: Opener) -> Store:
    return open_memory()


TRUE = ["memory", "local", "layers", "s3", "google", "azure"]


@pytest.fixture(params=TRUE)
def opener(request: pytest.FixtureRequest) -> Opener:
    """Opens clients of a place in each kind of store that keeps all promises."""
    found: Opener = request.getfixturevalue(f"open_{request.param}")
    return found


@pytest.fixture
def store(opener: Opener) -> Store:
    """One such client."""
    return opener()


@pytest.fixture(params=[*TRUE, "lying"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """Each of those stores, and one that overwrites."""
    found: Opener = request.getfixturevalue(f"open_{request.param}")
    return found()
