"""What the client and the agent say to each other: one request, one answer, fields by NUL.

Standard library only, and little of that: the client is started for every segment.
"""

from __future__ import annotations

from typing import NamedTuple

DONE = 0
ABSENT = 1
"""`wal fetch`: no replica has it, and it was never there. PostgreSQL takes it for the end."""

STOP_RECOVERY = 200
"""`wal fetch`: anything else that went wrong. Above 125 PostgreSQL stops instead of promoting."""

OUTDATED = "outdated"
"""The kind of an answer by an agent that has to be started anew: its program or config changed."""


class Request(NamedTuple):
    """What a client wants done, for the config and in the directory that it names.

    `name` is of the file in the archive (`fetch` alone), `path` where it lies or goes; `system` and
    `spool` are empty where nothing was said.
    """

    version: str
    config: str
    verb: str
    name: str
    path: str
    directory: str
    system: str
    spool: str


class Answer(NamedTuple):
    """How it went: the exit code, and for people what went wrong."""

    code: int
    kind: str = ""
    message: str = ""
    detail: str = ""
    hint: str = ""


def packed(fields: tuple[object, ...]) -> bytes:
    """A request or an answer as bytes."""
    return "\0".join(str(field) for field in fields).encode("utf-8", "surrogateescape")


def parse_request(data: bytes) -> Request:
    """The request in these bytes. Raises `ValueError`."""
    fields = data.decode("utf-8", "surrogateescape").split("\0")
    if len(fields) != len(Request._fields):
        raise ValueError("not a request")
    return Request(*fields)


def parse_answer(data: bytes) -> Answer:
    """The answer in these bytes. Raises `ValueError`, also where it broke off."""
    fields = data.decode("utf-8", "surrogateescape").split("\0")
    if len(fields) != len(Answer._fields):
        raise ValueError("not an answer")
    return Answer(int(fields[0]), *fields[1:])
