"""Reads a pipe ahead of who uses it, so that both of its ends keep working."""

from __future__ import annotations

import queue
import threading
from typing import BinaryIO

BLOCKS_AHEAD = 8


class ReadAhead:
    """The blocks of a pipe, as they come, read in a thread of its own: some, and no more, ahead."""

    def __init__(self, pipe: BinaryIO, block_bytes: int) -> None:
        self._pipe, self._block_bytes = pipe, block_bytes
        self._blocks: queue.Queue[bytes | OSError] = queue.Queue(BLOCKS_AHEAD)
        self._ended = False
        self.begun = threading.Event()
        """Whether the first block is there, or the pipe's end."""
        self._thread = threading.Thread(target=self._fill, name="read-ahead", daemon=True)
        self._thread.start()

    def read(self, _size: int) -> bytes:
        """The next block, of the length that it has; empty at the end. Raises `OSError`."""
        if self._ended:
            return b""
        block = self._blocks.get()
        self._ended = not isinstance(block, bytes) or not block
        if isinstance(block, OSError):
            raise block
        return block

    def close(self) -> None:
        """Drop what was read ahead. The pipe's writer must have ended, or this waits for it."""
        while self._thread.is_alive():
            try:
                self._blocks.get(timeout=0.05)
            except queue.Empty:
                continue

    def _fill(self) -> None:
        block: bytes | OSError = b"-"
        while isinstance(block, bytes) and block:
            try:
                block = self._pipe.read(self._block_bytes)
            except OSError as error:
                block = error
            self._blocks.put(block)
            self.begun.set()
