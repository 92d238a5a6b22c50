"""What was read ahead is what came through the pipe, and nothing is left behind."""

from __future__ import annotations

import io
import os
import threading
from typing import BinaryIO, cast

import pytest

from cellarer.postgres.readahead import BLOCKS_AHEAD, ReadAhead


def test_every_block_comes_once_and_the_end_for_ever() -> None:
    data = os.urandom(100_003)
    ahead = ReadAhead(io.BytesIO(data), 1000)
    found = []
    while block := ahead.read(1):
        found.append(block)
    assert b"".join(found) == data
    assert ahead.read(1) == b""


class Endless:
    """A pipe whose writer never ends by itself; it counts what is taken."""

    def __init__(self) -> None:
        self.blocks = 0
        self.ended = threading.Event()
        self.full = threading.Event()

    def read(self, size: int) -> bytes:
        if self.ended.is_set():
            return b""
        self.blocks += 1
        if self.blocks > BLOCKS_AHEAD:
            self.full.set()
        return bytes(size)


def test_no_more_than_some_blocks_wait_for_their_user() -> None:
    pipe = Endless()
    ahead = ReadAhead(cast("BinaryIO", pipe), 10)
    assert pipe.full.wait(30)
    # One more than fit is in the hand of the thread, and no further one.
    assert pipe.blocks == BLOCKS_AHEAD + 1
    pipe.ended.set()
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name == "read-ahead" and t.is_alive()]


class Broken:
    """A pipe that breaks after a block."""

    def __init__(self) -> None:
        self.blocks = [b"whole"]

    def read(self, size: int) -> bytes:
        if not self.blocks:
            raise OSError("Input/output error")
        return self.blocks.pop()


def test_a_pipe_that_breaks_is_no_end() -> None:
    ahead = ReadAhead(cast("BinaryIO", Broken()), 10)
    assert ahead.read(1) == b"whole"
    with pytest.raises(OSError, match="Input"):
        ahead.read(1)
    assert ahead.read(1) == b""
