"""Whose signature counts for what: one table, and nothing else decides it.

A *matter* is what a signed object is about: a purpose of the format, or the type of a ledger entry.
A session's register is three matters, for COMMIT, ABORT and REPACK need different rights.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from cellarer.errors import DamagedData


class SignedTooLate(DamagedData):
    """Signed by a key that was retired before: it counts for nothing, and is no damage.

    Whoever holds such a key can put any number of objects into the stores.
    """


class Role(Enum):
    """The right a signing key stands for, from the least to the greatest."""

    WRITER = "writer"
    COLLECTOR = "collector"
    ADMINISTRATOR = "administrator"


KEY_SETTINGS: Mapping[Role, str] = {
    Role.WRITER: "write_key",
    Role.COLLECTOR: "collect_key",
    Role.ADMINISTRATOR: "identity",
}
"""Which key of the table `[vault]` carries a right."""

_WRITER = (Role.WRITER,)
_ADMINISTRATOR = (Role.ADMINISTRATOR,)
_DELETING = (Role.COLLECTOR, Role.ADMINISTRATOR)
_ANYONE = (Role.WRITER, Role.COLLECTOR, Role.ADMINISTRATOR)

PURPOSES: Mapping[str, tuple[Role, ...]] = {
    "config": _ADMINISTRATOR,
    "session": _WRITER,
    "commit": _WRITER,
    "abort": _ANYONE,  # a writer only of its own session
    "repack": _DELETING,  # announcement and register of a session that moves records
    "forgotten": _DELETING,
    "collection": _DELETING,
    "wal": _WRITER,
    "ledger": _ANYONE,  # and then by the type of the entry
}
FACTS: Mapping[str, tuple[Role, ...]] = {
    "proof": _ADMINISTRATOR,  # who proves can read
    "hold": _DELETING,
    "release": _DELETING,
    "giving-up": _DELETING,
    "retention": _DELETING,
    "collection": _DELETING,
    "repack": _DELETING,
    "wal": _WRITER,  # who stores it says what was stored
    "wal-removed": _DELETING,
    "damage": _ANYONE,
    "repair": _ANYONE,
    "scrub": _ANYONE,
    "immutability": _ANYONE,  # to lengthen a lock takes nothing from anybody
}
"""The types of ledger entry that this version knows."""

LATE_IS_NOTHING = frozenset({"session", "commit", "abort", "ledger"})
"""What a key signs of these after it was retired is as if it were not there. Not so what moves or
deletes: others may have acted by it. Nor log, which lies where a segment of the server belongs."""

SIGNERS: Mapping[str, tuple[Role, ...]] = {**PURPOSES, **FACTS}
