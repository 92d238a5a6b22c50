"""The directory through which a standby gets its WAL: nothing of others is touched there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellarer.errors import TargetFailed
from cellarer.postgres.account import Account
from cellarer.postgres.standby_feed import FEED, StandbyFeed

NOBODY = Account("nobody", 65534, 65534)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led astray")


@as_root
def test_a_link_of_the_servers_account_leads_root_nowhere(tmp_path: Path) -> None:
    foreign, data = tmp_path / "etc", tmp_path / "data"
    (foreign / "cellarer").mkdir(parents=True)
    (foreign / "cellarer" / "write.key").write_text("secret")
    data.mkdir()
    (data / "pg_wal").symlink_to(foreign)
    feed = StandbyFeed(data, NOBODY)
    for act in (feed.open, feed.remove, lambda: feed.put("x", b"y")):
        with pytest.raises(TargetFailed, match="does not belong to nobody"):
            act()
    assert [path.name for path in (foreign / "cellarer").iterdir()] == ["write.key"]
    assert (foreign / "cellarer").stat().st_uid == 0


@as_root
def test_what_was_made_by_another_is_not_given_away(tmp_path: Path) -> None:
    wal = tmp_path / "pg_wal"
    (tmp_path / FEED).mkdir(parents=True)
    os.chown(wal, 65534, 65534)
    with pytest.raises(TargetFailed, match="does not belong"):
        StandbyFeed(tmp_path, NOBODY).open()
    assert (tmp_path / FEED).stat().st_uid == 0


def test_a_file_that_was_left_unfinished_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    feed = StandbyFeed(tmp_path, Account(str(os.geteuid()), None, None))
    feed.open()
    name = "000000010000000000000001"
    (tmp_path / FEED / f"{name}.new").write_bytes(b"half")
    feed.put(name, b"whole")
    assert (tmp_path / FEED / name).read_bytes() == b"whole"
    feed.write_down("{}")
    feed.open()
    assert feed.written_down() is None
    feed.remove()
    assert not feed.exists
