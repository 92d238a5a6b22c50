"""The documents tell the truth: commands, options, config keys, ports, errors, links, examples."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import click
import pytest

from cellarer import config, errors, ports
from cellarer.cli.registry import COMMANDS, PLANNED

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=named)


def sections(path: Path) -> dict[str, str]:
    """Heading (without its `#`s) to the text below it, up to the next heading of any level."""
    found: dict[str, str] = {}
    title, fenced = "", False
    for line in path.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            title = line.lstrip("#").strip()
        found[title] = found.get(title, "") + line + "\n"
    return found


def rows(text: str) -> dict[str, list[str]]:
    """The tables of a text: first cell, without backticks, to all cells."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {row[0].strip("`"): row for row in cells if row and row[0].startswith("`")}


# ---------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_a_section(name: str) -> None:
    text = sections(REFERENCE / "commands.md").get(f"`cellarer {name}`")
    assert text, f"docs/reference/commands.md: no heading `cellarer {name}`"
    missing = [spelling for spelling in parameters(name) if f"`{spelling}" not in text]
    assert not missing, f"not described under `cellarer {name}`: {missing}"


def parameters(name: str) -> Iterator[str]:
    """Option names and argument placeholders of a command, subcommands included."""
    registered = COMMANDS[name]
    command = getattr(import_module(registered.module), registered.attribute)
    commands: list[click.Command] = [command]
    if isinstance(command, click.Group):
        commands += command.commands.values()
        yield from (f"cellarer {name} {subcommand}" for subcommand in command.commands)
    for each in commands:
        for parameter in each.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield next(o for o in parameter.opts if o.startswith("--"))
            elif isinstance(parameter, click.Argument):
                yield (parameter.metavar or parameter.human_readable_name).strip("[]. …")


def test_no_section_for_a_command_that_is_not_there() -> None:
    headings = sections(REFERENCE / "commands.md")
    described = {h.split()[1].rstrip("`") for h in headings if h.startswith("`cellarer ")}
    assert described == set(COMMANDS)


def test_planned_commands_are_listed_as_planned() -> None:
    text = sections(REFERENCE / "commands.md")["Planned"]
    assert {name for name in PLANNED if f"`{name}`" in text} == set(PLANNED)


# ------------------------------------------------------------------------------------------ config


def tables() -> dict[str, tuple[set[str], set[str]]]:
    """Every table of the config, as headings write it, to its keys and those required."""
    schema = config.json_schema()
    found: dict[str, tuple[set[str], set[str]]] = {}

    def add(title: str, node: dict[str, Any]) -> None:
        if set(node["properties"]) == {"env", "file", "command"}:
            title = "Secrets"  # one shape, wherever it stands
        found[title] = set(node["properties"]), set(node.get("required", []))

    def walk(path: str, node: dict[str, Any]) -> None:
        node = resolve(schema, node)
        for key, value in node.get("properties", {}).items():
            member, below = resolve(schema, value), f"{path}.{key}".lstrip(".")
            named_members = next(iter(member.get("patternProperties", {}).values()), None)
            items = member.get("items")
            if "properties" in member:
                add(f"`[{below}]`", member)
                walk(below, member)
            elif isinstance(items, dict) and "properties" in resolve(schema, items):
                add(f"`[[{below}]]`", resolve(schema, items))
                walk(below, items)
            elif isinstance(named_members, dict) and "oneOf" in named_members:
                for variant in named_members["oneOf"]:
                    source = resolve(schema, variant)
                    kind = source["properties"]["kind"]["const"]
                    add(f'`[{below}.NAME]` with `kind = "{kind}"`', source)
            elif isinstance(named_members, dict):
                target = resolve(schema, named_members)
                if "properties" in target:
                    add(f"`[{below}.NAME]`", target)

    walk("", schema)
    found["`[[sources.NAME.assertions]]`"] = keys_of(schema["$defs"]["Assertion"])
    found["The tables"] = keys_of(schema)
    return found


def keys_of(node: dict[str, Any]) -> tuple[set[str], set[str]]:
    return set(node["properties"]), set(node.get("required", []))


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    target: dict[str, Any] = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return target


@pytest.mark.parametrize("title", tables())
def test_config_table_is_described(title: str) -> None:
    keys, required = tables()[title]
    text = sections(REFERENCE / "config.md").get(title)
    assert text, f"docs/reference/config.md: no heading {title}"
    described = {key.strip("[]"): cells for key, cells in rows(text).items()}
    assert set(described) == keys
    said_required = {key for key, cells in described.items() if "required" in cells}
    assert said_required == required


@each_document
def test_whole_configs_in_documents_are_valid(document: Path, tmp_path: Path) -> None:
    for number, block in enumerate(code_blocks(document, "toml")):
        if "[product]" in block:
            path = tmp_path / f"{number}.toml"
            path.write_text(block, encoding="utf-8")
            config.load(path)


def code_blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------------------------ ports, errors


def protocols() -> dict[str, type]:
    members = inspect.getmembers(ports, inspect.isclass)
    return {
        name: member
        for name, member in members
        if member.__module__ == ports.__name__ and Protocol in member.__bases__
    }


@pytest.mark.parametrize("name", protocols())
def test_port_is_described(name: str) -> None:
    text = sections(REFERENCE / "ports.md").get(f"`{name}`")
    assert text, f"docs/reference/ports.md: no heading `{name}`"
    methods = [member for member in vars(protocols()[name]) if not member.startswith("_")]
    assert set(rows(text)) == set(methods)


def error_classes() -> dict[str, type[errors.CellarerError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {n: member for n, member in members if issubclass(member, errors.CellarerError)}


def test_errors_are_described() -> None:
    described = rows((REFERENCE / "errors.md").read_text(encoding="utf-8"))
    for name, error in error_classes().items():
        assert name in described, f"docs/reference/errors.md: no row for {name}"
        assert described[name][1] == f"`{error.kind}`"
        assert described[name][2] == str(error.exit_code)
    assert {name for name in described if name[0].isupper()} == set(error_classes())


# ------------------------------------------------------------------------------- links and promises


@each_document
def test_links_resolve(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not target.startswith(("http://", "https://", "mailto:")) and not leads(document, target)
    ]
    assert not broken


def leads(document: Path, target: str) -> bool:
    """Whether a relative link points at a file, and at a heading in it if it names one."""
    name, _, anchor = target.partition("#")
    path = (document.parent / name).resolve() if name else document
    if not path.exists():
        return False
    return not anchor or anchor in {slug(heading) for heading in sections(path)}


def slug(heading: str) -> str:
    """A heading's anchor as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_changelog_has_a_place_for_what_comes() -> None:
    assert re.search(
        r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )


@each_document
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named_targets = re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text("utf-8"), re.MULTILINE)
    assert set(named_targets) <= targets


@each_document
def test_commands_in_examples_exist(document: Path) -> None:
    """In a block of shell only what is built may stand; in running text also what is planned."""
    shell = "\n".join(code_blocks(document, "(?:sh|console)"))
    typed = re.findall(r"^(?:\$ )?cellarer (?:--config \S+ )?([a-z]+)", shell, re.MULTILINE)
    assert set(typed) <= set(COMMANDS)
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"`cellarer ([a-z]+)", text)) <= {*COMMANDS, *PLANNED}


def test_readme_leads_a_newcomer() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for promise in ("make demo", "make test", "<!-- demo-output -->", "LICENSE", "CONTRIBUTING.md"):
        assert promise in text


def test_glossary_is_in_order() -> None:
    terms = [heading for heading in sections(ROOT / "docs" / "glossary.md") if heading][1:]
    assert len(terms) > 20
    assert terms == sorted(terms, key=str.lower)
