"""Lines of keys: the scanner agrees with a writer that noted where it wrote what."""

from __future__ import annotations

import random
import re
import string
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellarer.config.lines import KeyPath, line_of, lines_of

_TEXT = st.text(alphabet=string.ascii_letters + "\"'\\#[]{}=,. \n\tü€", max_size=12)
_KEY = st.one_of(st.text(string.ascii_lowercase, min_size=1, max_size=3), _TEXT)
_SCALAR = st.one_of(_TEXT, st.integers(), st.booleans(), st.floats(0, 1), st.datetimes())
_VALUE = st.recursive(
    _SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEY, inner, max_size=3)),
    max_leaves=12,
)
_DOCUMENT = st.dictionaries(_KEY, _VALUE, max_size=5)


class _Writer:
    """Writes a document in one of the many ways TOML allows, and notes the lines."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def blank(self, breaks: bool) -> None:
        """Something that means nothing, but looks as if it did."""
        options = ["", " ", "\t"] + ["\n", ' # "a" = [1, {\n', "\r\n  "] * breaks
        self.text += self.choice.choice(options)

    def table(self, path: KeyPath, table: dict[str, Any]) -> None:
        later = []
        for key, value in table.items():
            is_table = isinstance(value, dict) or _is_tables(value)
            if is_table and self.choice.random() < 0.6:
                later.append((key, value))
            else:
                self.pair((*path, key), key, value)
                self.text += self.choice.choice(["\n", "  # 'x' = ]\n", "\r\n\n"])
        for key, value in later:
            self.note((*path, key))
            if isinstance(value, dict):
                self.section((*path, key), value, "[ {} ]")
            else:
                for index, member in enumerate(value):
                    self.section((*path, key, index), member, "[[{}]]")

    def section(self, path: KeyPath, table: dict[str, Any], header: str) -> None:
        self.note(path)
        name = ".".join(self.key(part) for part in path if isinstance(part, str))
        self.text += header.replace("{}", name) + "\n"
        self.table(path, table)

    def pair(self, path: KeyPath, key: str, value: Any) -> None:
        self.note(path)
        self.text += self.key(key)
        while isinstance(value, dict) and len(value) == 1 and self.choice.random() < 0.7:
            ((key, value),) = value.items()
            path = (*path, key)
            self.note(path)
            self.text += f" . {self.key(key)}"
        self.text += " = "
        self.value(path, value)

    def key(self, key: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9_-]+", key) and self.choice.random() < 0.8:
            return key
        return self.line_string(key)

    def value(self, path: KeyPath, value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for index, (key, member) in enumerate(value.items()):
                self.text += ", " if index else " "
                self.pair((*path, key), key, member)
            self.text += " }"
        elif isinstance(value, list):
            self.text += "["
            for index, member in enumerate(value):
                self.blank(breaks=True)
                self.note((*path, index))
                self.value((*path, index), member)
                self.blank(breaks=True)
                self.text += "," if index < len(value) - 1 else self.choice.choice(["", ","])
            self.blank(breaks=True)
            self.text += "]"
        elif isinstance(value, str):
            self.text += self.string(value)
        elif isinstance(value, bool):
            self.text += str(value).lower()
        else:
            self.text += str(value)

    def string(self, text: str) -> str:
        if "'''" not in text and not text.endswith("'") and self.choice.random() < 0.3:
            return f"'''\n{text}'''"
        if self.choice.random() < 0.3:
            escaped = text.replace("\\", "\\\\").replace('"""', '""\\"')
            return (
                f'"""\n{escaped}"""' if not escaped.endswith('"') else f'"""\n{escaped[:-1]}\\""""'
            )
        return self.line_string(text)

    def line_string(self, text: str) -> str:
        if "'" not in text and "\n" not in text and self.choice.random() < 0.5:
            return f"'{text}'"
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


@settings(max_examples=400, deadline=None)
@given(_DOCUMENT, st.integers(0, 10**6))
def test_the_scanner_finds_every_line(document: dict[str, Any], seed: int) -> None:
    writer = _Writer(seed)
    writer.table((), document)
    assert tomllib.loads(writer.text) == document
    lines = lines_of(writer.text)
    assert {path: lines[path] for path in writer.lines} == writer.lines


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\n[b]\nc = 2\n", ("b", "c"), 3),
        ("a = 1\n[b]\nc = 2\n", ("b",), 2),
        ("[[r]]\nx = 1\n[[r]]\nx = 2\n", ("r", 1, "x"), 4),
        ("[[r]]\n[r.o]\nx = 1\n[[r]]\n[r.o]\nx = 1\n", ("r", 1, "o", "x"), 6),
        ("[a.b]\n\n[a]\nc = 1\n", ("a",), 3),
        ('a = """\n[b]\nc = 1\n"""\nd = 1\n', ("d",), 5),
        ('a = """x""\\""""" # y\nd = 1\n', ("d",), 2),
        ("a = ''''x'''''\nd = 1\n", ("d",), 2),
        ("a = [\n 1, # ]\n [2,\n 3],\n]\n", ("a", 1, 1), 4),
        ("a.'b.c'.\"d\\u0065\" = { e = 1 }\n", ("a", "b.c", "de", "e"), 1),
        ("a = 1", ("a",), 1),
    ],
)
def test_lines_of_what_is_tricky(text: str, path: KeyPath, line: int) -> None:
    tomllib.loads(text)
    assert lines_of(text)[path] == line


def test_what_is_not_written_is_placed_at_its_table() -> None:
    assert line_of(lines_of("a = 1\n[b]\nc = 2\n"), ("b", "missing", 3)) == 2
    assert line_of(lines_of("a = 1\n[b]\nc = 2\n"), ("missing",)) == 1
