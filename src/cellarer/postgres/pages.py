"""The checksums of PostgreSQL's pages, many pages at once.

For its checksum a page is taken for rows of 32 numbers. Each of the 32 columns is hashed on its
own, in a variant of FNV-1a, so the columns of all pages of a block can go through the processor
together. The page's number enters at the end: a page in another's place is noticed. The format is
that of `src/include/storage/checksum_impl.h` in PostgreSQL, on a little-endian machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_COLUMNS = 32
_PRIME = np.uint32(16777619)
_SHIFT = np.uint32(17)
_TOGETHER = 256
"""Pages whose columns together fit in the processor's nearer caches; fewer cost more calls."""

# Where each column's hash starts.
_STARTS = np.array(
    [
        *(0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2),
        *(0x83E13D2C, 0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C),
        *(0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979),
        *(0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E),
        *(0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756),
    ],
    np.uint32,
)

_HEADER = np.dtype(
    {
        "names": ["high", "low", "checksum", "upper"],
        "formats": ["<u4", "<u4", "<u2", "<u2"],
        "offsets": [0, 4, 8, 14],
        "itemsize": 24,
    }
)
_CHECKSUM_COLUMN, _WITHOUT_CHECKSUM = 2, np.uint32(0xFFFF0000)


@dataclass(frozen=True)
class Suspect:
    """A page whose checksum does not fit: its place among those looked at, and its number.

    `lsn` is what it says of itself. Where `new` it has no header and yet holds something:
    PostgreSQL refuses such a page, too, but it may also have been written this very moment.
    """

    at: int
    page: int
    lsn: int
    new: bool


def checksums(pages: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The checksum of each page: rows of `pages` (n, page bytes / 4), of these numbers."""
    found = np.empty(len(pages), np.uint32)
    for start in range(0, len(pages), _TOGETHER):
        found[start : start + _TOGETHER] = _folded(pages[start : start + _TOGETHER])
    found ^= numbers.astype(np.uint32)
    return (found % np.uint32(65535) + np.uint32(1)).astype(np.uint16)


def looked_at(data: bytes, page_bytes: int, numbers: np.ndarray) -> tuple[list[Suspect], list[int]]:
    """Those of some pages that are not as PostgreSQL wrote them, and the places of empty ones.

    Both in the order in which they lie. `numbers` has where each belongs in its relation. Pages of
    nothing but zeros are fine: a relation grows by such. A part of a page at the end is not looked
    at, as PostgreSQL does not read it either.
    """
    whole = len(data) // page_bytes
    if not whole:
        return [], []
    pages = np.frombuffer(data, "<u4", whole * page_bytes // 4).reshape(whole, page_bytes // 4)
    headers = np.ascontiguousarray(pages[:, : _HEADER.itemsize // 4]).view(_HEADER)[:, 0]
    doubtful = np.flatnonzero(
        (headers["upper"] == 0) | (headers["checksum"] != checksums(pages, numbers[:whole]))
    )
    found, empty = [], []
    for at in doubtful.tolist():
        new = not headers["upper"][at]
        if new and not pages[at].any():
            empty.append(at)
            continue
        lsn = (int(headers["high"][at]) << 32) | int(headers["low"][at])
        found.append(Suspect(at, int(numbers[at]), lsn, new))
    return found, empty


def _folded(pages: np.ndarray) -> np.ndarray:
    """The columns' hashes of some pages, folded into one number for each."""
    rows = pages.reshape(len(pages), -1, _COLUMNS)
    sums = rows[:, 0].copy()
    sums[:, _CHECKSUM_COLUMN] &= _WITHOUT_CHECKSUM  # it counts as zero
    sums ^= _STARTS
    shifted = np.empty_like(sums)
    for row in range(1, rows.shape[1]):
        _mix(sums, shifted)
        np.bitwise_xor(sums, rows[:, row], out=sums)
    for _last_row_and_two_of_zeros in range(3):
        _mix(sums, shifted)
    return np.asarray(np.bitwise_xor.reduce(sums, axis=1))


def _mix(sums: np.ndarray, shifted: np.ndarray) -> None:
    np.right_shift(sums, _SHIFT, out=shifted)
    np.multiply(sums, _PRIME, out=sums)
    np.bitwise_xor(sums, shifted, out=sums)
