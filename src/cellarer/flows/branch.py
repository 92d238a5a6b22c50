"""Whether a base backup and the log in the vault are of one branch of a cluster's life.

A cluster that is recovered twice, or a copy and its original, go on under one system identifier,
one timeline and the same positions. PostgreSQL would replay the log of one on the base of the other
without a word, so what the base backup brought of its own log is compared with what the vault has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cellarer.domain.continuity import Continuity
from cellarer.domain.recovery_course import BaseWal
from cellarer.domain.wal import History, history_name, segment_at
from cellarer.errors import DamagedData, WalAbsent
from cellarer.vault.log import LogReader

OwnLog = Callable[[str], bytes | None]
"""Gives a file of the log that a base backup holds itself, by its name; None where it does not."""


def conflict(base: BaseWal, own: OwnLog, log: LogReader, there: Continuity) -> str:
    """What of the log in the vault is not that of a base backup; "" where it is or nobody can tell.

    Raises `VaultUnreachable`.
    """
    history = own(history_name(base.timeline)) if base.timeline in there.histories else None
    if history is not None:
        with suppress(ValueError):
            text = history.decode(errors="replace")
            if History.parse(base.timeline, text) != there.histories[base.timeline]:
                return f"its timeline {base.timeline} began elsewhere than that in the vault"
    size = base.segment_bytes
    segment = segment_at(base.timeline, base.stop_lsn - 1, size)
    name, length = segment.name(size), base.stop_lsn - segment.start(size)
    whole = segment.number in there.present.get(base.timeline, ())
    if not whole and there.tails.get((base.timeline, segment.number), 0) < base.stop_lsn:
        return ""
    ours = own(name)
    with suppress(DamagedData, WalAbsent):  # a recovery that needs it says so
        if ours is not None and ours[:length] != log.read(name)[:length]:
            return f"{name} in it is other write-ahead log than that in the vault"
    return ""
