"""A file appears under its name with all its bytes, or not at all; and whoever writes it may end.

`test_directory_target.py` has what lies there already, and what is left of killed writers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellarer.targets.files import create_file

STEPS = ("fchmod", "fsync", "rename")


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_who_is_told_to_end_while_it_writes_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, *, done: bool
) -> None:
    """A signal comes in the middle of a system call, and is heard of when that is over."""
    real = getattr(os, step)

    def interrupted(*arguments: object, **named: object) -> None:
        if done:
            real(*arguments, **named)
        raise SystemExit(143)

    (tmp_path / "name").write_bytes(b"old")
    monkeypatch.setattr(os, step, interrupted)
    with opened(tmp_path) as directory, pytest.raises(SystemExit):
        create_file(directory, "name", [b"new"], 0o600, None)
    renamed = step == "rename" and done
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").read_bytes() == (b"new" if renamed else b"old")
