"""Finding PostgreSQL's programs: every place, each once, and the right version for a task."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellarer.errors import ToolMissing
from cellarer.postgres.binaries import (
    CLIENT_PROGRAMS,
    SERVER_PROGRAMS,
    client_for,
    installations,
    server_for,
)
from cellarer.postgres.cluster import Cluster


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    installations.cache_clear()
    yield
    installations.cache_clear()


@pytest.fixture
def search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in front of PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return directory


def _script(path: Path, answer: str, status: int = 0) -> None:
    path.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
    path.chmod(0o755)


def test_each_installation_is_what_its_programs_say() -> None:
    assert installations()
    for one in installations():
        name = "postgres" if one.has(["postgres"]) else "pg_dump"
        said = subprocess.check_output([one.program(name), "--version"], text=True)
        assert f"(PostgreSQL) {one.version}" in said
        assert one.version.startswith(str(one.major))


def test_each_installation_is_found_once(search_path: Path) -> None:
    known = {one.bin_directory for one in installations()}
    for number, directory in enumerate(sorted(known)):
        # Once through a link to a program, once through PATH itself.
        (search_path / str(number)).mkdir()
        (search_path / str(number) / "postgres").symlink_to(directory / "postgres")
        os.environ["PATH"] += f"{os.pathsep}{search_path / str(number)}{os.pathsep}{directory}"
    installations.cache_clear()
    found = [one.bin_directory for one in installations()]
    assert sorted(found) == sorted(known)


def test_the_same_major_version_is_picked(cluster: Cluster) -> None:
    major = cluster.installation.major
    assert server_for(major).major == major
    assert server_for(major).has(SERVER_PROGRAMS)
    assert client_for(major).has(CLIENT_PROGRAMS)
    assert client_for(major).major == major


def test_else_the_lowest_version_above_is_picked(search_path: Path) -> None:
    for name in CLIENT_PROGRAMS:
        _script(search_path / name, f"{name} (PostgreSQL) 97.3")
    assert client_for(96).version == "97.3"
    assert client_for(97).bin_directory == search_path.resolve()
    assert client_for(min(one.major for one in installations())).major < 97


def test_client_programs_alone_are_no_server(search_path: Path) -> None:
    for name in CLIENT_PROGRAMS:
        _script(search_path / name, f"{name} (PostgreSQL) 97beta1")
    assert client_for(97).version == "97beta1"
    with pytest.raises(ToolMissing) as caught:
        server_for(97)
    assert "97beta1" in caught.value.detail
    assert "postgresql-97" in caught.value.hint
    with pytest.raises(ToolMissing, match="no program initdb"):
        client_for(97).program("initdb")


def test_an_incomplete_installation_is_passed_over(search_path: Path) -> None:
    _script(search_path / "pg_dump", "pg_dump (PostgreSQL) 97.3")
    with pytest.raises(ToolMissing, match="client programs of PostgreSQL 97"):
        client_for(97)


def test_a_wrapper_of_another_name_is_no_installation(search_path: Path, tmp_path: Path) -> None:
    _script(tmp_path / "pg_wrapper", "pg_dump (PostgreSQL) 97.3")
    (search_path / "pg_dump").symlink_to(tmp_path / "pg_wrapper")
    assert all(one.major < 97 for one in installations())


@pytest.mark.parametrize(("answer", "status"), [("cannot load libpq", 127), ("", 0)])
def test_a_program_that_does_not_run_is_passed_over(
    search_path: Path, answer: str, status: int
) -> None:
    _script(search_path / "pg_dump", answer, status)
    assert search_path.resolve() not in {one.bin_directory for one in installations()}


def test_what_is_missing_is_said_with_the_way_out() -> None:
    with pytest.raises(ToolMissing) as caught:
        client_for(99)
    assert "PostgreSQL 99" in caught.value.message
    assert "postgresql-client-99" in caught.value.hint
    assert "pip install" not in caught.value.hint  # the wheel has no version 99
    for one in installations():
        assert one.version in caught.value.detail
