"""A whole copy, put together from copies that are damaged at different places."""

from __future__ import annotations

import itertools
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
    runs = list(_differing(copies))
    choices = [_variants(copies, start, end) for start, end in runs]
    tried = 1
    for variants in choices:
        tried *= len(variants)
        if tried > _MOST_TRIED:
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
    """Where the copies are not all alike: start and end, blocks side by side as one."""
    length, start = max(map(len, copies), default=0), -1
    block = _SMALL_BLOCK_BYTES if length <= _SMALL_BYTES else _BLOCK_BYTES
    for at in range(0, length, block):
        end = min(at + block, length)
        differs = len(_variants(copies, at, end)) > 1
        if differs and start < 0:
            start = at
        if start >= 0 and not differs:
            yield start, at
            start = -1
    if start >= 0:
        yield start, length


def _variants(copies: Sequence[bytes], start: int, end: int) -> list[bytes]:
    """What the copies that reach so far hold there, each once."""
    return list(dict.fromkeys(copy[start:end] for copy in copies if len(copy) >= end))
