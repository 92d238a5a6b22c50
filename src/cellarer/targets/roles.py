"""Brings the roles of a restore point to a server, from the script that `pg_dumpall` wrote.

Roles that the server lacks are made whole: attributes, password, settings, memberships. Roles that
it has already stay as they are unless overwriting was asked for, because other databases of that
server may depend on them. The role of the connection itself is never changed: a new password
would lock the restore out halfway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import psycopg
from psycopg import sql

from cellarer.errors import TargetFailed
from cellarer.postgres.catalogue import Connection

_NAME = r'("(?:[^"]|"")+"|[^\s";]+)'
_CREATE = re.compile(rf"CREATE ROLE {_NAME}$")
_ALTER = re.compile(rf"ALTER ROLE {_NAME} WITH (.*)$", re.DOTALL)
_ABOUT_ONE = re.compile(rf"(?:ALTER ROLE|COMMENT ON ROLE) {_NAME} ")
_GRANT = re.compile(rf"GRANT {_NAME} TO {_NAME}(?: WITH [A-Z, ]+?)?( GRANTED BY {_NAME})?$")
# A grant on a configuration parameter, or anything else that a later pg_dumpall may add.
_ADDRESSEE = re.compile(rf" TO {_NAME}(?: WITH GRANT OPTION)?$")
# Only a superuser may even say these, be it to turn them off.
_SUPERUSER_ATTRIBUTES = re.compile(r"\b(NO)?(SUPERUSER|REPLICATION|BYPASSRLS)\b ?")
_STRING = re.compile(r"'(?:[^']|'')*'")
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
      | (?P<escaped>[eE]'(?:[^'\\]|''|\\.)*')
      | (?P<string>'(?:[^']|'')*')
      | (?P<name>"(?:[^"]|"")*")
      | (?P<end>;)
      | (?P<other>[^-/eE'";]+|.)""",
    re.VERBOSE | re.DOTALL,
)


def statements(script: str) -> Iterator[str]:
    """The SQL statements of a script of `pg_dumpall`, without comments and psql's own commands.

    Quoted names and strings may hold semicolons and line ends.
    """
    current: list[str] = []
    position = 0
    while position < len(script):
        if not current:
            position = _spaces_end(script, position)
            if script.startswith("\\", position):
                # A command of psql: a line of its own between statements.
                position = (script.find("\n", position) + 1) or len(script)
                continue
        match = _TOKEN.match(script, position)
        if match is None:
            break
        position = match.end()
        if match.lastgroup == "end":
            yield "".join(current).strip()
            current = []
        elif match.lastgroup != "comment":
            current.append(match[0])
    if text := "".join(current).strip():
        yield text


def _spaces_end(script: str, position: int) -> int:
    while position < len(script) and script[position].isspace():
        position += 1
    return position


class RoleRestorer:
    """Applies the statements one by one and judges what the server answers.

    Where the connection has a transaction open, they belong to it.
    """

    def __init__(
        self, connection: Connection, overwrite: bool, note: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._overwrite = overwrite
        self._note = note
        row = connection.execute(
            "SELECT current_user, rolsuper, array(SELECT rolname FROM pg_roles)"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        assert row is not None
        self._own_name: str = row[0]
        self._superuser: bool = row[1]
        self._present: set[str] = set(row[2])
        self._created: set[str] = set()
        self._kept: set[str] = set()

    def restore(self, script: bytes) -> None:
        """Run the script of `pg_dumpall --roles-only`. Raises `TargetFailed`."""
        for statement in statements(script.decode("utf-8", "surrogateescape")):
            self._restore(statement)
        self._execute("SET client_encoding = 'UTF8'")
        kept = sorted(self._kept - {self._own_name})
        if kept:
            self._note(f"roles kept as they are on the server: {', '.join(kept)}")

    def _restore(self, statement: str) -> None:
        if match := _CREATE.match(statement):
            self._create(_unquoted(match[1]), statement)
        elif match := _GRANT.match(statement):
            self._grant(match, statement)
        elif match := _ABOUT_ONE.match(statement):
            if self._may_change(_unquoted(match[1])):
                self._alter(statement)
        elif match := _ADDRESSEE.search(statement):
            if self._may_change(_unquoted(match[1])):
                self._run(statement, optional=not self._superuser)
        else:
            self._run(statement)

    def _create(self, name: str, statement: str) -> None:
        if name in self._present:
            if not self._overwrite:
                self._kept.add(name)
            return
        if name.startswith("pg_"):
            self._note(f"role {name} is not made: names with pg_ belong to PostgreSQL")
            return
        self._run(statement)
        self._created.add(name)
        if not self._superuser:
            # Or this user could not hand objects over to the new role.
            member = sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(name))
            self._run(member.as_string(self._connection))

    def _may_change(self, name: str) -> bool:
        if name in self._created:
            return True
        return self._overwrite and name in self._present and name != self._own_name

    def _alter(self, statement: str) -> None:
        match = _ALTER.match(statement)
        if match is None or self._superuser:
            self._run(statement, optional=not self._superuser)
            return
        options = _STRING.split(match[2])
        lost = [one[2] for one in _SUPERUSER_ATTRIBUTES.finditer(options[0]) if not one[1]]
        if lost:
            self._note(f"role {match[1]} comes without {', '.join(lost)}: only a superuser may")
        kept = _SUPERUSER_ATTRIBUTES.sub("", options[0]) + match[2][len(options[0]) :]
        if kept.strip():
            # Of roles that are there already, some are above this user: on every server its own
            # superuser. They stay as they are.
            there = _unquoted(match[1]) not in self._created
            self._run(f"ALTER ROLE {match[1]} WITH {kept}", optional=there)

    def _grant(self, match: re.Match[str], statement: str) -> None:
        names = {_unquoted(match[1]), _unquoted(match[2])}
        if not self._overwrite and not names & self._created:
            return
        optional = not self._superuser and not names & self._created
        if match[3] is None:
            self._run(statement, optional)
            return
        try:
            self._execute(statement)
        except psycopg.Error:
            # Whoever granted it may not exist here, or may not grant it: before PostgreSQL 16
            # this was remembered but never enforced.
            self._run(statement[: match.start(3)], optional)

    def _run(self, statement: str, optional: bool = False) -> None:
        try:
            self._execute(statement)
        except psycopg.errors.InsufficientPrivilege as error:
            if not optional:
                raise self._failure(statement, error) from None
            self._note(f"left out, only a superuser may: {_without_strings(statement)}")
        except psycopg.Error as error:
            raise self._failure(statement, error) from None

    def _execute(self, statement: str) -> None:
        # A savepoint where a transaction is open: some errors are none, and must not end it.
        with self._connection.transaction():
            self._connection.execute(statement.encode("utf-8", "surrogateescape"))

    def _failure(self, statement: str, error: psycopg.Error) -> TargetFailed:
        hint = "Nothing of the databases has been touched yet."
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = "Connect as a user with CREATEROLE, best as a superuser. " + hint
        reason = error.diag.message_primary or str(error)
        return TargetFailed(
            "the roles cannot be restored",
            detail=f"{_without_strings(statement)}: {_without_strings(reason)}",
            hint=hint,
        )


def _without_strings(statement: str) -> str:
    """For messages: a password hash is a string."""
    return _STRING.sub("'...'", statement)[:200]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
