"""Which line of a TOML document says what; `tomllib` itself does not tell.

The scanner walks a document that `tomllib` has accepted, so it may trust the syntax and only
looks for where things begin.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""A way into the document: keys of tables and indexes of arrays."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]*")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.newlines = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[KeyPath, int] = {(): 1}
        self.array_lengths: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.position < len(self.text):
            if self.text.startswith("[", self.position):
                table = self.header()
            else:
                self.pair(table)
            self.skip(_BLANK)

    def header(self) -> KeyPath:
        line = self.line()
        is_array = self.text.startswith("[[", self.position)
        self.position += 2 if is_array else 1
        *parents, last = self.keys()
        self.position += 2 if is_array else 1
        path: KeyPath = ()
        for key in parents:
            path = self.newest((*path, key))
            self.lines.setdefault(path, line)
        path = (*path, last)
        if not is_array:
            self.lines[path] = line
            return path
        self.lines.setdefault(path, line)
        index = self.array_lengths.get(path, 0)
        self.array_lengths[path] = index + 1
        self.lines[(*path, index)] = line
        return (*path, index)

    def newest(self, path: KeyPath) -> KeyPath:
        """A header that names an array of tables means the last of them."""
        length = self.array_lengths.get(path)
        return path if length is None else (*path, length - 1)

    def pair(self, table: KeyPath) -> None:
        line = self.line()
        path = table
        for key in self.keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.position += 1
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: KeyPath) -> None:
        opening = self.text[self.position]
        if opening == "[":
            for index, _ in enumerate(self.members("]")):
                self.lines[(*path, index)] = self.line()
                self.value((*path, index))
        elif opening == "{":
            for _ in self.members("}"):
                self.pair(path)
        else:
            self.skip(_STRING if opening in "\"'" else _SCALAR)

    def members(self, closing: str) -> Iterator[None]:
        """Stops at each member of an array or inline table; the caller reads the member."""
        self.position += 1
        self.skip(_BLANK)
        while self.text[self.position] != closing:
            yield
            self.skip(_BLANK)
            if self.text[self.position] == ",":
                self.position += 1
                self.skip(_BLANK)
        self.position += 1

    def keys(self) -> list[str]:
        found = []
        while True:
            self.skip(_SPACE)
            found.append(self.key())
            self.skip(_SPACE)
            if self.text[self.position] != ".":
                return found
            self.position += 1

    def key(self) -> str:
        start = self.position
        if self.text[start] not in "\"'":
            self.skip(_BARE_KEY)
            return self.text[start : self.position]
        self.skip(_STRING)
        return str(tomllib.loads(f"key = {self.text[start : self.position]}")["key"])

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()

    def line(self) -> int:
        return bisect_right(self.newlines, self.position) + 1


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key, table and array member of a valid TOML document."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the nearest thing around it that is written down."""
    while path not in lines:
        path = path[:-1]
    return lines[path]
