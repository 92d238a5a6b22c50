"""Compares the schema of a restored database with the archive that it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from cellarer.domain.snapshot import Check
from cellarer.postgres.toc import TableOfContents, TocEntry

_NAMED = 5

# Rows, large objects and positions of sequences have checks of their own; the rest is of the file.
_NO_SCHEMA = {
    "BLOBS",
    "ENCODING",
    "SEARCHPATH",
    "SEQUENCE SET",
    "STATISTICS DATA",
    "STDSTRINGS",
    "TABLE DATA",
}
# Each version groups large objects in its own way.
_GROUPED = {"BLOB", "BLOB METADATA"}

_Key = tuple[str, str, str]
_Signature = tuple[str, str]


def check_schema(
    database: str,
    expected: TableOfContents,
    found: TableOfContents,
    *,
    exact: bool,
    reprinted: Callable[[], TableOfContents],
) -> Check:
    """Every object of the archive is there with its owner and definition, and no other.

    Where `exact` is false, versions differ and with them the way in which definitions are printed,
    so that only names are compared. A server may print a definition in other words than it was
    given: `reprinted` gives the schema of the archive as this server prints it when it gets it
    once more, and is only asked for where definitions differ.
    """
    name = f"schema {database}"
    wanted, present = _objects(expected, exact), _objects(found, exact)
    total = sum(map(len, wanted.values()))
    differing = list(_differences(wanted, present, exact))
    if any(verb == "changed" for verb, _ in differing):
        printed = _objects(reprinted(), exact)
        differing = [
            (verb, key)
            for verb, key in differing
            if verb != "changed" or Counter(printed.get(key)) != Counter(present[key])
        ]
    what = f"{total} objects" + ("" if exact else " (by name, because versions differ)")
    if not differing:
        return Check(name, True, what, what)
    shown = "; ".join(f"{verb} {_named(key)}" for verb, key in differing[:_NAMED])
    more = "; ..." if len(differing) > _NAMED else ""
    noun = "object differs" if len(differing) == 1 else "objects differ"
    return Check(name, False, what, f"{len(differing)} {noun}: {shown}{more}")


def check_sequences(database: str, expected: TableOfContents, found: TableOfContents) -> Check:
    """Every sequence stands where it stood."""
    wanted, present = _positions(expected), _positions(found)
    off = sorted(name for name in wanted if present.get(name) != wanted[name])
    shown = "; ".join(
        f"{name} at {present.get(name, 'no position')} instead of {wanted[name]}"
        for name in off[:_NAMED]
    )
    what = f"{len(wanted)} sequences"
    more = "; ..." if len(off) > _NAMED else ""
    return Check(f"sequences {database}", not off, what, f"{shown}{more}" if off else what)


def _objects(toc: TableOfContents, exact: bool) -> dict[_Key, list[_Signature]]:
    objects: dict[_Key, list[_Signature]] = {}
    for entry in toc.entries:
        if entry.description in _NO_SCHEMA or (not exact and entry.description in _GROUPED):
            continue
        key = (entry.description, entry.namespace, entry.tag)
        objects.setdefault(key, []).append(_signature(entry) if exact else ("", ""))
    return objects


def _signature(entry: TocEntry) -> _Signature:
    # A sandbox may lack the database's locale, which the check of the restore says.
    return entry.owner, "" if entry.description == "DATABASE" else entry.definition


def _differences(
    expected: dict[_Key, list[_Signature]], found: dict[_Key, list[_Signature]], exact: bool
) -> Iterator[tuple[str, _Key]]:
    for key, signatures in expected.items():
        present = found.get(key, [])
        if len(present) < len(signatures):
            yield "missing", key
        elif exact and len(present) == len(signatures) and Counter(present) != Counter(signatures):
            owners = Counter(owner for owner, _ in present)
            same = owners == Counter(owner for owner, _ in signatures)
            yield ("changed" if same else "other owner of"), key
    for key, present in found.items():
        if len(present) > len(expected.get(key, [])):
            yield "unexpected", key


def _positions(toc: TableOfContents) -> dict[str, str]:
    found = {}
    for entry in _of_kind(toc, "SEQUENCE SET"):
        # SELECT pg_catalog.setval('schema.name', 42, true);
        value, _, called = entry.definition.rstrip().removesuffix(");").rpartition(", ")
        position = value.rpartition(", ")[2]
        used = "" if called == "true" else " (not yet used)"
        found[f"{entry.namespace}.{entry.tag}"] = f"{position}{used}"
    return found


def _of_kind(toc: TableOfContents, description: str) -> Iterable[TocEntry]:
    return (entry for entry in toc.entries if entry.description == description)


def _named(key: _Key) -> str:
    description, namespace, tag = key
    return f"{description} {namespace}.{tag}" if namespace else f"{description} {tag}"
