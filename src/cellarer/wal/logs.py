"""The logs of one vault, kept open for a process that serves for hours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cellarer.vault.log import LogReader, LogWriter
from cellarer.vault.vault import Vault

REOPEN_SECONDS = 600.0
"""Keys and recipients change: the vault is opened anew so often, and after whatever failed."""


class Logs:
    """Writers and readers of the clusters' logs, for several threads."""

    def __init__(
        self,
        open_vault: Callable[[], Vault],
        open_writer: Callable[[Vault, str], LogWriter],
        open_reader: Callable[[Vault, str], LogReader],
    ) -> None:
        self._open_vault = open_vault
        self._open_writer, self._open_reader = open_writer, open_reader
        self._lock = threading.Lock()
        self._vault: Vault | None = None
        self._opened = 0.0
        self._writers: dict[str, LogWriter] = {}
        self._readers: dict[str, LogReader] = {}

    def writer(self, system: str) -> LogWriter:
        """The log of a cluster, to be written. Raises what opening the vault raises."""
        with self._lock:
            vault = self._opened_vault()
            if system not in self._writers:
                self._writers[system] = self._open_writer(vault, system)
            return self._writers[system]

    def reader(self, system: str) -> LogReader:
        """The log of a cluster, to be read; needs the identity for what is in it."""
        with self._lock:
            vault = self._opened_vault()
            if system not in self._readers:
                self._readers[system] = self._open_reader(vault, system)
            return self._readers[system]

    def forget(self) -> None:
        """Open everything anew when it is next wanted."""
        with self._lock:
            self._vault = None

    def _opened_vault(self) -> Vault:
        if self._vault is None or time.monotonic() - self._opened > REOPEN_SECONDS:
            self._writers, self._readers = {}, {}
            self._vault, self._opened = self._open_vault(), time.monotonic()
        return self._vault
