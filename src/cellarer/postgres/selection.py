"""Chooses the entries of an archive that a part of a restore needs.

A table comes with all that makes it whole: its rows, defaults, sequences, constraints, indexes,
triggers, policies, comments and grants, the schemas, types and functions that these need, and the
partitions below it. What would need another table that is not there is left out, and said.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cellarer.errors import UsageError
from cellarer.postgres.archive import table_path
from cellarer.postgres.contents import Contents
from cellarer.postgres.toc import TableOfContents, TocEntry

_TABLE = "TABLE"
# What a restore of some tables does not bring along unasked: it must be chosen, or it is absent.
_NEVER_BROUGHT_ALONG = {
    "TABLE",
    "VIEW",
    "MATERIALIZED VIEW",
    "FOREIGN TABLE",
    "PUBLICATION",
    "SUBSCRIPTION",
    "EVENT TRIGGER",
}
# What belongs to the objects that it depends on and comes with them.
_BELONGINGS = {
    "ACL",
    "CHECK CONSTRAINT",
    "COMMENT",
    "CONSTRAINT",
    "DEFAULT",
    "FK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "POLICY",
    "ROW SECURITY",
    "RULE",
    "SECURITY LABEL",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "STATISTICS",
    "STATISTICS DATA",
    "TABLE ATTACH",
    "TABLE DATA",
    "TRIGGER",
}
_OF_SCHEMAS = {"ACL", "COMMENT", "SECURITY LABEL"}
# A table that comes without rows has no use for these, and would break foreign keys to it.
_OF_ROWS = {"TABLE DATA", "STATISTICS DATA", "FK CONSTRAINT"}
# Of these a person wants to hear when they are left out.
_WORTH_A_NOTE = {"FK CONSTRAINT", "TRIGGER", "POLICY", "RULE", "DEFAULT", "CHECK CONSTRAINT"}


@dataclass(frozen=True)
class Selection:
    """The entries to restore, by dump id, and what a person should know about the rest."""

    dump_ids: frozenset[int]
    tables: tuple[TocEntry, ...]
    notes: tuple[str, ...]


def select(contents: Contents, patterns: Sequence[str]) -> dict[str, Selection]:
    """What the patterns ask for, by the name of each database that has a table that matches one.

    A pattern is `table`, `schema.table` or a stream's path, with `*` and `?` as wildcards. Raises
    `UsageError` for one that matches no table.
    """
    for pattern in patterns:
        if not any(
            _matches(database.name, entry, pattern)
            for database in contents.databases
            for entry in database.toc.entries
        ):
            raise _no_match(pattern, [n for one in contents.databases for n in _tables(one.toc)])
    selections = {}
    for database in contents.databases:
        chosen = [
            entry
            for entry in database.toc.entries
            if any(_matches(database.name, entry, pattern) for pattern in patterns)
        ]
        if chosen:
            selections[database.name] = _Selector(database.toc).select(chosen)
    return selections


def _no_match(pattern: str, tables: Iterable[str]) -> UsageError:
    """The error for a pattern that matches nothing, with the nearest names that would."""
    names = sorted(set(tables))
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
    near = near or [name for name in names if pattern.strip("*").lower() in name.lower()][:3]
    return UsageError(
        f"no table of the restore point matches {pattern}",
        detail=f"it holds {len(names)} tables; views, materialized views, sequences and large"
        " objects cannot be chosen: they come with a whole database",
        hint=f"Did you mean {', '.join(near)}?" if near else "See `cellarer show` for their names.",
    )


def _tables(toc: TableOfContents) -> list[str]:
    """`schema.table` for every table."""
    return [f"{e.namespace}.{e.tag}" for e in toc.entries if e.description == _TABLE]


def _matches(database: str, entry: TocEntry, pattern: str) -> bool:
    if entry.description != _TABLE:
        return False
    names = (
        entry.tag,
        f"{entry.namespace}.{entry.tag}",
        table_path(database, entry.namespace, entry.tag),
    )
    # Compared as it stands first: names may hold brackets and asterisks themselves.
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


class _Selector:
    def __init__(self, toc: TableOfContents) -> None:
        self._entries: Sequence[TocEntry] = toc.entries
        self._by_id: Mapping[int, TocEntry] = {entry.dump_id: entry for entry in toc.entries}
        self._taken: set[int] = set()

    def select(self, chosen: Iterable[TocEntry]) -> Selection:
        """Take the tables and what they need, then what belongs to all that was taken."""
        tables = self._with_partitions(chosen)
        for table in tables:
            self._taken |= self._needs(table)
        structure_only = self._relations(self._taken) - {table.dump_id for table in tables}
        while self._take_belongings(structure_only):
            pass
        notes = [
            f"{self._name(self._by_id[one])} comes without its rows: a chosen table needs it"
            for one in sorted(structure_only)
            if self._by_id[one].description == _TABLE
        ]
        notes += self._left_out(tables)
        return Selection(frozenset(self._taken), tuple(tables), tuple(notes))

    def _with_partitions(self, chosen: Iterable[TocEntry]) -> list[TocEntry]:
        tables = {entry.dump_id: entry for entry in chosen}
        waiting = list(tables)
        while waiting:
            parent = waiting.pop()
            for attach in self._entries:
                if attach.description == "TABLE ATTACH" and parent in attach.dependencies:
                    for one in attach.dependencies:
                        entry = self._by_id.get(one)
                        if entry and entry.tag == attach.tag and one not in tables:
                            tables[one] = entry
                            waiting.append(one)
        return [entry for entry in self._entries if entry.dump_id in tables]

    def _needs(self, entry: TocEntry) -> set[int]:
        """The entry and everything that it depends on, through any number of steps."""
        found: set[int] = set()
        waiting = [entry.dump_id]
        while waiting:
            one = waiting.pop()
            if one in self._by_id and one not in found:
                found.add(one)
                waiting += self._by_id[one].dependencies
        return found

    def _relations(self, dump_ids: Iterable[int]) -> set[int]:
        return {i for i in dump_ids if self._by_id[i].description in _NEVER_BROUGHT_ALONG}

    def _take_belongings(self, structure_only: set[int]) -> bool:
        grew = False
        for entry in self._entries:
            if entry.dump_id in self._taken or entry.description not in _BELONGINGS:
                continue
            if not self._belongs(entry):
                continue
            if entry.description in _OF_ROWS and structure_only & set(entry.dependencies):
                continue
            needs = self._needs(entry)
            if self._relations(needs) <= self._taken:
                self._taken |= needs
                grew = True
        return grew

    def _belongs(self, entry: TocEntry) -> bool:
        """Whether it depends on something taken; lying in the same schema is not enough."""
        taken = [self._by_id[one] for one in entry.dependencies if one in self._taken]
        of_schemas = entry.description in _OF_SCHEMAS
        return any(of_schemas or one.description != "SCHEMA" for one in taken)

    def _left_out(self, tables: Iterable[TocEntry]) -> Iterable[str]:
        for entry in self._entries:
            if entry.description not in _WORTH_A_NOTE or entry.dump_id in self._taken:
                continue
            if any(_is_of(entry, table) for table in tables):
                absent = self._relations(self._needs(entry)) - self._taken
                names = ", ".join(self._name(self._by_id[one]) for one in sorted(absent))
                yield f"{entry.description.lower()} {self._name(entry)} is left out: needs {names}"

    @staticmethod
    def _name(entry: TocEntry) -> str:
        return f"{entry.namespace}.{entry.tag}" if entry.namespace else entry.tag


def _is_of(entry: TocEntry, table: TocEntry) -> bool:
    """Whether a constraint, trigger and the like is of this table: its tag begins with the name."""
    return (
        table.dump_id in entry.dependencies
        and entry.namespace == table.namespace
        and entry.tag.startswith(f"{table.tag} ")
    )
