"""The `[sources.NAME]` tables, one model for each kind."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, Strict

from cellarer.config.table import Table
from cellarer.config.values import (
    ClassAssignment,
    Connection,
    Count,
    Duration,
    Expectation,
    Name,
    Names,
    Option,
    Patterns,
    Repository,
    Secret,
    Size,
    Text,
    Url,
)

DEFAULT_REPACK_BYTES = 10 * 10**9
"""An hour or so at the pace of an office's line; a vault of terabytes is tidied in weeks."""


class Retention(Table):
    """Which restore points are kept. A point is kept if any rule wants it."""

    last: Count | None = Field(default=None, description="The newest N points.")
    within: Duration | None = Field(default=None, description="Every point younger than this.")
    hourly: Count | None = Field(default=None, description="The newest point of each of N hours.")
    daily: Count | None = Field(default=None, description="The newest point of each of N days.")
    weekly: Count | None = Field(default=None, description="The newest point of each of N weeks.")
    monthly: Count | None = Field(default=None, description="The newest point of each of N months.")
    yearly: Count | None = Field(default=None, description="The newest point of each of N years.")


class GeneralRetention(Retention):
    """The retention of all sources that have none of their own, and the collecting that follows."""

    repack: Size = Field(
        default=DEFAULT_REPACK_BYTES,
        description="How many bytes one run of `retain` may copy out of packs of which much is not "
        "needed any more, so that these can go. 0 for nothing.",
    )
    wal_window: Duration | None = Field(
        default=None,
        description="How far back from the newest base backup every moment can be recovered. "
        "Unset, WAL is kept from the oldest base backup on.",
    )


class Assertion(Table):
    """A question in SQL whose answer is known; `verify` asks it of the restored database."""

    name: Text = Field(description="What is claimed, in words.")
    sql: Text = Field(description="A query that returns one value.")
    expect: Expectation = Field(description="That value.")
    database: Text | None = Field(
        default=None, description="Which database, where there are several."
    )


class AnySource(Table):
    """What every source has, whatever its kind."""

    every: Duration | None = Field(default=None, description="How often a backup is taken.")
    classes: ClassAssignment = Field(
        default_factory=dict,
        alias="class",
        description="The data class of all of it, or a table of classes to patterns of names; "
        "the first class whose pattern fits counts.",
    )
    retention: Retention | None = Field(
        default=None, description="Instead of the general `[retention]`."
    )


class PostgresDump(AnySource):
    """A PostgreSQL server, read with `pg_dump`; managed servers too."""

    kind: Literal["postgres_dump"]
    dsn: Connection = Field(description="A connection string without password, or a secret.")
    profile: Literal["plain", "supabase"] = Field(
        default="plain", description="What kind of server it is."
    )
    databases: Annotated[tuple[Text, ...], Strict(False)] = Field(
        default=(), description='Which databases; none means the one of `dsn`, "*" means all.'
    )
    assertions: Annotated[tuple[Assertion, ...], Strict(False)] = Field(
        default=(), description="What has to be true of the restored data."
    )


class PostgresBase(AnySource):
    """A PostgreSQL server, read file by file; the ground on which WAL is replayed."""

    kind: Literal["postgres_base"]
    dsn: Connection = Field(description="A connection string without password, or a secret.")
    read: Literal["auto", "direct", "replication"] = Field(
        default="auto",
        description="Directly, on the database's host as a user who may read its files; from afar "
        "over the replication protocol; auto takes the first that is possible.",
    )
    data_directory: Text | None = Field(
        default=None,
        description="Where the files are seen here, if not where the server says they are.",
    )
    assertions: Annotated[tuple[Assertion, ...], Strict(False)] = Field(
        default=(), description="What has to be true of the restored data."
    )


class Wal(AnySource):
    """The write-ahead log of a PostgreSQL server; with a base backup, any second comes back."""

    kind: Literal["wal"]
    dsn: Connection = Field(description="A connection string without password, or a secret.")
    method: Literal["stream", "archive"] = Field(
        default="stream",
        description="Streamed as it is written, or handed over by archive_command.",
    )
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = Field(
        default="cellarer",
        description="The permanent physical replication slot that makes the server keep log.",
    )
    flush_every: Duration = Field(
        default=timedelta(seconds=10),
        description="How often the part of a segment that is not complete yet is stored.",
    )
    heartbeat: Literal["none", "message"] = Field(
        default="none",
        description="Whether a transaction without effect is committed as often, so that an idle "
        "server says how late it is and can be recovered to any time: with message, a logical "
        "message in its log and nothing in a table.",
    )
    spool: Text | None = Field(
        default=None,
        description="The directory in which log waits for the vault; unset, one below "
        "~/.local/state.",
    )
    spool_limit: Size = Field(
        default=4 * 10**9,
        description="How much may wait there; where that is reached, receiving pauses.",
    )
    when_full: Literal["hold", "drop-slot"] = Field(
        default="hold",
        description="What gives way where the vault takes nothing and so much has piled up: hold "
        "lets the server keep its log until its disk is full; drop-slot drops the slot, which "
        "leaves a gap.",
    )


class Git(AnySource):
    """Git repositories, mirrored with all their refs."""

    kind: Literal["git"]
    repositories: Annotated[tuple[Repository, ...], Strict(False)] = Field(
        default=(), description="Their addresses, without credentials."
    )
    list_command: Patterns = Field(
        default=(),
        description="A program with its arguments that prints further addresses, a line each.",
    )
    token: Secret | None = Field(
        default=None, description="A token for those that are reached over HTTP."
    )
    user: Text = Field(default="git", description="The user that the token goes with.")


class Files(AnySource):
    """Files and directories of this host."""

    kind: Literal["files"]
    paths: Patterns = Field(min_length=1, description="Files, or directories with all beneath.")
    exclude: Patterns = Field(default=(), description="Patterns of what is left out.")


class Bucket(AnySource):
    """The objects of a bucket, with their metadata."""

    kind: Literal["bucket"]
    url: Url = Field(description="The bucket, or a prefix in it.")
    options: dict[str, Option] = Field(
        default={}, description="How to reach it: region, endpoint, keys."
    )
    exclude: Patterns = Field(default=(), description="Patterns of object names that are left out.")


class Settings(AnySource):
    """The settings of platforms: names of variables, configuration of projects."""

    kind: Literal["settings"]
    platforms: Names = Field(min_length=1, description="Names of `[platforms.NAME]` tables.")
    values: bool = Field(default=False, description="Whether the values are taken too, encrypted.")


class Managed(AnySource):
    """Backups that a platform makes by itself; they are watched, not made."""

    kind: Literal["managed"]
    platform: Name = Field(description="The name of a `[platforms.NAME]` table.")
    max_age: Duration | None = Field(default=None, description="The newest one may be this old.")
    recovery_window: Duration | None = Field(
        default=None, description="Recovery to a point in time has to reach back this far."
    )


Source = Annotated[
    PostgresDump | PostgresBase | Wal | Git | Files | Bucket | Settings | Managed,
    Field(discriminator="kind"),
]
"""A source of any kind; `kind` says which."""
