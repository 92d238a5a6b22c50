"""Says which rows two tables differ in, in bounded memory, whatever order the rows come in.

The first pass adds up hashes of rows in buckets by key. Rows of buckets with equal sums are equal.
The second pass looks at the rows of the other buckets only, and at no more of them than fit.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

# (key, content): rows of the same key on both sides are versions of one row. Without a key, rows
# are the same only if their content is.
Item = tuple[bytes | None, bytes]
Name = Callable[[bytes | None, int], str]
Items = Callable[[], Iterator[Item]]

_BUCKETS = 1 << 16
_HELD_ROWS = 50_000
_NAMED = 5
_WRAP = (1 << 64) - 1


@dataclass(frozen=True)
class Difference:
    """What differs. `count` is exact, or the least there can be where `complete` is false."""

    count: int
    complete: bool
    named: tuple[str, ...]

    def described(self, what: str) -> str:
        """`2 rows differ: changed id=42; missing id=7`."""
        least = "" if self.complete else "at least "
        verb = f"{what} differs" if self.count == 1 else f"{what}s differ"
        more = "; ..." if self.count > len(self.named) else ""
        return f"{least}{self.count} {verb}: {'; '.join(self.named)}{more}"


def difference(expected: Items, found: Items, name: Name) -> Difference:
    """Compare two multisets; each of `expected` and `found` is called twice and read whole.

    `name(key, number)` names a row for people, by its key or its number (from 1) on its side. A
    count of 0 means that they differ in their order at most. Memory: under 100 MB.
    """
    sums, counts = _sums(expected(), +1)
    found_sums, found_counts = _sums(found(), -1)
    differing = [n for n in range(_BUCKETS) if (sums[n] + found_sums[n]) & _WRAP]
    wanted: set[int] = set()
    held = 0
    for bucket in differing:
        held += counts[bucket] + found_counts[bucket]
        if wanted and held > _HELD_ROWS:
            break
        wanted.add(bucket)
    leftovers = _Leftovers(name)
    leftovers.take(_within(expected(), wanted), +1)
    leftovers.take(_within(found(), wanted), -1)
    count, named = leftovers.result()
    return Difference(count, len(wanted) == len(differing), tuple(named))


def _sums(items: Iterable[Item], sign: int) -> tuple[Sequence[int], Sequence[int]]:
    sums = array("Q", bytes(8 * _BUCKETS))
    counts = array("Q", bytes(8 * _BUCKETS))
    for key, content in items:
        digest = _digest(content)
        bucket = (digest if key is None else _digest(key)) % _BUCKETS
        sums[bucket] = (sums[bucket] + sign * digest) & _WRAP
        counts[bucket] += 1
    return sums, counts


def _within(items: Iterable[Item], wanted: set[int]) -> Iterator[tuple[int, bytes | None, int]]:
    for number, (key, content) in enumerate(items, 1):
        digest = _digest(content)
        if (digest if key is None else _digest(key)) % _BUCKETS in wanted:
            yield number, key, digest


def _digest(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


class _Leftovers:
    """Rows of one side that have no equal on the other."""

    def __init__(self, name: Name) -> None:
        self._name = name
        # (key, digest) -> how many more the expected side has, and the number of one of them.
        self._balance: dict[tuple[bytes | None, int], tuple[int, int]] = {}

    def take(self, rows: Iterable[tuple[int, bytes | None, int]], sign: int) -> None:
        for number, key, digest in rows:
            balance, _ = self._balance.get((key, digest), (0, 0))
            if balance + sign:
                self._balance[key, digest] = balance + sign, number
            else:
                del self._balance[key, digest]

    def result(self) -> tuple[int, list[str]]:
        """How many rows differ, and words for some of them."""
        by_key: dict[bytes | None, list[tuple[int, int]]] = {}
        for (key, _digest), rest in self._balance.items():
            by_key.setdefault(key, []).append(rest)
        lines = sorted(line for key, rests in by_key.items() for line in self._lines(key, rests))
        count = sum(times for *_, times in lines)
        named = [
            f"{verb} {name}" + (f" ({times} times)" if times > 1 else "")
            for _, _, verb, name, times in lines[:_NAMED]
        ]
        return count, named

    def _lines(
        self, key: bytes | None, rests: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int, str, str, int]]:
        """Rank, number, verb, name and times, so that changes come before losses and gains."""
        if key is not None and sorted(balance for balance, _ in rests) == [-1, 1]:
            number = max(rests)[1]
            yield 0, number, "changed", self._name(key, number), 1
            return
        for balance, number in rests:
            name = self._name(key, number)
            if balance > 0:
                yield 1, number, "missing", name, balance
            else:
                yield 2, number, "unexpected", name, -balance
