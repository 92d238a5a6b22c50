"""The kinds of value that a config holds, each with its check and its JSON Schema.

A check raises `ValueError` with a message for people; the loader adds file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, PlainSerializer, PlainValidator, Strict, WithJsonSchema

from cellarer.config.secrets import SecretReference, reference_from
from cellarer.domain.quantity import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
URL_SCHEMES = ("file", "s3", "gs", "az")
"""What a replica or a bucket may live on: a directory, S3, Google Cloud Storage, Azure."""

_CRON_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 7),
)
_TOML_WORDS = (
    (bool, "true or false"),
    (str, "text"),
    (int, "a whole number"),
    (float, "a number"),
    (dict, "a table"),
    (list, "a list"),
)


def in_words(value: object) -> str:
    """What kind of TOML value this is, for messages."""
    return next((words for kind, words in _TOML_WORDS if isinstance(value, kind)), "a date or time")


def text_from(value: object) -> str:
    """Text that is not blank."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {in_words(value)}")
    if not value.strip():
        raise ValueError("the text is empty")
    return value


def name_from(value: object) -> str:
    """A name that commands, paths and messages can carry."""
    name = text_from(value)
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f'"{name}" is no name; use letters, digits, "-" and "_", at most 64')
    return name


def duration_from(value: object) -> timedelta:
    """A time span such as `"6h"`."""
    if not isinstance(value, str):
        raise ValueError(f'expected a duration such as "6h", found {in_words(value)}')
    return parse_duration(value)


def size_from(value: object) -> int:
    """Bytes, such as `"20MB"`."""
    if not isinstance(value, str):
        raise ValueError(f'expected a size such as "20MB", found {in_words(value)}')
    return parse_size(value)


def bandwidth_from(value: object) -> int:
    """Bytes a second, such as `"20MB"`."""
    bytes_per_second = size_from(value)
    if bytes_per_second == 0:
        raise ValueError(f'"{value}" lets nothing through; leave it out for no limit')
    return bytes_per_second


def percentage_from(value: object) -> float:
    """`"99.9%"` as the fraction 0.999."""
    if not isinstance(value, str):
        raise ValueError(f'expected a percentage such as "99.9%", found {in_words(value)}')
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", value)
    if match is None or float(match.group(1)) > 100:
        raise ValueError(f'"{value}" is not a percentage; write for example "99.9%"')
    # Divided exactly, so that 99.9 % is the same number as 0.999.
    return float(Fraction(match.group(1)) / 100)


@dataclass(frozen=True)
class Cron:
    """Times of the wall clock: minute, hour, day of the month, month, day of the week."""

    expression: str


def timing_from(value: object) -> timedelta | Cron:
    """How often (`"24h"`) or when (`"0 4 1 * *"`, five cron fields of numbers)."""
    if isinstance(value, str) and len(value.split()) > 1:
        return _cron_from(value)
    if not isinstance(value, str):
        example = '"24h" or five cron fields such as "0 4 1 * *"'
        raise ValueError(f"expected {example}, found {in_words(value)}")
    return parse_duration(value)


def _cron_from(text: str) -> Cron:
    fields = text.split()
    if len(fields) != len(_CRON_FIELDS):
        raise ValueError(
            f'"{text}" has {len(fields)} fields; cron has five: minute, hour, day, month, weekday'
        )
    for field, (name, lowest, highest) in zip(fields, _CRON_FIELDS, strict=True):
        for part in field.split(","):
            match = re.fullmatch(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?", part)
            first, last, step = match.groups() if match else (None, None, "0")
            begin = int(first or lowest)
            end = int(last or first or highest)
            if not (lowest <= begin <= end <= highest and int(step or 1) > 0):
                raise ValueError(f'"{field}" does not fit: {name} is {lowest} to {highest}')
    return Cron(text)


def timezone_from(value: object) -> str:
    """A name of the time zone database, such as `"Europe/Berlin"`."""
    name = text_from(value)
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        # Small containers carry no time zone database: then no name can be judged.
        if available_timezones():
            message = f'"{name}" is not a time zone; write for example "Europe/Berlin" or "UTC"'
            raise ValueError(message) from None
    return name


def url_from(value: object) -> str:
    """The address of a directory or bucket, without credentials."""
    url = text_from(value)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in URL_SCHEMES or not rest:
        known = ", ".join(f"{known}://" for known in URL_SCHEMES)
        raise ValueError(f"expected an address that begins with {known}")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError("a directory is written with three slashes and its whole path: file:///…")
    return url


def holds_password(text: str) -> bool:
    """Whether this is an address, or a libpq connection string, with a password in it."""
    if re.search(r"(^|\s)(ssl)?password\s*=\s*[^\s]", text):
        return True
    if "://" not in text:
        return False
    # An address that cannot be taken apart is judged by its looks.
    try:
        parts = urlsplit(text)
        query = parse_qs(parts.query)
    except ValueError:
        return bool(re.search(r"://[^/\s]*:[^/\s]*@", text))
    user_information = parts.netloc.rpartition("@")[0]
    _, colon, password = user_information.partition(":")
    return bool(colon and password) or any(key in query for key in ("password", "sslpassword"))


def connection_from(value: object) -> str | SecretReference:
    """A PostgreSQL connection string without a password, or where a whole one is to be had."""
    if isinstance(value, dict):
        return reference_from(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a connection string or a secret, found {in_words(value)}")
    connection = text_from(value)
    if holds_password(connection):
        raise ValueError(
            'the connection string holds a password; write { env = "DATABASE_URL" } and set it '
            "there, or leave the password to ~/.pgpass"
        )
    return connection


def option_from(value: object) -> str | SecretReference:
    """An option of a store: text, or a secret."""
    if isinstance(value, dict):
        return reference_from(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text or a secret, found {in_words(value)}")
    return value


def repository_from(value: object) -> str:
    """The address of a git repository, without credentials."""
    address = text_from(value)
    # Over HTTP the user name alone may be a token.
    if holds_password(address) or re.match(r"https?://[^/]*@", address):
        raise ValueError(
            "credentials do not belong into an address; use ssh, or git's credential helper"
        )
    return address


def expectation_from(value: object) -> int | float | bool | str:
    """The single value that an assertion's SQL has to return."""
    if isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"expected a number, text, true or false, found {in_words(value)}")


def class_assignment_from(value: object) -> dict[str, tuple[str, ...]]:
    """Data class to the patterns of what belongs to it; one class alone takes everything."""
    if isinstance(value, str):
        return {value: ("*",)}
    if not isinstance(value, dict):
        found = in_words(value)
        raise ValueError(f"expected a class, or a table of classes to patterns, found {found}")
    for name, patterns in value.items():
        if not isinstance(patterns, list) or not patterns:
            raise ValueError(f'"{name}" needs a list of patterns, such as ["public.*"]')
        for pattern in patterns:
            text_from(pattern)
    return {name: tuple(patterns) for name, patterns in value.items()}


def _kind(check: Callable[[object], Any], schema: dict[str, Any]) -> tuple[Any, ...]:
    return PlainValidator(check), WithJsonSchema(schema)


_SECRET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Where a secret is to be had; exactly one of the three.",
    "properties": {
        "env": {
            "type": "string",
            "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
            "description": "The name of an environment variable.",
        },
        "file": {
            "type": "string",
            "minLength": 1,
            "description": "A file, relative to the config's directory.",
        },
        "command": {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "minItems": 1,
            "description": "A program that prints the secret, and its arguments.",
        },
    },
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_TEXT_SCHEMA = {"type": "string", "minLength": 1}
_TEXT_OR_SECRET_SCHEMA = {"anyOf": [{"type": "string"}, _SECRET_SCHEMA]}
_NAME_SCHEMA = {"type": "string", "pattern": NAME_PATTERN}
_DURATION_SCHEMA = {"type": "string", "pattern": DURATION_PATTERN, "minLength": 2}
_SIZE_SCHEMA = {"type": "string", "pattern": SIZE_PATTERN}
_PERCENTAGE_SCHEMA = {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]{1,9})? ?%$"}
_URL_SCHEMA = {"type": "string", "pattern": f"^({'|'.join(URL_SCHEMES)})://."}
_CLASS_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        {
            "type": "object",
            "additionalProperties": {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1},
        },
    ]
}

Text = Annotated[str, *_kind(text_from, _TEXT_SCHEMA)]
Name = Annotated[str, *_kind(name_from, _NAME_SCHEMA)]
Duration = Annotated[
    timedelta, *_kind(duration_from, _DURATION_SCHEMA), PlainSerializer(format_duration)
]
Size = Annotated[int, *_kind(size_from, _SIZE_SCHEMA), PlainSerializer(format_size)]
Bandwidth = Annotated[int, *_kind(bandwidth_from, _SIZE_SCHEMA), PlainSerializer(format_size)]
Percentage = Annotated[float, *_kind(percentage_from, _PERCENTAGE_SCHEMA)]
Timing = Annotated[timedelta | Cron, *_kind(timing_from, _TEXT_SCHEMA)]
Timezone = Annotated[str, *_kind(timezone_from, _TEXT_SCHEMA)]
Url = Annotated[str, *_kind(url_from, _URL_SCHEMA)]
Repository = Annotated[str, *_kind(repository_from, _TEXT_SCHEMA)]
Secret = Annotated[SecretReference, *_kind(reference_from, _SECRET_SCHEMA)]
Connection = Annotated[str | SecretReference, *_kind(connection_from, _TEXT_OR_SECRET_SCHEMA)]
Option = Annotated[str | SecretReference, *_kind(option_from, _TEXT_OR_SECRET_SCHEMA)]
Expectation = Annotated[
    int | float | bool | str,
    *_kind(expectation_from, {"type": ["integer", "number", "boolean", "string"]}),
]
ClassAssignment = Annotated[
    dict[str, tuple[str, ...]], *_kind(class_assignment_from, _CLASS_SCHEMA)
]
Count = Annotated[int, Field(ge=0)]
OpenTable = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]

# TOML has lists and the models are frozen: tuples are made of them.
Patterns = Annotated[tuple[Text, ...], Strict(False)]
Names = Annotated[tuple[Name, ...], Strict(False)]
