"""Write-ahead log read out of the vault, and what there is of it.

An answer that a file is absent ends a recovery, as if it were the end of all WAL. So it is given
only when every replica said so, and nobody ever told of that file or of one behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from cellarer.domain.continuity import Continuity, Removed, Told, continuity
from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import (
    SEGMENT_BYTES,
    History,
    Kind,
    LogName,
    Segment,
    compose,
    first_page,
    is_system,
    kind_of,
    parse_name,
    piece_name,
)
from cellarer.errors import (
    CellarerError,
    DamagedData,
    UsageError,
    VaultUnreachable,
    WalAbsent,
)
from cellarer.vault import format as layout
from cellarer.vault.heads import SeenHeads
from cellarer.vault.ledger import entries
from cellarer.vault.log_facts import flushed_in, runs_in, stored_fact
from cellarer.vault.log_files import checked_name
from cellarer.vault.log_ledger import removed_in_all, told_in, told_segment_bytes
from cellarer.vault.log_object import LogHeader, header_on, sighting_in
from cellarer.vault.log_opening import LogOpener
from cellarer.vault.log_state import LogState, StateFile
from cellarer.vault.replicas import said, unreachable
from cellarer.vault.vault import Vault


def systems(vault: Vault) -> list[str]:
    """The clusters, by their system identifiers, of which some replica has WAL."""
    listings = vault.replicas.listings(layout.WAL_PREFIX).values()
    names = {key.split("/")[1] for found in listings for key in found}
    return sorted(filter(is_system, names), key=int)


def any_header(vault: Vault, key: str) -> LogHeader:
    """That of what any replica has whole. Raises `DamagedData`, `VaultUnreachable`."""
    problems: dict[str, CellarerError] = {}
    for replica in vault.replicas.replicas:
        try:
            return header_on(vault, replica, key)
        except CellarerError as error:
            problems[replica.name] = error
    if all(isinstance(problem, DamagedData) for problem in problems.values()):
        raise DamagedData(f"no replica has {key} whole", detail=said(problems))
    raise VaultUnreachable(
        f"{key} cannot be read", detail=said(problems), hint="see `cellarer doctor`", retryable=True
    )


class LogReader:
    """Reads the WAL of one cluster. Content needs the identity; what there is, any key.

    `seen` is what this host remembers of vaults, `stored` what it has stored itself: with these,
    WAL is missed that was there before and of which the ledger was not told.
    """

    def __init__(
        self,
        vault: Vault,
        system: str,
        seen: SeenHeads | None = None,
        stored: StateFile | None = None,
    ) -> None:
        if not is_system(system):
            raise UsageError(f"not a system identifier: {system!r}")
        self.system = system
        self._vault, self._seen, self._stored = vault, seen, stored
        self._opener = LogOpener(vault)
        self._histories: dict[str, History] = {}
        self._segment_bytes = 0

    def names(self) -> set[str]:
        """The files of WAL that some reachable replica has. Raises `VaultUnreachable`."""
        prefix = layout.wal_prefix(self.system)
        listings = self._vault.replicas.listings(prefix).values()
        keys = {key for found in listings for key in found}
        names = {key.rpartition("/")[2]: key for key in keys}
        return {
            name
            for name, key in names.items()
            if kind_of(name) is not None and layout.wal_key(self.system, name) == key
        }

    def look(self) -> set[str]:
        """The same, for who looks for days: every replica is asked anew.

        Raises `VaultUnreachable` where none of them holds the vault: a disk that is not mounted
        lists nothing, which is not the same as that there is nothing.
        """
        replicas = self._vault.replicas
        replicas.ask_again()
        marks = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
        if all(isinstance(mark, CellarerError) for mark in marks.values()):
            raise unreachable("no replica of the vault answers", marks)
        return self.names()

    def read(self, name: str) -> bytes:
        """A file of WAL, authenticated.

        A segment of which only pieces are there is filled up with zeros, if nothing comes after it.
        Raises `WalAbsent` where it is not there for certain, `DamagedData` where it, or what
        comes before what is there, was lost, `VaultUnreachable` where nobody can tell, and
        `KeyUnusable` without the identity.
        """
        parsed = checked_name(name)
        if parsed.kind is Kind.PIECE:
            raise UsageError(f"{name} is a piece of a segment", hint=f"read {parsed.segment}")
        self._vault.replicas.ask_again()
        try:
            return self._read(name)
        except (DamagedData, VaultUnreachable) as error:
            return self._without(name, parsed, error)

    def read_piece(self, name: str) -> bytes:
        """A piece of a segment that is listed, authenticated.

        For who only goes on with it and takes nothing for the end: nobody is asked what else there
        is. Raises `DamagedData`, `VaultUnreachable`, and `KeyUnusable` without the identity.
        """
        if checked_name(name).kind is not Kind.PIECE:
            raise UsageError(f"{name} is no piece of a segment")
        self._vault.replicas.ask_again()
        return self._read(name)

    def continuity(self) -> Continuity:
        """What there is, and what is missing of what was stored once.

        What a replica has that does not answer counts as missing. Raises `VaultUnreachable`, and
        `DamagedData` where no replica has a history whole: nobody knows then where WAL leads.
        """
        names = self.names()
        histories = {
            int(name[:8], 16): self._history(name)
            for name in names
            if kind_of(name) is Kind.HISTORY
        }
        known = self._known(names)
        return continuity(names, histories, known.segment_bytes, known.told, known.removed.before)

    def segment_bytes(self) -> int:
        """How large the segments of the cluster are, as far as that is known."""
        return self._known(self.names()).segment_bytes

    def header(self, name: str) -> LogHeader:
        """What is written of a file beside its content: when it was stored, for one."""
        return any_header(self._vault, layout.wal_key(self.system, name))

    def sighting(self, name: str) -> Sighting | None:
        """What was known of the server when a file was stored; None where nothing was told.

        Raises `DamagedData`, `VaultUnreachable`.
        """
        return sighting_in(self._vault.index_key, self.header(name))

    def contents(self, name: str) -> dict[str, str]:
        """Replica -> what stands for the content of a file there, where it has it whole."""
        key = layout.wal_key(self.system, name)
        replicas = self._vault.replicas
        answers = replicas.each_of(
            replicas.replicas, lambda replica: header_on(self._vault, replica, key).content
        )
        return {name: found for name, found in answers.items() if isinstance(found, str)}

    def _read(self, name: str) -> bytes:
        key = layout.wal_key(self.system, name)
        return self._vault.replicas.fetch(key, lambda data: self._opener.open(key, data))

    def _without(self, name: str, parsed: LogName, error: CellarerError) -> bytes:
        """What is to be said of a file that no replica gave: its pieces, or why it is not there."""
        listed = self._listed_everywhere(name, error)
        if name in listed:
            # It came just now, or its writer's key did: whoever reads for days meets new ones.
            self._vault = self._vault.reopen()
            self._opener = LogOpener(self._vault)
            try:
                return self._read(name)
            except DamagedData:
                if parsed.kind is not Kind.SEGMENT:
                    raise
                data = self._from_pieces(parsed, listed)
                if not _is_whole(data):
                    raise
                return data
        if parsed.kind is Kind.SEGMENT:
            data = self._from_pieces(parsed, listed)
            if _is_whole(data):
                return data
            self._refuse_lost(name, parsed, listed, len(data))
            if (page := first_page(data)) is not None:
                return data + bytes(page.segment_bytes - len(data))
        elif parsed.kind is Kind.HISTORY:
            self._refuse_lost_history(name, parsed, listed)
        raise WalAbsent(
            f"{name} is not in the vault",
            detail="every replica answered, and nothing was ever stored that comes after it",
        )

    def _listed_everywhere(self, name: str, error: CellarerError) -> set[str]:
        """The names on all replicas. Raises `VaultUnreachable` unless every one of them answers."""
        names, replicas = self.names(), self._vault.replicas
        silent = {*replicas.away, *replicas.aside} | replicas.unlisted.keys()
        # A disk that is not mounted lists nothing, and so answers as an empty replica does.
        marks = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
        silent |= {each for each, mark in marks.items() if isinstance(mark, CellarerError)}
        if silent:
            raise VaultUnreachable(
                f"nobody can tell whether {name} is there",
                detail=f"it is on no replica that answers, and {', '.join(sorted(silent))} does "
                f"not, or holds no vault; {error}",
                hint="try again when it answers, or after `cellarer sync`; take it out of "
                "[[vault.replicas]] where it is lost for good",
                retryable=True,
            )
        return names

    def _from_pieces(self, parsed: LogName, listed: Iterable[str]) -> bytes:
        """As much of a segment as its pieces give, from its first byte on."""
        pieces = [p for p in map(parse_name, listed) if p.segment == parsed.segment]
        return self._composed(parsed, [p for p in pieces if p.kind is Kind.PIECE])

    def _composed(self, parsed: LogName, pieces: Iterable[LogName]) -> bytes:
        try:
            return compose(
                (piece.start, self._read(piece_name(piece.segment, piece.start, piece.end)))
                for piece in pieces
            )
        except ValueError as error:
            raise DamagedData(
                f"the pieces of {parsed.segment} do not fit together",
                detail=str(error),
                hint="two servers may have stored WAL under the same name; restore to an earlier "
                "time",
            ) from error

    def _refuse_lost(self, name: str, parsed: LogName, listed: set[str], held: int) -> None:
        """Raise `DamagedData` where more of a segment, or of what is behind it, was there once."""
        behind = [
            other
            for other in listed
            if kind_of(other) in (Kind.SEGMENT, Kind.PIECE)
            and other[:8] == name[:8]
            and other[:24] > name
        ]
        known = self._known(listed)
        size = known.segment_bytes
        number = parsed.of(size).number
        if known.removed.covers(name):
            raise DamagedData(
                f"{name} is not in the vault any more",
                detail="it was removed by retention, as no base backup needed it",
                hint="restore from a newer base backup: `cellarer points` has what can be reached",
            )
        lost = [
            told
            for told in known.told
            if told.timeline == parsed.timeline
            and (told.last >= number or told.flushed > number * size + held)
        ]
        if behind or lost:
            why = f"{min(behind)} is there, which comes after it" if behind else "it was stored"
            raise DamagedData(
                f"{name} is missing on every replica",
                detail=why,
                hint="`cellarer points` tells the gaps; while the server has the segment in its "
                "pg_wal, `cellarer wal push` stores it again; else restore to a time before it",
            )

    def _refuse_lost_history(self, name: str, parsed: LogName, listed: set[str]) -> None:
        timelines = {int(other[:8], 16) for other in listed if kind_of(other) is not Kind.BACKUP}
        timelines |= {told.timeline for told in self._known(listed).told}
        if parsed.timeline > 1 and parsed.timeline in timelines:
            raise DamagedData(
                f"{name} is missing on every replica",
                detail="there is, or was, write-ahead log of this timeline",
                hint="while the server has the file in its pg_wal, `cellarer wal push` stores it "
                "again",
            )

    def _history(self, name: str) -> History:
        if name not in self._histories:
            self._histories[name] = self.header(name).history
        return self._histories[name]

    def _known(self, names: Iterable[str]) -> _Known:
        """What is known of the WAL beside the names that are listed now."""
        found = entries(self._vault)
        size = self._size_of_segments(names) or told_segment_bytes(found, self.system)
        size = size or SEGMENT_BYTES
        told = [*told_in(found, self.system), *self._remembered(names, size)]
        own = self._stored.load() if self._stored else LogState()
        if own.segment_bytes:
            fact = stored_fact(self.system, own)
            told += [*runs_in(fact), *flushed_in(fact)]
        return _Known(size, told, removed_in_all(found, self.system))

    def _size_of_segments(self, names: Iterable[str]) -> int:
        """That of any whole one; 0 where there is none."""
        if not self._segment_bytes:
            for name in sorted(name for name in names if kind_of(name) is Kind.SEGMENT):
                with suppress(DamagedData):  # another one is as good
                    self._segment_bytes = self.header(name).size_bytes
                    break
        return self._segment_bytes

    def _remembered(self, names: Iterable[str], size: int) -> list[Told]:
        """The last segments of timelines that this host saw before; those of now are kept."""
        if self._seen is None:
            return []
        chain, before = f"wal/{self.system}/", self._seen.load()
        last = {key: max(found) for key, found in before.items() if key.startswith(chain) and found}
        told = [Segment.parse(name, size) for name in last.values()]
        for name in names:
            if kind_of(name) is Kind.SEGMENT:
                last[chain + name[:8]] = max(name, last.get(chain + name[:8], ""))
        after = before | {key: {name} for key, name in last.items()}
        if after != before:
            with suppress(OSError):  # `look_back` says so where heads cannot be kept
                self._seen.keep(after)
        return [Told(each.timeline, each.number, each.number) for each in told]


def _is_whole(segment: bytes) -> bool:
    page = first_page(segment)
    return page is not None and len(segment) == page.segment_bytes


@dataclass(frozen=True)
class _Known:
    segment_bytes: int
    told: list[Told]
    removed: Removed
