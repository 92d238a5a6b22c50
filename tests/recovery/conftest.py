"""The fixtures of recoveries: a life of a server of each version, lived once for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellarer.postgres.cluster import Cluster
from recovery.life import Life, lived, state_of


@pytest.fixture(scope="session", params=[15, 18], ids=["pg15", "pg18"])
def life(request: pytest.FixtureRequest) -> Iterator[Life]:
    cluster: Cluster = request.getfixturevalue(f"postgres{request.param}")
    directory = Path(tempfile.mkdtemp(prefix="cel-", dir="/tmp"))
    directory.chmod(0o711)
    try:
        with lived(cluster.installation, directory) as made:
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def whole(life: Life) -> dict[str, str]:
    """Every table at the position that is recovered to when something goes wrong on the way."""
    out = life.place.directory / "whole"
    document = life.place.document("restore", "cluster", "--to", f"pgdata:{out}", *life.wishes)
    assert "result" in document, document
    return state_of(life, out)
