"""Secrets: fetched from where they are named, and never shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cellarer.config import SecretReference, resolve
from cellarer.config.secrets import reference_from
from cellarer.errors import KeyUnusable, UsageError

SECRET = "correct horse battery staple"


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLARER_TEST_SECRET", SECRET)
    assert resolve(SecretReference(env="CELLARER_TEST_SECRET"), Path("/")) == SECRET


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file_beside_the_config(tmp_path: Path, ending: str) -> None:
    (tmp_path / "secret").write_bytes((SECRET + ending).encode())
    assert resolve(SecretReference(file="secret"), tmp_path) == SECRET


def test_only_one_newline_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f" {SECRET} \n\n")
    assert resolve(SecretReference(file="secret"), tmp_path) == f" {SECRET} \n"


def test_a_secret_comes_from_a_command_run_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    program = "print(open('secret').read())"
    assert resolve(SecretReference(command=(sys.executable, "-c", program)), tmp_path) == SECRET


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        (SecretReference(env="CELLARER_TEST_ABSENT"), "CELLARER_TEST_ABSENT"),
        (SecretReference(file="absent"), "absent"),
        (SecretReference(file="."), ""),
        (SecretReference(file="empty"), "empty"),
        (SecretReference(file="binary"), "binary"),
        (SecretReference(command=("/nonexistent/program",)), "/nonexistent/program"),
        (SecretReference(command=(sys.executable, "-c", "exit(3)")), "3"),
        (SecretReference(command=(sys.executable, "-c", "")), sys.executable),
    ],
)
def test_what_is_missing_is_named_with_a_way_out(
    tmp_path: Path, reference: SecretReference, named: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UsageError) as caught:
        resolve(reference, tmp_path)
    assert named in caught.value.detail
    assert caught.value.hint


def test_a_missing_key_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable) as caught:
        resolve(SecretReference(file="identity.age"), tmp_path, KeyUnusable)
    assert caught.value.exit_code == 5


def test_a_failing_command_does_not_leak(tmp_path: Path) -> None:
    command = (sys.executable, "-c", f"print({SECRET!r}); exit(1)", SECRET)
    with pytest.raises(UsageError) as caught:
        resolve(SecretReference(command=command), tmp_path)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    assert SECRET not in repr(SecretReference(command=command))


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        {"env": SECRET},
        {"env": "A", "file": "b"},
        {},
        {"envv": "A"},
        {"command": SECRET},
        {"command": []},
        {"command": [1]},
        {"file": 5},
        {"file": ""},
        5,
    ],
)
def test_a_wrong_reference_is_refused_without_repeating_it(value: object) -> None:
    with pytest.raises(ValueError, match=r"secret|command|unknown key|is text") as caught:
        reference_from(value)
    assert SECRET not in str(caught.value)
