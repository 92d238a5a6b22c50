"""Files that are being received, and what of them goes into the vault."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellarer.domain.wal import Segment, piece_name
from cellarer.wal.shipping import Shipper
from stand_ins import Founded, found, noise
from wal_files import SEGMENT_BYTES, page, reader, segment, writer

SIZE = 1 << 24


def shipper_of(made: Founded, spool: Path) -> Shipper:
    spool.mkdir()
    putting = writer(made, spool.parent / "state")
    return Shipper(spool, lambda: putting, lambda: reader(made).names())


def new_file(tmp_path: Path, content: bytes, length: int) -> Path:
    """The file of the third segment while it is made: its beginning, and zeros."""
    path = tmp_path / "spool" / f"{Segment(1, 3).name(SIZE)}.partial"
    path.write_bytes(content + bytes(length - len(content)))
    return path


@pytest.mark.parametrize("filled", [0, 40, 1 << 20, 1 << 21, (1 << 21) + (1 << 19), 1 << 23, SIZE])
def test_a_file_that_is_being_filled_with_zeros_is_left(tmp_path: Path, filled: int) -> None:
    """What the receiver says by then is from before it, or its beginning."""
    made = found()
    shipper = shipper_of(made, tmp_path / "spool")
    new_file(tmp_path, b"", filled)
    start = Segment(1, 3).start(SIZE)
    for said in (start - SIZE // 2, start, None):
        shipper.ship(pieces=True, written_lsn=said)
        assert reader(made).names() == set()
        assert shipper.stored is None or shipper.stored.lsn <= start


@pytest.mark.parametrize("seen", [1 << 20, (1 << 21) + (1 << 19), 1 << 23])
def test_where_log_lies_does_not_hang_on_the_size_of_the_file(tmp_path: Path, seen: int) -> None:
    """The size may have been asked for while the file was being filled, and its log come since."""
    made = found()
    shipper = shipper_of(made, tmp_path / "spool")
    new_file(tmp_path, page(Segment(1, 3), SIZE) + noise(1, 9_000), seen)
    start = Segment(1, 3).start(SIZE)
    shipper.ship(pieces=True, written_lsn=start)
    assert reader(made).names() == set()
    shipper.ship(pieces=True, written_lsn=start + 5_000)
    assert reader(made).names() == {piece_name(Segment(1, 3).name(SIZE), 0, 5_000)}


def test_what_was_written_goes_up_to_there(tmp_path: Path) -> None:
    made = found()
    shipper = shipper_of(made, tmp_path / "spool")
    name, data = segment(3, filled=5_000)
    (tmp_path / "spool" / f"{name}.partial").write_bytes(data)
    start = Segment(1, 3).start(SEGMENT_BYTES)
    for said, ends in ((start, []), (start + 3_000, [3_000]), (None, [3_000, 5_000])):
        shipper.ship(pieces=True, written_lsn=said)
        assert sorted(int(each[-8:], 16) for each in reader(made).names()) == ends
    assert reader(made).read(name) == data
