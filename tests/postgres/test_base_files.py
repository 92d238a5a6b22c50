"""A listing of a cluster's files loses none; WAL that goes away while it is read is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellarer.errors import SourceFailed
from cellarer.postgres.base_direct import wal_blocks
from cellarer.postgres.base_files import list_files

SEGMENT_BYTES = 3 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A data directory as far as a listing looks."""
    for folder in ("base/5", "global", "pg_tblspc", "pg_wal"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "base" / "5" / "16384").write_bytes(b"")
    return tmp_path


def test_a_name_that_leads_nowhere_hides_no_other_file(directory: Path) -> None:
    """So does a temporary table's file that is dropped between its listing and the look at it."""
    (directory / "base" / "5" / "gone").symlink_to(directory / "nothing")
    assert [file.path for file in list_files(directory).files] == ["data/base/5/16384"]


def segment(directory: Path) -> Path:
    path = directory / "pg_wal" / "000000010000000000000002"
    path.write_bytes(bytes(SEGMENT_BYTES))
    return path


def test_wal_is_read_whole(directory: Path) -> None:
    blocks = wal_blocks(segment(directory), SEGMENT_BYTES)
    assert b"".join(blocks) == bytes(SEGMENT_BYTES)


@pytest.mark.parametrize("read", [0, 1])
def test_wal_that_goes_away_is_an_error(directory: Path, read: int) -> None:
    path = segment(directory)
    blocks = wal_blocks(path, SEGMENT_BYTES)
    for _ in range(read):
        next(blocks)
    # The server gives the file to a later segment, and overwrites it.
    path.rename(path.with_name("000000010000000000000009"))
    with pytest.raises(SourceFailed, match="removed 000000010000000000000002"):
        list(blocks)


def test_wal_that_is_too_short_is_an_error(directory: Path) -> None:
    path = segment(directory)
    path.write_bytes(b"short")
    with pytest.raises(SourceFailed, match="removed"):
        list(wal_blocks(path, SEGMENT_BYTES))
