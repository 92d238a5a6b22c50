"""A whole copy, put together from copies that are damaged at different places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from cellarer.errors import DamagedData

_SMALL_BYTES, _SMALL_BLOCK_BYTES, _BLOCK_BYTES = 64 << 10, 16, 4096
"""Disks and file systems lose bytes by blocks: what differs within one is one damage. In what is
hardly larger than a block there are only flipped bits to find."""

_MOST_TRIED = 256
"""Eight places at which two copies differ; of packs that is four seconds of hashing."""


def joined(copies: Sequence[bytes], genuine: Callable[[bytes], bool]) -> bytes | None:
    """The bytes that `genuine` takes, made of parts of the copies; None if none were found.

    `genuine` tells for certain, or raises `DamagedData` for what it cannot be: what comes out is
    as it was written. A copy that was cut short says nothing of what is behind its end.
    """
    blocks = list(_differing(copies))
    for runs in (_side_by_side(blocks), blocks):
        whole = _tried(copies, runs, genuine)
        if whole is not None:
            return whole
    return None


def _tried(
    copies: Sequence[bytes], runs: Sequence[tuple[int, int]], genuine: Callable[[bytes], bool]
) -> bytes | None:
    choices = [_variants(copies, start, end) for start, end in runs]
    if math.prod(map(len, choices)) > _MOST_TRIED:
        return None
    longest = bytearray(max(copies, key=len, default=b""))
    for chosen in itertools.product(*choices):
        for (start, end), variant in zip(runs, chosen, strict=True):
            longest[start:end] = variant
        candidate = bytes(longest)
        try:
            if genuine(candidate):
                return candidate
        except DamagedData:
            continue
    return None


def _differing(copies: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """The blocks in which the copies are not all alike: start and end."""
    length = max(map(len, copies), default=0)
    block = _SMALL_BLOCK_BYTES if length <= _SMALL_BYTES else _BLOCK_BYTES
    for at in range(0, length, block):
        end = min(at + block, length)
        if len(_variants(copies, at, end)) > 1:
            yield at, end


def _side_by_side(blocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Blocks side by side as one: what was written over them is one damage."""
    runs: list[tuple[int, int]] = []
    for start, end in blocks:
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    return runs


def _variants(copies: Sequence[bytes], start: int, end: int) -> list[bytes]:
    """What the copies that reach so far hold there, each once."""
    return list(dict.fromkeys(copy[start:end] for copy in copies if len(copy) >= end))
