"""The structure is what ARCHITECTURE.md and the import contracts say it is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "cellarer"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def test_import_contracts_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    outcome = lint_imports(cache_dir=None, no_cache=True, no_logo=True)
    assert outcome == 0, capsys.readouterr().out


def test_no_layer_is_optional() -> None:
    """A layer in parentheses may be missing: a typo would switch the contract off."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")
    assert layers["exhaustive"] is True
    assert not [layer for layer in layers["layers"] if "(" in layer]


def test_port_is_small() -> None:
    """A port with many methods is several ports."""
    text = (PACKAGE / "ports.py").read_text(encoding="utf-8")
    classes = re.split(r"^class ", text, flags=re.MULTILINE)[1:]
    sizes = {body.split("(")[0].split(":")[0]: body.count("    def ") for body in classes}
    assert sizes
    assert max(sizes.values()) <= 8


def test_code_map_names_every_module_and_no_other() -> None:
    named = set(code_map())
    there = set(modules())
    assert there - named == set(), "not in the code map"
    assert named - there == set(), "in the code map, but not there"


def code_map() -> Iterator[str]:
    """The modules that ARCHITECTURE.md names; a paragraph begins with the package it is about."""
    text = section(ARCHITECTURE.read_text(encoding="utf-8"), "Code map")
    for paragraph in text.split("\n\n"):
        package = re.match(r"\*\*`(\w+/)`\*\*", paragraph)
        prefix = package.group(1) if package else ""
        if package:
            yield prefix
        for name in re.findall(r"`([\w/]+\.py|\w+/)`", paragraph):
            if name != prefix:
                yield prefix + name


def test_architecture_is_one_sitting() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not re.search(r"\.py:\d+|\bline \d+", text), "line numbers rot; name files"


def section(text: str, title: str) -> str:
    """The section of a Markdown text under the `## ` heading of this title."""
    body = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert body, f'there is no section "{title}"'
    return body.group(1)


def modules() -> Iterator[str]:
    """Packages as `vault/`, modules as `vault/pack.py`, relative to the package's root."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if path.name != "__init__.py":
            yield str(relative)
        elif relative.parent.parts:
            yield f"{relative.parent}/"
