"""The directory through which a standby gets its WAL: what it asks for, and what it is handed.

The server's restore_command is a few words of shell: it moves away what lies ready, or leaves a
mark with the name that it wanted. So nothing of the vault is in the server's reach but WAL, a
program that ended or cannot be started makes the server wait, and no answer ever reads as the end
of the log or stops a server that others read from. It lies in `pg_wal`, which no base backup takes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cellarer.domain.wal import Kind, kind_of
from cellarer.errors import TargetFailed, UsageError
from cellarer.postgres.account import Account

_LOG_DIRECTORY, _NAME = "pg_wal", "cellarer"
FEED = f"{_LOG_DIRECTORY}/{_NAME}"
_LAID_READY = (Kind.SEGMENT, Kind.HISTORY)
_ASKED, _KEEPER, _PROMOTING = "asked", "keeper.lock", "promoting.lock"
_STANDING = "standing.json"
_PATIENCE_SECONDS, _LOOK_SECONDS = 5.0, 0.05
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

FEED_COMMAND = (
    f'{{ case "%f" in *.history) cp {FEED}/%f "%p";; *) mv {FEED}/%f "%p" || '
    f"{{ : > {FEED}/{_ASKED}/%f; false; }};; esac; }} 2>/dev/null || exit 1"
)
"""As restore_command of a standby. 1 makes a standby ask again; it would end any other recovery, so
it may stand only beside `standby.signal`. Histories stay: they are asked for time and again."""


class StandbyFeed:
    """That directory of one data directory; its files are the server's own."""

    def __init__(self, data: Path, account: Account) -> None:
        self._data = data
        self._account = account

    @property
    def exists(self) -> bool:
        """Whether it was made, and not removed after a promotion."""
        return (self._data / FEED).is_dir()

    def open(self) -> None:
        """Make it, and remove what was left unfinished. Raises `OSError`."""
        with self._opened() as directory:
            with suppress(FileExistsError):
                os.mkdir(_ASKED, 0o700, dir_fd=directory)
            with _below(directory, _ASKED) as asked:
                self._own(asked)
            for name in _names(directory):
                if name.endswith(".new") or name == _STANDING:  # of the run before
                    os.unlink(name, dir_fd=directory)

    def asked(self) -> set[str]:
        """The segments that the server wanted and did not get, since this was last asked."""
        with self._opened() as directory, _below(directory, _ASKED) as asked:
            names = {name for name in _names(asked) if kind_of(name) is Kind.SEGMENT}
            for name in names:
                os.unlink(name, dir_fd=asked)
        return names

    def waiting(self) -> set[str]:
        """What lies ready: segments that were not taken yet, and histories."""
        with self._opened() as directory:
            return {name for name in _names(directory) if kind_of(name) in _LAID_READY}

    def put(self, name: str, content: bytes) -> None:
        """Lay a file ready, whole under its name; a segment gets the place of an older state."""
        with self._opened() as directory:
            with suppress(FileNotFoundError):  # of a disk that was full
                os.unlink(f"{name}.new", dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(f"{name}.new", flags, 0o600, dir_fd=directory)
            with os.fdopen(descriptor, "wb") as file:
                self._own(descriptor)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)
            # That it was wanted before says nothing any more.
            with _below(directory, _ASKED) as asked, suppress(FileNotFoundError):
                os.unlink(name, dir_fd=asked)

    def discard(self, name: str) -> None:
        """Take back what the server does not want any more."""
        with self._opened() as directory, suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)

    def holds(self, name: str, length: int, tail: bytes) -> bool:
        """Whether the server itself has a segment up to `length`, where it ends in `tail`.

        It keeps what it took; what it had just taken when it was killed is gone. A file that the
        server has made for later has the name of a segment and the content of an older one.
        """
        try:
            with (self._data / "pg_wal" / name).open("rb") as file:
                file.seek(length - len(tail))
                return file.read(len(tail)) == tail
        except OSError:
            return False

    def newest_timeline(self, segment: str) -> int | None:
        """On which timeline the server came to a segment: the newest of which it has the file."""
        names = [path.name for path in (self._data / "pg_wal").iterdir()]
        found = [
            int(name[:8], 16)
            for name in names
            if name[8:] == segment[8:] and kind_of(name) is Kind.SEGMENT
        ]
        return max(found, default=None)

    def remove(self) -> None:
        """Remove all of it, after a promotion."""
        with self._log_directory() as wal:
            shutil.rmtree(_NAME, ignore_errors=True, dir_fd=wal)

    @contextmanager
    def kept(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Be the only one who keeps this standby. Raises `UsageError` where another does."""
        refusal = UsageError(
            f"the standby in {self._data} is kept by another `cellarer standby`",
            hint="stop that one first; --status tells how the standby stands",
        )
        with self._alone(_KEEPER, patience_seconds, refusal):
            yield

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        """Tell whoever keeps it to leave it to us. Raises `UsageError` where another does so."""
        refusal = UsageError(
            f"the standby in {self._data} is being promoted by another `cellarer standby`",
            hint="wait for it, and look with --status",
        )
        # Keepers look whether somebody has it, and have it themselves for that moment.
        with self._alone(_PROMOTING, _PATIENCE_SECONDS, refusal):
            yield

    @property
    def is_kept(self) -> bool:
        """Whether somebody keeps it."""
        return self._is_locked(_KEEPER)

    @property
    def is_taken_over(self) -> bool:
        """Whether somebody is about to promote it."""
        return self._is_locked(_PROMOTING)

    def write_down(self, text: str) -> None:
        """Leave word how the standby stands, for others who ask. Raises `OSError`."""
        self.put(_STANDING, text.encode())

    def written_down(self) -> str | None:
        """What `write_down` left last."""
        try:
            return (self._data / FEED / _STANDING).read_text()
        except OSError:
            return None

    def _is_locked(self, name: str) -> bool:
        if not self.exists:
            return False
        try:
            with self._locked(name, make=False) as alone:
                return not alone
        except FileNotFoundError:
            return False  # removed this instant, after a promotion

    @contextmanager
    def _alone(self, name: str, patience_seconds: float, refusal: UsageError) -> Iterator[None]:
        deadline = time.monotonic() + patience_seconds
        while True:
            with self._locked(name) as alone:
                if alone:
                    yield
                    return
            if time.monotonic() >= deadline:
                raise refusal
            time.sleep(_LOOK_SECONDS)

    @contextmanager
    def _locked(self, name: str, *, make: bool = True) -> Iterator[bool]:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._opened(make=make) as directory:
            try:
                descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
                self._own(descriptor)
            except FileExistsError:
                descriptor = os.open(name, flags, dir_fd=directory)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _own(self, descriptor: int) -> None:
        if self._account.uid is not None and self._account.gid is not None:
            os.fchown(descriptor, self._account.uid, self._account.gid)

    def _refuse_foreign(self, directory: int) -> None:
        """`pg_wal` may be a link: where it leads has to be the account's already."""
        owner = os.fstat(directory).st_uid
        if self._account.uid is not None and owner != self._account.uid:
            raise TargetFailed(
                f"{self._data / FEED} leads to what does not belong to {self._account.name}",
                hint="See where pg_wal leads: nothing there was touched.",
            )

    @contextmanager
    def _opened(self, *, make: bool = True) -> Iterator[int]:
        """A descriptor: root writes here, and the server's account could lay a link meanwhile."""
        made = False
        with self._log_directory() as wal:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(_NAME, 0o700, dir_fd=wal)
                    made = True
            try:
                with _below(wal, _NAME) as directory:
                    if made:
                        self._own(directory)
                    self._refuse_foreign(directory)
                    yield directory
            except NotADirectoryError as error:
                raise TargetFailed(
                    f"{self._data / FEED} is no directory",
                    hint="Remove it: it is where the standby is handed its WAL.",
                ) from error

    @contextmanager
    def _log_directory(self) -> Iterator[int]:
        """A descriptor of `pg_wal`, which may be a link."""
        wal = os.open((self._data / _LOG_DIRECTORY).resolve(), _DIRECTORY)
        try:
            self._refuse_foreign(wal)
            yield wal
        finally:
            os.close(wal)


@contextmanager
def _below(directory: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(directory: int) -> list[str]:
    return os.listdir(directory)
