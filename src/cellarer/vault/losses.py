"""What damage means: which restore points need an object, and what of them is lost."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cellarer.domain.history import gaps
from cellarer.errors import CellarerError, DamagedData, KeyUnusable, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.departed import Departed
from cellarer.vault.envelopes import ADMIN, VAULT, parse_name
from cellarer.vault.format import check_content_name
from cellarer.vault.genuine import Trust, good_copy
from cellarer.vault.index import RecordPlaces
from cellarer.vault.ledger import entries, proofs_in
from cellarer.vault.log_inventory import needed_log
from cellarer.vault.log_keys import log_keys
from cellarer.vault.manifest import record_places
from cellarer.vault.reader import SnapshotReader
from cellarer.vault.vault import Commit, Vault

_POINTS = (
    layout.PACKS_PREFIX,
    layout.META_PREFIX,
    layout.KEYS_PREFIX,
    layout.SESSIONS_PREFIX,
    layout.SNAPSHOTS_PREFIX,
    layout.INDEX_PREFIX,
)
"""Prefixes of what is there for restore points; all else is there for the vault."""

_NO_RECORD = "(all of it, if it was a restore point: its record is lost)"

_KEYED = (layout.KEYS_PREFIX, layout.SESSIONS_PREFIX)


@dataclass(frozen=True)
class Loss:
    """A restore point that no replica, nor all together, can give whole.

    `objects` are what it needs and nobody has; `paths` the streams that are lost, empty where there
    is no identity that could read their names.
    """

    point: str
    source: str
    objects: tuple[str, ...]
    paths: tuple[str, ...] = ()


def needed_by(vault: Vault, keys: Collection[str]) -> dict[str, list[Commit]]:
    """Object -> the points that there are now and need it; only objects that some point needs.

    What belongs to no point but to the vault as a whole is needed by none, and listed all the same;
    so is a register that no replica has whole: it may be that of a point.
    """
    logs = log_keys(vault) if any(key.startswith(_KEYED) for key in keys) else {}
    log = {key for key in keys if key.startswith(layout.WAL_PREFIX)}
    found: dict[str, list[Commit]] = {key: [] for key in needed_log(vault, log)}
    found |= {
        key: []
        for key in keys
        if key not in log and (not key.startswith(_POINTS) or _of_the_vault(key, logs))
    }
    found = {key: found[key] for key in found.keys() - _settled(vault, found)}
    left = set(keys) - set(found) - log
    departed = Departed(vault)
    commits = vault.commits() if left else ()
    unreadable = left & vault.unreadable.keys()
    found |= {key: [] for key in unreadable if key.startswith(layout.SNAPSHOTS_PREFIX)}
    for commit in commits:
        names = _names(vault, commit, departed)
        for key in left:
            parsed = parse_name(key)
            if (parsed[0] if parsed else key) in names or _own(commit, key):
                found.setdefault(key, []).append(commit)
    return found


def _settled(vault: Vault, keys: Iterable[str]) -> set[str]:
    """Names in the ledger that lie nowhere, and that no entry misses: what lay there was none."""
    named = {key for key in keys if key.startswith(layout.LEDGER_PREFIX)}
    if not named or gaps(entries(vault)) or vault.replicas.away:
        return set()
    listings = vault.replicas.listings(layout.LEDGER_PREFIX).values()
    return named - {key for found in listings for key in found}


def gone(vault: Vault, keys: Iterable[str]) -> list[str]:
    """Those of some objects of which, for certain, no replica has a whole copy."""
    trust = Trust.of(vault)
    lost = []
    for key in keys:
        try:
            good_copy(vault.replicas, trust, key)
        except DamagedData:
            if not vault.replicas.away:
                lost.append(key)
        except VaultUnreachable:
            continue
    return lost


def losses(vault: Vault, keys: Collection[str]) -> list[Loss]:
    """The points that lost something with these objects, which no replica has whole.

    With the identity it is tried: a record may still be whole on one of two damaged replicas.
    """
    touched: dict[str, tuple[Commit, list[str]]] = {}
    # The index serves backups only: no restore needs it.
    relevant = [key for key in keys if not key.startswith(layout.INDEX_PREFIX)]
    for key, commits in needed_by(vault, relevant).items():
        for commit in commits:
            touched.setdefault(commit.session, (commit, []))[1].append(key)
    found = []
    for commit, objects in touched.values():
        paths: tuple[str, ...] = ()
        if vault.identity is not None:
            paths = tuple(_lost_paths(vault, commit, objects))
            if not paths:
                continue
        found.append(Loss(commit.session, commit.source, tuple(sorted(objects)), paths))
    return found + _lost_registers(vault, relevant)


def _lost_registers(vault: Vault, keys: Iterable[str]) -> list[Loss]:
    """Sessions of which nobody can tell any more how they ended; the ledger may know of what."""
    prefix = layout.SNAPSHOTS_PREFIX
    registers = [key for key in keys if key.startswith(prefix) and key in vault.unreadable]
    if not registers:
        return []
    sources = {record.point: record.source for record in proofs_in(entries(vault))}
    sessions = [(key, key.removeprefix(prefix)) for key in registers]
    return [Loss(each, sources.get(each, ""), (key,), (_NO_RECORD,)) for key, each in sessions]


def _lost_paths(vault: Vault, commit: Commit, objects: Collection[str]) -> list[str]:
    suspects = {*objects}
    for key in objects:
        parsed = parse_name(key)
        suspects.add(parsed[0] if parsed else key.removeprefix(layout.SESSIONS_PREFIX))
    try:
        return SnapshotReader(vault, commit).broken(suspects)
    except (DamagedData, KeyUnusable):
        return ["(all of it: its table of contents is lost)"]


def _names(vault: Vault, commit: Commit, departed: Departed) -> set[str]:
    """What a point needs: objects, and sessions whose keys it needs."""
    references = str(commit.body["references"])
    names = {references, layout.snapshot_key(commit.session)}

    def check(data: bytes) -> RecordPlaces:
        return record_places(vault.index_key, check_content_name(references, data))

    try:
        records = vault.replicas.fetch(references, check)
    except CellarerError:
        return names  # of what it needs, only they are known, and lost as well
    sessions = records.sessions
    moved = departed.behind(records)
    return names.union(records.packs, moved, sessions, map(layout.session_key, sessions))


def _own(commit: Commit, key: str) -> bool:
    return key.startswith(f"{layout.INDEX_PREFIX}{commit.session}/")


def _of_the_vault(key: str, log_sessions: Collection[str]) -> bool:
    """Whether this opens the vault itself, or write-ahead log: an envelope or an announcement."""
    parsed = parse_name(key)
    name = parsed[0] if parsed else key.removeprefix(layout.SESSIONS_PREFIX)
    return name == VAULT or name.startswith(ADMIN) or name in log_sessions
