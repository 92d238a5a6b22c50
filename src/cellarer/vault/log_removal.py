"""Removing the write-ahead log that nobody needs, as a decision says.

No round of collecting is needed: nothing is built upon WAL. It is told in the ledger first, so that
what is gone is not taken for lost, and brought back by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cellarer.domain.continuity import Removed
from cellarer.domain.log_retention import LogDecision
from cellarer.errors import CellarerError, ObjectLocked, StoreError
from cellarer.ports import grows_only
from cellarer.vault import format as layout
from cellarer.vault.collect import listed
from cellarer.vault.ledger import entries, record_fact
from cellarer.vault.log_facts import removed_fact
from cellarer.vault.log_inventory import named, removals, superseded
from cellarer.vault.log_reader import LogReader
from cellarer.vault.replicas import Replica
from cellarer.vault.vault import Vault


@dataclass
class LogRemoval:
    """What of the WAL on one replica may go, and what of it went.

    `locked_objects` are those that the store refuses to delete yet, until `locked_until` where that
    is known.
    """

    objects: int = 0
    bytes: int = 0
    removed_objects: int = 0
    removed_bytes: int = 0
    locked_objects: int = 0
    locked_until: datetime | None = None
    grows_only: bool = False
    problem: CellarerError | None = None


class LogRemover:
    """Plans and carries out for all replicas; every one of them must answer."""

    def __init__(self, vault: Vault, decisions: Sequence[LogDecision]) -> None:
        self._vault = vault
        told = removals(entries(vault))
        self._removed: dict[str, Removed] = {}
        self._news: dict[str, Removed] = {}
        for decision in decisions:
            # What was given up once stays given up: of that, some may be gone.
            before = told.get(decision.system, Removed())
            now = max(
                before, Removed(decision.before, LogReader(vault, decision.system).segment_bytes())
            )
            self._removed[decision.system] = now
            if now.before > before.before:
                self._news[decision.system] = now

    def plan(self, replica: Replica) -> dict[str, int]:
        """What may go of a replica, with sizes in bytes. Raises `StoreError`."""
        there = listed(self._vault, replica, layout.WAL_PREFIX)
        return {key: size for key, size in there.items() if self._may_go(key, there)}

    def planned(self) -> dict[str, LogRemoval]:
        """What a run would remove of each replica."""
        return {replica.name: self._planned(replica) for replica in self._vault.replicas.replicas}

    def run(
        self, now: Callable[[], datetime], progress: Callable[[int], None]
    ) -> dict[str, LogRemoval]:
        """Tell the ledger, then delete; the trouble of one replica leaves the others their turn."""
        done = self.planned()
        gone = any(each.objects for each in done.values())
        for system, removed in self._news.items() if gone else ():
            fact = removed_fact(system, removed.before, removed.segment_bytes)
            record_fact(self._vault, fact, now())
        for replica in self._vault.replicas.replicas:
            state = done[replica.name]
            if state.objects and not state.grows_only:
                self._delete(replica, state, progress)
        return done

    def _planned(self, replica: Replica) -> LogRemoval:
        sizes = self.plan(replica)
        return LogRemoval(len(sizes), sum(sizes.values()), grows_only=grows_only(replica.store))

    def _delete(self, replica: Replica, state: LogRemoval, progress: Callable[[int], None]) -> None:
        try:
            for key, size in sorted(self.plan(replica).items()):
                try:
                    replica.store.delete(key)
                except ObjectLocked as error:
                    state.locked_objects += 1
                    known = [until for until in (state.locked_until, error.until) if until]
                    state.locked_until = max(known, default=None)
                else:
                    state.removed_objects += 1
                    state.removed_bytes += size
                    progress(size)
        except StoreError as error:
            state.problem = error

    def _may_go(self, key: str, there: Mapping[str, int]) -> bool:
        found = named(key)
        if found is None:
            return False
        system, parsed = found
        removed = self._removed.get(system)
        name = key.rpartition("/")[2]
        return superseded(system, parsed, there) or (removed is not None and removed.covers(name))
