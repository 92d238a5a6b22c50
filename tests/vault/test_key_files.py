"""Files of keys: private, whole or not there, and never in the place of another."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellarer.errors import KeyUnusable
from cellarer.vault.keys import Identity, write_private


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """As on a disk that is full: the system refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_key_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """Half a key would be in the way of the next attempt, or be taken for one."""
    file = tmp_path / "keys" / "identity.age"
    identity = Identity.generate()
    with no_file_longer_than(10), pytest.raises(KeyUnusable, match="cannot be written") as caught:
        write_private(file, identity.to_text())
    assert caught.value.hint
    assert not file.exists()
    write_private(file, identity.to_text())
    assert Identity.from_text(file.read_text(encoding="utf-8")) == identity
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyUnusable, match="exists already"):
        write_private(file, identity.to_text())
