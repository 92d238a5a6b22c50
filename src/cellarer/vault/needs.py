"""What the restore points of a vault need, added up from their references."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

from cellarer.errors import CellarerError, DamagedData, VaultUnreachable
from cellarer.vault import format as layout
from cellarer.vault.fetcher import check_content_name
from cellarer.vault.manifest import needed
from cellarer.vault.replicas import ReplicaSet, unreachable
from cellarer.vault.rounds import home
from cellarer.vault.vault import Commit, Vault

_ASKING = 16
"""References that are read at once."""


class Needs:
    """Grows with every `refresh`; what was needed once stays needed for as long as this lives.

    `without` are points that count as forgotten already: for showing what would go.
    """

    def __init__(self, vault: Vault, without: Collection[str] = ()) -> None:
        self._vault = vault
        self._without = frozenset(without)
        self._packs: set[str] = set()
        self._points: set[str] = set()
        self.forgotten: set[str] = set()
        """Sessions that were committed and then given up."""
        self.sessions: set[str] = set()
        """Those whose keys the points need: their own, and of those whose packs they share."""
        self.unknown: set[str] = set()
        """Points whose references could not be read, where `refresh` was to go on without them."""

    @property
    def points(self) -> AbstractSet[str]:
        """The restore points that were added up."""
        return self._points

    def refresh(self) -> None:
        """Read the registers again, and the references of restore points that are new.

        Raises `VaultUnreachable` unless every replica answers, and `DamagedData` where a register,
        a tombstone or references cannot be read: what a point needs that nobody can read is not
        known, so nothing may be deleted.
        """
        require_all(self._vault.replicas)
        commits = self._vault.commits(forgotten=True)
        require_all(self._vault.replicas)
        refuse_unreadable(self._vault)
        new = list(self._of_points(commits))
        with ThreadPoolExecutor(_ASKING) as pool:
            for commit, needs in zip(new, pool.map(self._needed_by, new), strict=True):
                self._take(commit, *needs)

    def estimate(self) -> None:
        """The same as far as it can be known now: good for keeping, never for deleting.

        Raises `VaultUnreachable` where no replica answers.
        """
        for commit in self._of_points(self._vault.commits(forgotten=True)):
            try:
                self._take(commit, *self._needed_by(commit))
            except (DamagedData, VaultUnreachable):
                self.unknown.add(commit.session)

    def _of_points(self, commits: Iterable[Commit]) -> Iterator[Commit]:
        """Those whose needs are not known yet."""
        for commit in commits:
            if commit.forgotten or commit.session in self._without:
                self.forgotten.add(commit.session)
            elif commit.session not in self._points:
                yield commit

    def packs(
        self, stored: AbstractSet[str], avoided: AbstractSet[str] = frozenset()
    ) -> frozenset[str]:
        """The objects in `packs/` and `meta/` that have to stay on a replica."""
        homes = (home([pack], stored, avoided) for pack in self._packs)
        return frozenset(pack for pack in homes if pack is not None)

    def _needed_by(self, commit: Commit) -> tuple[list[str], list[str]]:
        key = str(commit.body["references"])

        def check(data: bytes) -> tuple[list[str], list[str]]:
            return needed(self._vault.index_key, check_content_name(key, data))

        try:
            packs, sessions = self._vault.replicas.fetch(key, check)
        except DamagedData as error:
            raise DamagedData(
                f"the references of {commit.session} cannot be read, so nothing is deleted",
                detail=str(error),
                hint="bring them back from another replica with `cellarer sync`",
            ) from error
        return [key, *packs], [commit.session, *sessions]

    def _take(self, commit: Commit, packs: Iterable[str], sessions: Iterable[str]) -> None:
        self._packs.update(packs)
        self.sessions.update(sessions)
        self._points.add(commit.session)


def require_all(replicas: ReplicaSet) -> None:
    """Raise `VaultUnreachable` unless every replica answers and holds the vault.

    On the one that is away may lie a hold, a proof, or a point that needs what seems to be needed
    by nobody. One without the marker is a disk that is not mounted, or new.
    """
    answers = replicas.each(lambda store: store.read(layout.FORMAT_KEY))
    away = {name: a for name, a in answers.items() if isinstance(a, CellarerError)}
    away |= replicas.unlisted
    if away:
        error = unreachable("not every replica answers, so nothing is forgotten or deleted", away)
        raise VaultUnreachable(
            error.message,
            detail=error.detail,
            hint="bring it back and run `cellarer sync`, or take it out of [[vault.replicas]]",
            retryable=True,
        )


def refuse_unreadable(vault: Vault) -> None:
    """Raise `DamagedData` where some control object of the vault could not be read anywhere."""
    if vault.unreadable:
        key, error = min(vault.unreadable.items())
        raise DamagedData(
            f"{len(vault.unreadable)} objects of the vault cannot be read, so nothing is forgotten "
            "or deleted",
            detail=f"{key}: {error}",
            hint="bring them back from another replica with `cellarer sync`; see `cellarer status`",
        )
