"""Opening files of write-ahead log with the identity."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cellarer.errors import DamagedData
from cellarer.vault.log_keys import log_key
from cellarer.vault.log_object import (
    LogHeader,
    check_body,
    content_sum,
    open_header,
    open_log,
    private_key,
    public_half,
)
from cellarer.vault.vault import Vault


class LogOpener:
    """Opens the WAL of one vault; keeps the private log keys that it needed."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._private: dict[tuple[str, str], X25519PrivateKey] = {}

    def open(self, key: str, data: bytes) -> bytes:
        """The file in an object, authenticated.

        Raises `DamagedData`, and `KeyUnusable` where the identity does not open its log key.
        """
        header, system = open_header(self._vault, key, data), key.split("/")[1]
        check_body(header, data)
        plain = open_log(header, data, self._key(header, system))
        if content_sum(self._vault.chunk_ids, system, plain) != header.content:
            raise DamagedData(f"{key} does not hold what its header says")
        return plain

    def _key(self, header: LogHeader, system: str) -> X25519PrivateKey:
        private = self._private.get((header.session, system))
        if private is None:
            announced = log_key(self._vault, header.session)
            private = private_key(self._vault.session_root(header.session))
            if announced.system != system or public_half(private) != announced.public:
                raise DamagedData(f"session {header.session} announced another key than it has")
            self._private[header.session, system] = private
        return private
