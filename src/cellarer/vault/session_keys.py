"""Which sessions a writer may build upon: those whose keys are there, as far as a writer can tell.

A record is worth as much as its session's envelope and announcement. Whoever deduplicates against
one whose key is lost makes points that nobody can read, and a writer cannot try: it has no
identity. It has the listings, the SHA-256 of each envelope in the register, and signatures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from cellarer.errors import DamagedData, ObjectMissing, StoreError
from cellarer.vault import format as layout
from cellarer.vault.envelopes import parse_name
from cellarer.vault.genuine import announced, check_age_file
from cellarer.vault.vault import Vault

SESSIONS_READ = 64
"""So many sessions, those asked for first and with the most records, have their keys read before
each backup: 1 KB each on every replica. The others are judged by listings alone, and are for a
scrub to read."""


class SessionKeys:
    """The keys of sessions on the replicas that a backup is put on.

    What is found damaged or lost is added to what the replicas hold `damaged`. Raises
    `VaultUnreachable`.
    """

    def __init__(self, vault: Vault, replicas: Collection[str], unfit: AbstractSet[str]) -> None:
        self._vault, self._unfit = vault, unfit
        self._replicas = [r for r in vault.replicas.replicas if r.name in replicas]
        self._judged: dict[str, bool] = {}
        self._may_read = SESSIONS_READ
        listings = vault.replicas.listings(layout.SESSIONS_PREFIX)
        self._announcements = {r.name: listings.get(r.name, {}) for r in self._replicas}
        last = vault.configuration.generation
        self._envelopes: dict[str, dict[str, dict[int, int]]] = {r.name: {} for r in self._replicas}
        """Replica -> session -> generation -> size in bytes."""
        for name, found in vault.replicas.listings(layout.KEYS_PREFIX).items():
            for key, size in found.items() if name in self._envelopes else ():
                session, generation = parse_name(key) or ("", last + 1)
                if generation <= last:
                    self._envelopes[name].setdefault(session, {})[generation] = size

    def whole(self, records: Counter[str]) -> set[str]:
        """Those of some sessions whose keys are whole on every one of these replicas.

        `records` has the number of records of each.
        """
        new = Counter({s: n for s, n in records.items() if s not in self._judged})
        self._judged |= {session: self._listed(session) for session in new}
        read = [s for s, _ in new.most_common() if self._judged[s]][: self._may_read]
        self._may_read -= len(read)
        self._judged |= dict(self._vault.gather(read, lambda s: (s, self._read_whole(s))))
        return {session for session in records if self._judged[session]}

    def _listed(self, session: str) -> bool:
        """Whether every replica lists what opens a session, as long as the others."""
        key = layout.session_key(session)
        good = self._alike(key, {n: found.get(key) for n, found in self._announcements.items()})
        envelopes = {name: found.get(session, {}) for name, found in self._envelopes.items()}
        known = {generation for found in envelopes.values() for generation in found}
        for generation in known:
            key = layout.envelope_key(session, generation)
            # One generation suffices: of the others some may not be there yet, or not any more.
            have = {n: found[generation] for n, found in envelopes.items() if generation in found}
            good &= self._alike(key, have)
        newest = max(known, default=self._vault.configuration.generation)
        for name in [name for name, found in envelopes.items() if not found]:
            self._suspect(layout.envelope_key(session, newest), [name])
            good = False
        return good

    def _alike(self, key: str, sizes: Mapping[str, int | None]) -> bool:
        lost = [name for name, size in sizes.items() if size is None]
        differing = len({*sizes.values()}) > 1
        self._suspect(key, lost or (sizes if differing else ()))
        return not lost and not differing and key not in self._unfit

    def _read_whole(self, session: str) -> bool:
        """Whether every replica has what opens a session as it was written."""
        key = layout.session_key(session)
        good = self._read(key, lambda data: bool(self._vault.open_announcement(key, data)))
        for generation in {g for f in self._envelopes.values() for g in f.get(session, ())}:
            good &= self._envelope(session, generation)
        return good

    def _envelope(self, session: str, generation: int) -> bool:
        key = layout.envelope_key(session, generation)

        def check(data: bytes) -> bool:
            check_age_file(key, data)
            return announced(self._vault, key, data)

        holding = [
            n for n, found in self._envelopes.items() if generation in found.get(session, {})
        ]
        return self._read(key, check, holding)

    def _read(
        self, key: str, check: Callable[[bytes], bool], names: Collection[str] | None = None
    ) -> bool:
        """Whether all have the bytes that `check` takes; where it is not certain, the same ones."""
        held: dict[str, bytes] = {}
        good = certain = True
        for replica in self._replicas:
            if names is not None and replica.name not in names:
                continue
            try:
                data = self._vault.replicas.ask(replica, lambda store: store.read(key))
                certain &= check(data)
                held[replica.name] = data
            except (DamagedData, ObjectMissing):
                self._suspect(key, [replica.name])
                good = False
            except StoreError:
                good = False
        if not certain and len({*held.values()}) > 1:
            self._suspect(key, held)
            good = False
        return good

    def _suspect(self, key: str, names: Iterable[str]) -> None:
        for name in names:
            self._vault.replicas.damaged.setdefault(name, set()).add(key)
