"""Kinds of sums of whole streams: `blake3`, `sha256` of old ones, and `blake3-8192` over pieces.

Most are over the bytes. A stream that is patched is not read as a whole; its sum is over the ids of
its pieces, which are known of those that are stored.
"""

from __future__ import annotations

import re

SUM = "blake3"
"""The hash function over whole streams in today's snapshots: four times as fast as SHA-256 here,
ten times where the processor has no instructions for that. Older ones have SHA-256."""

OLD_SUM = "sha256"

_PIECES = re.compile(SUM + "-([1-9][0-9]{2,8})")


def piece_sum(piece_bytes: int) -> str:
    """The kind of a sum over the ids of a stream's pieces of this size."""
    return f"{SUM}-{piece_bytes}"


def piece_bytes_of(kind: str) -> int:
    """How large the pieces are whose ids a sum is over; 0 where it is over the bytes themselves."""
    match = _PIECES.fullmatch(kind)
    return int(match[1]) if match else 0


def is_sum(kind: str) -> bool:
    """Whether there are sums of this kind."""
    return kind in (SUM, OLD_SUM) or piece_bytes_of(kind) > 0
