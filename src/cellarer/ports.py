"""The seams of the program: what flows ask of the world, as small protocols.

A flow receives implementations as arguments and never learns which one it got.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from cellarer.domain.finding import Finding
from cellarer.domain.snapshot import Check, Entry, WalRange


@dataclass(frozen=True)
class ObjectInfo:
    """One object in a store's listing."""

    key: str
    size_bytes: int


class Store(Protocol):
    """A flat namespace of immutable objects: one replica's bytes.

    Keys are relative, `/`-separated, ASCII. Every method may raise `StoreError`
    (`retryable` says whether trying again may help); all are safe to call from several threads.
    """

    @property
    def url(self) -> str:
        """Where this is, without any secret; for messages."""

    def create(self, key: str, data: bytes) -> None:
        """Store `data` durably under `key` if nothing is there.

        Returns only when the bytes survive a power cut. Raises `ObjectExists` when another object
        of that name is there; where the very same bytes are there already (a lost reply, a retry)
        it returns as if it had just written them.
        """

    def read(self, key: str) -> bytes:
        """The whole object. Raises `ObjectMissing`."""

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises `ObjectMissing`, and `DamagedData` where the object ends before.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix` (ending in `/`, or empty), sorted by key."""

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is not there."""


@runtime_checkable
class Bounded(Protocol):
    """A store whose room can be asked for: a directory on a disk, not a bucket."""

    def free_bytes(self) -> int | None:
        """How much more can be stored, None where that cannot be known."""


@runtime_checkable
class Retaining(Protocol):
    """A store that itself refuses to delete an object before a time, whoever asks."""

    def locked_until(self, key: str) -> datetime | None:
        """Until when nobody can delete the object; None where nothing locks it.

        The time is in UTC, and past where a lock has lapsed. Raises `ObjectMissing`.
        """

    def extend_lock(self, key: str, until: datetime) -> None:
        """Lock the object until this time at least; a lock is never shortened.

        Raises `ObjectMissing`.
        """

    def locks(self) -> bool:
        """Whether locking is switched on there, asked of the store itself."""

    @property
    def locks_for(self) -> timedelta:
        """How long it locks what is written, counted from the writing."""


@runtime_checkable
class Layer(Protocol):
    """A store around another one, which adds one thing to it, such as patience."""

    @property
    def inner(self) -> Store:
        """The store that is asked in the end."""

    @property
    def grows_only(self) -> bool:
        """Whether nothing here may be collected, as two that create at once may both succeed."""


def layers(store: Store) -> Iterator[Store]:
    """A store, the one that it stands around, and so on to the innermost."""
    yield store
    while isinstance(store, Layer):
        store = store.inner
        yield store


def retaining(store: Store) -> Retaining | None:
    """What locks the objects of this store, if anything does."""
    return next((layer for layer in layers(store) if isinstance(layer, Retaining)), None)


def bounded(store: Store) -> Bounded | None:
    """What can say how much room there is, if anything can."""
    return next((layer for layer in layers(store) if isinstance(layer, Bounded)), None)


def grows_only(store: Store) -> bool:
    """Whether this store must be left out of every collection."""
    return any(isinstance(layer, Layer) and layer.grows_only for layer in layers(store))


@dataclass(frozen=True)
class Held:
    """What a point of the same source holds of a stream; `sum` is that of its entry there."""

    point: str
    size_bytes: int
    sum: str


@dataclass(frozen=True)
class Pieces:
    """Some pieces of a stream, by their numbers in it, and their bytes one after another."""

    numbers: Sequence[int]
    data: bytes


@dataclass(frozen=True)
class Patched:
    """The claim that a stream is what a point holds, but for its length and some pieces of it.

    All pieces have `piece_bytes`, but for the last. Those whose bytes differ are among `pieces`,
    and so is each that `base` does not hold with the same length. `pieces` is read once, to its
    end. Whoever claims it answers for the rest: nobody looks.
    """

    base: Held
    size_bytes: int
    piece_bytes: int
    pieces: Iterator[Pieces]


@dataclass(frozen=True)
class Stream:
    """A named byte stream on its way into the vault.

    `blocks` is read once, to its end, before the next stream is asked for; not at all where the
    stream is claimed to be what a point holds to the last byte, or `patched`, and the vault can
    take that over. Whoever claims it answers for it: nobody looks. `size_hint_bytes` is what the
    source expects, `grows_at_end` says that what is new or changed gathers at the stream's end, and
    `page_bytes`, a power of two, that it changes in pages of this size; they steer chunk sizes and
    progress, never correctness. Where a stream is `summed_by_pages`, later ones may claim to be
    this one, patched.
    """

    path: str
    kind: str
    blocks: Iterator[bytes]
    size_hint_bytes: int | None = None
    mode: int | None = None
    mtime: datetime | None = None
    grows_at_end: bool = False
    page_bytes: int | None = None
    summed_by_pages: bool = False
    unchanged: Held | None = None
    patched: Patched | None = None

    @classmethod
    def whole(cls, path: str, kind: str, content: bytes, mode: int | None = None) -> Stream:
        """One whose bytes are at hand."""
        return cls(path, kind, iter([content]), len(content), mode)


@dataclass(frozen=True)
class Capture:
    """One reading of a source: its streams, and about how many bytes they have together."""

    streams: Iterator[Stream]
    expected_bytes: int | None = None

    def __iter__(self) -> Iterator[Stream]:
        return self.streams


class Source(Protocol):
    """Something that can be backed up."""

    @property
    def name(self) -> str:
        """The name it has in the config."""

    @property
    def kind(self) -> str:
        """The kind it has in the config, such as `postgres_dump`."""

    def capture(self) -> AbstractContextManager[Capture]:
        """One consistent reading.

        Leaving the context without an exception means that every stream was read whole; anything
        else raises `SourceFailed`, and then nothing may be committed.
        """

    def examine(self) -> list[Finding]:
        """What `doctor` should say about it; never raises for a broken source."""


@runtime_checkable
class Remembering(Protocol):
    """A source that keeps in mind what it was like, to read less of it the next time."""

    def remember(self, point: str, entries: Sequence[Entry]) -> None:
        """The last capture was committed as this point, with an entry for each stream.

        What cannot be kept in mind is read again the next time, and is no error.
        """


@runtime_checkable
class WalBound(Protocol):
    """A source whose points are recovered with write-ahead log, from a position on."""

    def wal_range(self) -> WalRange:
        """What of it the last capture needs. Called when that was read whole."""


@runtime_checkable
class Flawed(Protocol):
    """A source that reads what is damaged where it lies, and tells."""

    def flaws(self) -> Sequence[str]:
        """What of the last capture is damaged, in words; called when that was read whole."""


@runtime_checkable
class Noting(Protocol):
    """A source that has something to say of what it read."""

    def notes(self) -> Sequence[str]:
        """What people should know of the last capture; called when that was read whole."""


class Hasher(Protocol):
    """A hash function at work, as in hashlib."""

    def update(self, data: bytes, /) -> object:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The hash of all that was taken, in hex."""


class PointReader(Protocol):
    """A restore point opened for reading. Safe to use from several threads."""

    @property
    def point(self) -> str:
        """The id of the restore point."""

    def entries(self) -> Sequence[Entry]:
        """All streams, in the order in which they were written."""

    def read(self, path: str) -> Iterator[bytes]:
        """One stream in blocks, every chunk authenticated and the whole compared with its sum.

        Raises `DamagedData` before yielding a wrong byte, or at the end where the sum differs.
        """

    def hasher(self, kind: str) -> Hasher:
        """The hash function that the sums of entries begin with the name of, at its beginning."""


class Progress(Protocol):
    """Told what long work is doing."""

    def begin(self, title: str, total_bytes: int | None) -> None:
        """A phase starts; `total_bytes` is None where unknown."""

    def advance(self, read_bytes: int) -> None:
        """So many more bytes are done."""

    def note(self, text: str) -> None:
        """A line worth keeping on the screen."""

    def end(self) -> None:
        """The phase is over."""

    def abandon(self) -> None:
        """The phase broke off. What is to be said of that, its error says."""


@contextmanager
def phase(progress: Progress, title: str, total_bytes: int | None) -> Iterator[None]:
    """A phase of long work, which ends only where the work does."""
    progress.begin(title, total_bytes)
    try:
        yield
    except BaseException:
        progress.abandon()
        raise
    progress.end()


@dataclass(frozen=True)
class Restored:
    """What a target did.

    Of a cluster that was recovered there `recovered_lsn` and `next_xid`, the transaction that comes
    next, are read back from it, and `loss_seconds` is measured: the time before the last that is
    known of the source whose changes it does not hold. None and "" where nobody can tell.
    """

    restored_bytes: int
    seconds: float
    recovered_to: str
    recovered_lsn: str = ""
    next_xid: int | None = None
    loss_seconds: float | None = None


@dataclass(frozen=True)
class Outlook:
    """What a restore would do.

    `restore_bytes` are the bytes of the streams that it reads, `replaces` the names of what is
    there and would go. `as_verified` says whether it is the work that a verification does, so that
    the time which that took says something.
    """

    restore_bytes: int
    replaces: tuple[str, ...]
    as_verified: bool


class Target(Protocol):
    """Where a restore goes. Patterns in `only` choose a part of the point; none means all of it."""

    def prepare(self, overwrite: bool) -> None:
        """Say whether what is there may be replaced. Raises `TargetFailed` where nothing can go."""

    def look(self, reader: PointReader, only: tuple[str, ...]) -> Outlook:
        """What restoring would do, without doing any of it. Raises whatever it would refuse."""

    def restore(self, reader: PointReader, only: tuple[str, ...], progress: Progress) -> Restored:
        """Bring the point, or what matches a pattern of `only`, to life there."""


@dataclass(frozen=True)
class Judgement:
    """What a prover found; `loss_seconds` as in `Restored`."""

    checks: Sequence[Check]
    loss_seconds: float | None = None


class Prover(Protocol):
    """Restores a point of one kind in a sandbox and compares it with the source."""

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        """Bring the point up, then check its content; the first check is the restore itself."""
