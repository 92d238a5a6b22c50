"""What a standby is handed: what it asks for, as far as it has come, and nothing behind a fork."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from cellarer.domain.wal import Segment, parse_name, piece_name
from cellarer.errors import VaultUnreachable
from cellarer.postgres.account import Account
from cellarer.postgres.standby_feed import FEED, FEED_COMMAND, StandbyFeed
from cellarer.vault.log import LogReader
from cellarer.wal.feeding import Feeder
from wal_places import wait_for

SIZE = 1 << 20
ACCOUNT = Account("self", None, None)


def name(number: int, timeline: int = 1) -> str:
    return Segment(timeline, number).name(SIZE)


@dataclass
class Log:
    """Log in memory."""

    files: dict[str, bytes] = field(default_factory=dict)
    away: bool = False

    def look(self) -> set[str]:
        if self.away:
            raise VaultUnreachable("no replica answers")
        return {*self.files}

    def read(self, name: str) -> bytes:
        return self.files[name]

    read_piece = read

    def add(self, segment: str, start: int, data: bytes) -> None:
        self.files[piece_name(segment, start, start + len(data))] = data


@dataclass
class Served:
    """A data directory whose server is us, asking as its restore_command does."""

    data: Path
    log: Log
    feeder: Feeder

    def ask(self, name: str) -> bytes | None:
        command = FEED_COMMAND.replace("%f", name).replace("%p", "pg_wal/RECOVERYXLOG")
        done = subprocess.run(["sh", "-c", command], cwd=self.data, check=False)
        assert done.returncode in (0, 1), "anything else would end more than this attempt"
        found = self.data / "pg_wal" / "RECOVERYXLOG"
        if done.returncode:
            assert not found.exists()
            return None
        kept = self.data / "pg_wal" / name
        found.rename(kept)
        return kept.read_bytes()

    def ask_twice(self, name: str) -> bytes | None:
        found = self.ask(name)
        if found is None:
            self.feeder.turn(look=True)
            found = self.ask(name)
        return found

    def lies_ready(self, last: int) -> None:
        """The server has taken the first segment, and those up to the last wait for it."""
        self.log.files = {name(n): content(n) for n in range(1, last + 1)}
        assert self.ask(name(1)) is None
        self.feeder.turn()
        assert self.ask(name(1)) == content(1)
        for number in range(2, last + 1):
            wait_for((self.data / FEED / name(number)).exists, 10)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    (tmp_path / "pg_wal").mkdir()
    feed, log = StandbyFeed(tmp_path, ACCOUNT), Log()
    feed.open()
    feeder = Feeder(feed, lambda: cast("LogReader", log), SIZE, lambda: datetime.now(UTC))
    feeder.pieces = True
    return Served(tmp_path, log, feeder)


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def test_what_follows_lies_ready(served: Served) -> None:
    served.lies_ready(5)
    for number in range(2, 6):
        assert served.ask(name(number)) == content(number)
        served.feeder.turn()
    assert served.ask_twice(name(6)) is None


def test_a_piece_is_filled_up_and_a_longer_one_comes_once(served: Served) -> None:
    served.log.add(name(1), 0, b"abc")
    assert served.ask_twice(name(1)) == b"abc" + bytes(SIZE - 3)
    # It is there, and asked for again: nothing new, and all of it is replayed.
    assert served.ask_twice(name(1)) is None
    assert served.feeder.exhausted == {name(1): 3}
    served.log.add(name(1), 3, b"de")
    served.log.add(name(1), 7, b"behind a hole")
    assert served.ask_twice(name(1)) == b"abcde" + bytes(SIZE - 5)
    served.log.files[name(1)] = b"abcde" + content(1)[5:]
    assert served.ask_twice(name(1)) == b"abcde" + content(1)[5:]


def test_what_a_killed_server_had_just_taken_is_handed_over_again(served: Served) -> None:
    served.log.files[name(1)] = content(1)
    assert served.ask_twice(name(1)) == content(1)
    (served.data / "pg_wal" / name(1)).write_bytes(content(9))
    assert served.ask_twice(name(1)) == content(1)


def test_nothing_of_a_timeline_is_handed_over_behind_its_fork(served: Served) -> None:
    served.log.files = {name(1): content(1), name(2): content(2)}
    served.log.files["00000002.history"] = b"1\t0/100010\tno reason\n"
    assert served.ask_twice(name(1)) == content(1)[:16] + bytes(SIZE - 16)
    assert served.ask_twice(name(2)) is None
    assert served.ask("00000002.history") == served.log.files["00000002.history"]
    assert served.ask("00000003.history") is None
    # The new one is asked for first, and has it all.
    served.log.files[name(1, 2)] = content(7)
    assert served.ask(name(1, 2)) is None
    assert served.ask_twice(name(1)) is None
    assert served.ask(name(1, 2)) == content(7)


def test_what_lies_ready_is_taken_back_when_a_fork_shows_before_it(served: Served) -> None:
    served.lies_ready(4)
    served.log.files["00000002.history"] = b"1\t0/200010\tno reason\n"
    served.feeder.turn(look=True)
    assert not [n for n in (2, 3, 4) if (served.data / FEED / name(n)).exists()]
    assert served.ask_twice(name(2)) == content(2)[:16] + bytes(SIZE - 16)
    assert served.ask_twice(name(3)) is None


def test_pieces_are_for_those_that_may_have_them(served: Served) -> None:
    served.feeder.pieces = False
    served.log.add(name(1), 0, b"abc")
    assert served.ask_twice(name(1)) is None


def test_a_vault_that_is_away_is_no_answer(served: Served) -> None:
    served.log.away = True
    assert served.ask(name(1)) is None
    with pytest.raises(VaultUnreachable):
        served.feeder.turn(look=True)
    served.log.away, served.log.files = False, {name(1): content(1)}
    assert served.ask_twice(name(1)) == content(1)


def test_nobody_to_hand_anything_over_only_makes_it_wait(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    for wanted in (name(1), "00000002.history"):
        command = FEED_COMMAND.replace("%f", wanted).replace("%p", "pg_wal/x")
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
        assert (0 < done.returncode < 126, done.stderr) == (True, b"")


def test_the_command_leaves_marks_of_segments_alone(served: Served) -> None:
    served.ask(name(3))
    asked = StandbyFeed(served.data, ACCOUNT).asked()
    assert {parse_name(each).segment for each in asked} == {name(3)}
