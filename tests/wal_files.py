"""Files of write-ahead log as a server writes them, as far as the vault looks: their first page."""

from __future__ import annotations

import struct
from pathlib import Path

from cellarer.domain.wal import Segment
from cellarer.vault import format as layout
from cellarer.vault.log import LogReader, LogWriter
from cellarer.vault.replicas import ReplicaSet
from cellarer.vault.vault import Vault
from stand_ins import Fault, Faults, FaultyStore, Founded, Objects, noise

SYSTEM = "7561234567890123456"
SEGMENT_BYTES = 1 << 20
MAGIC_18, LONG_HEADER = 0xD118, 0x0002


def page(segment: Segment, segment_bytes: int = SEGMENT_BYTES, system: str = SYSTEM) -> bytes:
    """The long header of the first page of a segment."""
    return struct.pack(
        "<HHIQI4xQII",
        MAGIC_18, LONG_HEADER, segment.timeline, segment.start(segment_bytes), 0,
        int(system), segment_bytes, 8192,
    )  # fmt: skip


def segment(
    number: int, timeline: int = 1, seed: int = 0, filled: int = SEGMENT_BYTES
) -> tuple[str, bytes]:
    """A segment's name and bytes: a part that does not compress, and zeros behind `filled`."""
    made = Segment(timeline, number)
    data = page(made) + noise(seed * 1000 + number * 10 + timeline, 20_000)
    return made.name(SEGMENT_BYTES), data[:filled] + bytes(SEGMENT_BYTES - len(data[:filled]))


def history(timeline: int, *switches: tuple[int, str]) -> tuple[str, bytes]:
    """A timeline's history: (parent, position at which it was left)."""
    lines = [f"{parent}\t{lsn}\tno recovery target specified\n" for parent, lsn in switches]
    return f"{timeline:08X}.history", "".join(lines).encode()


def writer(made: Founded, state: Path, replicas: ReplicaSet | None = None) -> LogWriter:
    """On a host that has the write key alone."""
    vault = Vault.open(replicas or made.replicas(), made.write_key, None)
    return LogWriter(vault, SYSTEM, state, made.now)


def reader(made: Founded, replicas: ReplicaSet | None = None) -> LogReader:
    """On a host with the identity."""
    return LogReader(made.open(replicas), SYSTEM)


def keys_of(store: Objects) -> set[str]:
    """The objects of WAL on a store."""
    return {key for key in store.objects if key.startswith(layout.WAL_PREFIX)}


def sessions_of(made: Founded) -> list[str]:
    """The sessions that were announced, log keys included."""
    keys = made.stores["a"].objects
    prefix = layout.SESSIONS_PREFIX
    return sorted(key.removeprefix(prefix) for key in keys if key.startswith(prefix))


def away(made: Founded, *names: str) -> ReplicaSet:
    """The replicas, of which some do not answer."""
    faults = Faults(lambda number: Fault.REFUSE)
    return made.replicas(lambda name, store: FaultyStore(store, faults) if name in names else store)
