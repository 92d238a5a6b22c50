"""The house rules, as a test: sizes, names, docstrings, leftovers, and files that nobody uses."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from cellarer import ports
from cellarer.cli.registry import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "cellarer"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHERS = sorted((ROOT / "benchmarks").rglob("*.py")) + sorted((ROOT / "examples").rglob("*.py"))

FILE_LINES = 400
# A program of its own that has to be one file, read by people without any other.
LONGER_FILES = {"rescue.py": 450}
FUNCTION_LINES = 70
LINE_CHARACTERS = 100
# One drawer for everything is how a design decays.
VAGUE_NAMES = {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
# What a tool is told at the end of a line does not count; ruff sees it the same way.
PRAGMA = re.compile(r"  # (noqa|type: ignore).*$")
MARKERS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
# Where a program starts: nothing has to import these.
ENTRY_POINTS = {"cellarer.__main__", "cellarer.cli.main"}
# Shipped without being imported: the script in every vault, and the store for trying flows.
SHIPPED = {"cellarer.vault.rescue", "cellarer.stores.memory"}
# Read by someone whose house has burnt down: short, and to be read as a whole.
BREAK_GLASS = PACKAGE / "vault" / "rescue.py"
# The text of the reference material's folder, put together so that this file does not hold it.
OUTSIDE = "../" + "shared"

Function = ast.FunctionDef | ast.AsyncFunctionDef
PORT_METHODS = {
    name
    for member in vars(ports).values()
    if isinstance(member, type)
    for name in vars(member)
    if not name.startswith("_")
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_source = pytest.mark.parametrize("path", SOURCES, ids=named)
each_python_file = pytest.mark.parametrize("path", SOURCES + TESTS + OTHERS, ids=named)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@each_python_file
def test_file_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    limit = LONGER_FILES.get(path.name, FILE_LINES)
    assert len(lines) <= limit, "split it by what its parts are about"


@each_python_file
def test_lines_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    wide = [n for n, line in enumerate(lines, 1) if len(PRAGMA.sub("", line)) > LINE_CHARACTERS]
    assert not wide, f"lines of more than {LINE_CHARACTERS} characters: {wide}"


@each_python_file
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, Function)]
    long = {f.name: length for f in functions if (length := length_of(f)) > FUNCTION_LINES}
    assert not long, f"functions of more than {FUNCTION_LINES} lines: {long}"


def length_of(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


@each_source
def test_name_says_what_is_inside(path: Path) -> None:
    words = set(path.stem.split("_")) | {path.parent.name}
    assert not words & VAGUE_NAMES


@each_python_file
def test_no_leftover_markers(path: Path) -> None:
    if path == Path(__file__).resolve():
        return  # it holds the pattern itself
    found = MARKERS.findall(path.read_text(encoding="utf-8"))
    assert not found, "finish it, or write it down where work is planned"


@each_source
def test_no_print(path: Path) -> None:
    """Standard output belongs to the command line's renderer, which writes through click.

    The break-glass script runs where cellarer is not installed.
    """
    if path == BREAK_GLASS:
        return
    calls = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "breakpoint"}
    ]
    assert not calls, f"print or breakpoint at lines {calls}"


@each_python_file
def test_no_commented_out_code(path: Path) -> None:
    found = [f"{line}: {text}" for line, text in comments(path) if looks_like_code(text)]
    assert not found


def comments(path: Path) -> Iterator[tuple[int, str]]:
    readline = io.StringIO(path.read_text(encoding="utf-8")).readline
    for token in tokenize.generate_tokens(readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#").strip()


def looks_like_code(comment: str) -> bool:
    """Whether a comment parses as a statement that no English sentence parses as."""
    if comment.startswith(("noqa", "type:", "!", "pragma")):
        return False
    try:
        body = ast.parse(comment if not comment.endswith(":") else f"{comment} pass").body
    except SyntaxError:
        return False
    return any(is_a_deed(statement) for statement in body)


def is_a_deed(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call | ast.Await | ast.Yield)
    # `name: word` parses as an annotation without a value, and is how prose labels things.
    return not (isinstance(statement, ast.AnnAssign) and statement.value is None)


def test_the_heuristic_knows_code_from_prose() -> None:
    code = ["x = 1", "return x", "for row in rows:", "store.create(key, data)", "import os"]
    prose = ["a word", "see docs/format.md", "units: bytes", "bytes 0-3: the magic", "why", "n"]
    assert [text for text in code if not looks_like_code(text)] == []
    assert [text for text in prose if looks_like_code(text)] == []


@each_source
def test_everything_public_says_what_it_does(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip():
        pytest.fail("a package says in one line what it is for")
    module = parse(path)
    missing = [] if ast.get_docstring(module) else ["the module"]
    if path != BREAK_GLASS:
        missing += [
            f"line {node.lineno}: {node.name}"
            for node in public_definitions(module)
            if not ast.get_docstring(node)
        ]
    assert not missing


def public_definitions(module: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of its public classes.

    Methods that a port asks for are documented there.
    """
    for node in module.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            protocol = any("Protocol" in ast.unparse(base) for base in node.bases)
            for inner in node.body:
                if not isinstance(inner, Function) or inner.name.startswith("_"):
                    continue
                if protocol or inner.name not in PORT_METHODS:
                    yield inner


def text_files() -> Iterator[Path]:
    skipped = {".git", ".venv", "__pycache__", "node_modules"}
    kinds = {".py", ".md", ".toml", ".sql", ".txt", ".yml", ".yaml", ".json", ".cfg", ""}
    for path in sorted(ROOT.rglob("*")):
        parts = set(path.relative_to(ROOT).parts)
        hidden = any(part.startswith(".") and part != ".ci" for part in parts)
        if path.is_file() and not hidden and not parts & skipped and path.suffix in kinds:
            yield path


def test_nothing_points_outside_the_project() -> None:
    allowed = {ROOT / ".ci" / "run"} | set((ROOT / "tests" / "contract").rglob("*"))
    offenders = [
        named(path)
        for path in text_files()
        if path not in allowed and OUTSIDE in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert not offenders


def test_every_module_is_used() -> None:
    """A module that nothing imports is dead, or an entry point that should be listed as one.

    What is imported late counts: the commands of the registry, and modules that the package or
    pyproject.toml names in a string.
    """
    graph = grimp.build_graph("cellarer", cache_dir=None)
    late = {command.module for command in COMMANDS.values()} | named_in_strings()
    unused = [
        module
        for module in sorted(graph.modules - ENTRY_POINTS - SHIPPED - late)
        if not graph.find_children(module)
        and not module.endswith(".__main__")
        and not graph.find_modules_that_directly_import(module)
    ]
    assert not unused


def named_in_strings() -> set[str]:
    """Dotted module names that appear as whole strings in the package and in pyproject.toml."""
    names = set(re.findall(r'"(cellarer[\w.]*)[":]', (ROOT / "pyproject.toml").read_text("utf-8")))
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def test_pourtrait_schema_is_shipped() -> None:
    """The wheel holds data files that the demo reads; a build without them would only fail late."""
    assert (PACKAGE / "demo" / "pourtrait" / "schema.sql").is_file()


def test_test_files_have_names_of_their_own() -> None:
    """They are modules without packages: of two of one name only one is imported."""
    names = [path.name for path in TESTS if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
