"""What is left of a demo is removed whole, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellarer.cli.main import run
from cellarer.demo import story
from cellarer.postgres.binaries import server_for
from cellarer.postgres.cluster import Cluster


@pytest.mark.parametrize("name", ["product", "recovered"])
def test_cleaning_ends_the_server_that_a_killed_demo_left(tmp_path: Path, name: str) -> None:
    place = tmp_path / "demo"
    story.claim(place)
    cluster = Cluster.create(server_for(18), place / name)
    cluster.start()
    try:
        assert run(["demo", "--clean", str(place)]) == 0
        assert cluster.pid is None
        assert not place.exists()
    finally:
        cluster.remove()


def test_a_directory_that_is_no_demo_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("mine")
    assert run(["demo", "--directory", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert "is not empty" in said
    assert "left in" not in said
    assert "--clean" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert run(["demo", "--clean", str(tmp_path)]) == 2


def test_an_earlier_demo_can_be_removed_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    story.claim(tmp_path / "demo")
    assert run(["demo", "--directory", str(tmp_path / "demo")]) == 2
    assert f"demo --clean {tmp_path}/demo" in capfd.readouterr().err
