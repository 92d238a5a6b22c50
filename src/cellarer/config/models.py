"""The config as typed, frozen values: one class for each table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, Strict

from cellarer.config.sources import GeneralRetention, Source
from cellarer.config.table import Table
from cellarer.config.values import (
    Bandwidth,
    Duration,
    Name,
    OpenTable,
    Option,
    Percentage,
    Secret,
    Text,
    Timezone,
    Timing,
    Url,
)
from cellarer.stores.settings import TIMEOUT


class Product(Table):
    """The product that is protected."""

    name: Text = Field(description="Its name, as people say it.")
    journeys: dict[Name, OpenTable] = Field(
        default={}, description="What a user does with it; drills walk these ways."
    )


class Replica(Table):
    """One copy of the vault."""

    name: Name = Field(description="How commands and reports call it.")
    url: Url = Field(description="Where it lies: file:///…, s3://…, gs://…, az://…")
    options: dict[str, Option] = Field(
        default={}, description="How to reach it: region, endpoint, keys."
    )
    timeout: Duration = Field(
        default=TIMEOUT, description="How long one call may take before it counts as failed."
    )
    bandwidth: Bandwidth | None = Field(
        default=None, description="At most so many bytes a second, up and down each."
    )
    storage_class: Text | None = Field(
        default=None, description="The cloud's class for objects of 128 KiB and more."
    )
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None, description="S3: how the server encrypts, beyond the vault's own encryption."
    )
    kms_key: Text | None = Field(
        default=None, description="S3: the id of the server's key, for the kinds of aws:kms."
    )
    immutable_for: Duration | None = Field(
        default=None, description="S3: how long the store refuses to delete what was written."
    )
    grow_only: bool = Field(
        default=False,
        description="The store overwrites: the replica is written and read, never collected.",
    )


class Vault(Table):
    """Where backups are kept, and with which keys."""

    write_key: Secret | None = Field(
        default=None, description="Lets this host add backups; it cannot read them."
    )
    collect_key: Secret | None = Field(
        default=None,
        description="Lets this host forget points and delete what nobody needs; it cannot read.",
    )
    identity: Secret | None = Field(
        default=None,
        description="Lets this host read, restore and prove; only where that is wanted.",
    )
    identity_passphrase: Secret | None = Field(
        default=None,
        description="The passphrase of the identity, where it has one; unset, the terminal is "
        "asked.",
    )
    founder: Text | None = Field(
        default=None,
        description="The public key that signed the vault's first configuration, as `keys list` "
        "shows it: for an identity that was added later and has no other key beside it.",
    )
    write_quorum: int = Field(
        default=1,
        ge=1,
        description="How many replicas must hold a backup before it counts as taken.",
    )
    replicas: Annotated[tuple[Replica, ...], Strict(False)] = Field(
        min_length=1, description="The copies of the vault, all written at once."
    )


class Objectives(Table):
    """What is promised to the people who depend on the product."""

    rto: dict[Name, Duration] = Field(
        default={}, description="Recovery time: how long each part may be away."
    )
    availability: Percentage | None = Field(
        default=None, description="The share of time it answers."
    )
    latency_p95: Duration | None = Field(
        default=None, description="How fast 95 of 100 requests are answered."
    )
    replication_lag: Duration | None = Field(
        default=None, description="How far the newest copy of the database may be behind."
    )
    integrity: Percentage | None = Field(
        default=None, description="The share of verified restore points that must be proven."
    )


class DataClass(Table):
    """How much of the newest data may be lost."""

    rpo: Duration = Field(description="Recovery point: the time whose changes may be lost.")
    description: Text | None = Field(default=None, description="What belongs to this class.")


class Schedule(Table):
    """What happens by itself, and how often (`"24h"`) or when (`"0 4 1 * *"`)."""

    verify: Timing | None = Field(
        default=None, description="Restore the newest points and prove them."
    )
    scrub: Timing | None = Field(
        default=None, description="Read what is stored and authenticate it."
    )
    retain: Timing | None = Field(default=None, description="Apply the retention.")
    drill: Timing | None = Field(default=None, description="Rehearse a recovery.")
    review: Timing | None = Field(default=None, description="Review the plan.")
    timezone: Timezone = Field(
        default="UTC", description="The clock that cron fields and days mean."
    )


class Config(Table):
    """A whole `cellarer.toml`."""

    product: Product
    vault: Vault
    objectives: Objectives = Field(default_factory=Objectives)
    classes: dict[Name, DataClass] = Field(default={}, description="Data classes by name.")
    sources: dict[Name, Source] = Field(default={}, description="What is backed up, by name.")
    retention: GeneralRetention = Field(default_factory=GeneralRetention)
    schedule: Schedule = Field(default_factory=Schedule)
    platforms: dict[Name, OpenTable] = Field(
        default={}, description="What a recovery acts on: hosting, databases, DNS, status page."
    )
    monitors: dict[Name, OpenTable] = Field(default={}, description="What is probed, by name.")
    channels: dict[Name, OpenTable] = Field(default={}, description="Ways to tell people, by name.")
    contacts: dict[Name, OpenTable] = Field(default={}, description="The people and the vendors.")
    escalation: dict[str, Any] = Field(default={}, description="Who is told after how long.")
    access: dict[str, Any] = Field(default={}, description="Who may do what.")

    _path: Path = PrivateAttr(default_factory=lambda: Path("cellarer.toml"))

    @property
    def path(self) -> Path:
        """The file this was read from."""
        return self._path

    @property
    def directory(self) -> Path:
        """The directory that relative files in the config start from."""
        return self._path.absolute().parent
