"""Multisets of rows are compared rightly, whatever they are, and in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.targets import difference as module
from cellarer.targets.content import copied_columns, large_objects
from cellarer.targets.difference import Difference, Item, difference

contents = st.sampled_from([b"a", b"b", b"c"])
keyless = st.lists(contents.map(lambda content: (None, content)), max_size=12)
keyed = st.dictionaries(st.sampled_from([b"1", b"2", b"3", b"4"]), contents).map(
    lambda rows: list(rows.items())
)


def compare(expected: list[Item], found: list[Item]) -> Difference:
    return difference(lambda: iter(expected), lambda: iter(found), lambda key, n: f"{key!r}/{n}")


@settings(deadline=None)
@given(keyless, keyless)
def test_rows_without_key(expected: list[Item], found: list[Item]) -> None:
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    result = compare(expected, found)
    assert result.complete
    assert result.count == missing.total() + extra.total()
    assert sum("missing" in name for name in result.named) <= len(missing)


@settings(deadline=None)
@given(keyed, keyed)
def test_rows_with_key(expected: list[Item], found: list[Item]) -> None:
    before, after = dict(expected), dict(found)
    result = compare(expected, found)
    changed = [key for key in before if key in after and after[key] != before[key]]
    assert result.count == len(changed) + len(before.keys() ^ after.keys())
    named = [name.split("/")[0] for name in result.named]
    wanted = [f"changed {key!r}" for key in changed]
    wanted += [f"missing {key!r}" for key in before if key not in after]
    wanted += [f"unexpected {key!r}" for key in after if key not in before]
    assert len(named) == min(len(wanted), 5)
    assert set(named) <= set(wanted)


def test_a_row_named_by_its_number() -> None:
    rows: list[Item] = [(None, str(n).encode()) for n in range(100)]
    result = compare(rows, [*rows[:17], *rows[18:], (None, b"new")])
    assert result.named == ("missing None/18", "unexpected None/100")
    assert result.described("row") == "2 rows differ: missing None/18; unexpected None/100"


def test_held_rows_are_few_however_many_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_ROWS", 100)
    monkeypatch.setattr(module, "_BUCKETS", 64)
    held = 0

    def rows(suffix: bytes) -> Iterator[Item]:
        yield from ((str(n).encode(), suffix) for n in range(5000))

    class Counted(module._Leftovers):
        def result(self) -> tuple[int, list[str]]:
            nonlocal held
            held = len(self._balance)
            return super().result()

    monkeypatch.setattr(module, "_Leftovers", Counted)
    result = difference(lambda: rows(b"x"), lambda: rows(b"y"), lambda key, _: str(key))
    assert not result.complete
    assert 0 < held <= 500
    assert result.described("row").startswith(f"at least {result.count} rows differ: changed ")


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        ("COPY public.wines (id, note) FROM stdin;\n", ["id", "note"]),
        ('COPY public."a (b)" ("x, y", "q""(", z) FROM stdin;\n', ["x, y", 'q"(', "z"]),
        ("COPY public.empty  FROM stdin;\n", []),
        ('COPY s."no (columns)"  FROM stdin;\n', []),
    ],
)
def test_columns_of_a_copy_statement(statement: str, columns: list[str]) -> None:
    assert copied_columns(statement) == columns


def frame(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    return b"\0" + value.to_bytes(4, "little")


@given(
    st.lists(st.tuples(st.integers(1, 2**32 - 1), st.lists(st.binary(min_size=1), max_size=3))),
    st.integers(1, 9),
)
def test_large_objects_are_found_in_any_pieces(
    objects: list[tuple[int, list[bytes]]], piece_bytes: int
) -> None:
    data = b"".join(
        integer(oid) + b"".join(map(frame, frames)) + integer(0) for oid, frames in objects
    )
    pieces = (data[n : n + piece_bytes] for n in range(0, len(data), piece_bytes))
    whole = list(large_objects([data] if data else []))
    assert list(large_objects(pieces)) == whole
    assert [key for key, _ in whole] == [str(oid).encode() for oid, _ in objects]
    content = {oid: b"".join(frames) for oid, frames in objects}
    sums = dict(whole)
    for one, other in zip(content, list(content)[1:], strict=False):
        same = sums[str(one).encode()] == sums[str(other).encode()]
        assert same == (content[one] == content[other])
