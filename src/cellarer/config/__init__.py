"""The config: `cellarer.toml` as typed values, with every mistake in it told at once.

Import it only where it is used: pydantic, which it is made with, takes a while to load.
"""

from cellarer.config.load import find, load
from cellarer.config.models import Config, Replica, Vault
from cellarer.config.schema import json_schema
from cellarer.config.secrets import SecretReference, resolve
from cellarer.config.sources import Files, Git, PostgresBase, PostgresDump, Retention, Source, Wal
from cellarer.config.unbuilt import unbuilt
from cellarer.config.values import Cron

__all__ = [
    "Config",
    "Cron",
    "Files",
    "Git",
    "PostgresBase",
    "PostgresDump",
    "Replica",
    "Retention",
    "SecretReference",
    "Source",
    "Vault",
    "Wal",
    "find",
    "json_schema",
    "load",
    "resolve",
    "unbuilt",
]
