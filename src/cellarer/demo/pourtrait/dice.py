"""Numbers that look random and are a pure function of a seed, a column and a row's number.

No state: any row of any column can be had at any time, in any order, on any version of NumPy, so
one table can refer to the rows of another without keeping them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
T = TypeVar("T")


class Dice:
    """One set of dice per seed."""

    def __init__(self, seed: int | str) -> None:
        self._seed = seed

    def bits(self, column: str, rows: Numbers) -> Numbers:
        """64 bits per row: the finalizer of SplitMix64 over the row's number."""
        digest = hashlib.blake2b(f"{self._seed}/{column}".encode(), digest_size=8).digest()
        mixed = (rows + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed += np.uint64(int.from_bytes(digest, "big"))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Numbers = mixed ^ (mixed >> np.uint64(31))
        return result

    def below(self, limit: int | Numbers, column: str, rows: Numbers) -> Numbers:
        """A number from 0 to `limit` - 1 per row; one limit for all, or one for each."""
        result: Numbers = self.bits(column, rows) % np.asarray(limit, dtype=np.uint64)
        return result

    def pick(self, choices: Sequence[T], column: str, rows: Numbers) -> list[T]:
        """One of `choices` per row."""
        return [choices[place] for place in self.below(len(choices), column, rows).tolist()]

    def uuids(self, table: str, rows: Numbers) -> list[str]:
        """The ids of a table's rows, as UUIDs of version 4."""
        high = self.bits(f"{table}.id.high", rows)
        low = self.bits(f"{table}.id.low", rows)
        high = (high & np.uint64(0xFFFFFFFFFFFF0FFF)) | np.uint64(0x4000)
        low = (low & np.uint64(0x3FFFFFFFFFFFFFFF)) | np.uint64(0x8000000000000000)
        text = np.stack([high, low], axis=1).astype(">u8").tobytes().hex()
        return [
            f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-{text[at + 12 : at + 16]}"
            f"-{text[at + 16 : at + 20]}-{text[at + 20 : at + 32]}"
            for at in range(0, len(text), 32)
        ]
