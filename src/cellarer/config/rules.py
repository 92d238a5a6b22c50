"""What is wrong with a config, said in plain words: the checks that look at several places.

They read the document as written and look away from whatever has the wrong shape: the checks of
single values speak about that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cellarer.config.lines import KeyPath
from cellarer.config.problems import Problem, did_you_mean
from cellarer.config.secrets import FORMS, reference_from
from cellarer.stores.settings import OPTIONS

_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|passphrase|secret|token|credentials?|webhook(_url)?|api_?key"
    r"|(secret|private|access|account|signing|routing|integration|encryption)_key)$",
    re.IGNORECASE,
)
_ADDRESS_WITH_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s@]*:[^/\s]+@")


def broken_rules(document: dict[str, Any]) -> Iterator[Problem]:
    """Every rule across tables that this document breaks."""
    yield from _replicas(document)
    yield from _store_options(document)
    yield from _class_names(document)
    yield from _platform_names(document)
    yield from _assertion_names(document)
    yield from _repositories(document)
    yield from _literal_secrets((), document)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tables(value: object) -> list[dict[str, Any]]:
    return [_table(member) for member in value] if isinstance(value, list) else []


def _sources(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, source in _table(document.get("sources")).items():
        yield name, _table(source)


def _replicas(document: dict[str, Any]) -> Iterator[Problem]:
    vault = _table(document.get("vault"))
    replicas = _tables(vault.get("replicas"))
    for key, says in (("name", "is called so"), ("url", "lies there")):
        yield from _repeated(("vault", "replicas"), replicas, key, f"another replica {says} too")
    quorum = vault.get("write_quorum", 1)
    if isinstance(quorum, int) and replicas and quorum > len(replicas):
        message = f"{quorum} replicas must hold a backup, but only {len(replicas)} are listed"
        yield Problem(("vault", "write_quorum"), message)


def _repositories(document: dict[str, Any]) -> Iterator[Problem]:
    for name, source in _sources(document):
        named = source.get("repositories") or source.get("list_command")
        if source.get("kind") == "git" and not named:
            message = "it names no repository: give it repositories, or a list_command"
            yield Problem(("sources", name), message)


def _store_options(document: dict[str, Any]) -> Iterator[Problem]:
    every = {option for options in OPTIONS.values() for option in options}
    for index, replica in enumerate(_tables(_table(document.get("vault")).get("replicas"))):
        scheme = str(replica.get("url")).partition("://")[0]
        known = OPTIONS.get(scheme, every)
        for name in _table(replica.get("options")):
            if name not in known:
                where: KeyPath = ("vault", "replicas", index, "options", name)
                yield Problem(where, f"unknown option{did_you_mean(name, known)}")


def _repeated(
    path: KeyPath, tables: list[dict[str, Any]], key: str, message: str
) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, table in enumerate(tables):
        value = table.get(key)
        if isinstance(value, str):
            if value in seen:
                yield Problem((*path, index, key), message)
            seen.add(value)


def _class_names(document: dict[str, Any]) -> Iterator[Problem]:
    known = list(_table(document.get("classes")))
    for name, source in _sources(document):
        assigned = source.get("class")
        path: KeyPath = ("sources", name, "class")
        names = [assigned] if isinstance(assigned, str) else list(_table(assigned))
        for wrong in (each for each in names if each not in known):
            where = path if isinstance(assigned, str) else (*path, wrong)
            meant = did_you_mean(wrong, known) or "; [classes] defines none"
            yield Problem(where, f'unknown class "{wrong}"{meant}')


def _platform_names(document: dict[str, Any]) -> Iterator[Problem]:
    known = list(_table(document.get("platforms")))
    for name, source in _sources(document):
        listed = source.get("platforms")
        wanted: list[tuple[KeyPath, object]] = [(("platform",), source.get("platform"))]
        if isinstance(listed, list):
            wanted += [(("platforms", index), each) for index, each in enumerate(listed)]
        for path, platform in wanted:
            if isinstance(platform, str) and platform not in known:
                meant = did_you_mean(platform, known) or "; [platforms] defines none"
                message = f'unknown platform "{platform}"{meant}'
                yield Problem(("sources", name, *path), message)


def _assertion_names(document: dict[str, Any]) -> Iterator[Problem]:
    for name, source in _sources(document):
        path: KeyPath = ("sources", name, "assertions")
        assertions = _tables(source.get("assertions"))
        yield from _repeated(path, assertions, "name", "another assertion is called so too")


def _literal_secrets(path: KeyPath, value: object) -> Iterator[Problem]:
    """Secrets written down where only their place may stand, in any table, known or not."""
    if isinstance(value, dict):
        for key, member in value.items():
            if _SECRET_KEY.search(key) and isinstance(member, str | dict):
                yield from _no_reference((*path, key), member)
            else:
                yield from _literal_secrets((*path, key), member)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _literal_secrets((*path, index), member)
    elif isinstance(value, str) and _ADDRESS_WITH_PASSWORD.match(value):
        message = f"the address holds a password; a secret is never written here, write {FORMS}"
        yield Problem(path, message)


def _no_reference(path: KeyPath, value: object) -> Iterator[Problem]:
    try:
        reference_from(value)
    except ValueError as error:
        yield Problem(path, str(error))
